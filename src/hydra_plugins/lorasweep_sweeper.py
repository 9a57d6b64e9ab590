"""Hydra's door to lorasweep: hands the typed overrides over, and nothing else."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class LorasweepSweeperConf:
    """``params`` is what a study sweeps unless the command line says otherwise.

    ``max_batch_size`` means what it does for Hydra's basic sweeper, and only in applications
    other than lorasweep.
    """

    _target_: str = "hydra_plugins.lorasweep_sweeper.LorasweepSweeper"
    params: dict[str, Any] = field(default_factory=dict)
    max_batch_size: int | None = None


class LorasweepSweeper(Sweeper):
    """Expands the sweep grammar and runs the trials with lorasweep's scheduler.

    In an application whose configuration is not lorasweep's there are no such trials: there it
    is Hydra's basic sweeper, which hands the task function to the launcher.
    """

    def __init__(self, params: Mapping[str, Any], max_batch_size: int | None) -> None:
        self.params = dict(params)
        self.max_batch_size = max_batch_size
        self.basic: Sweeper | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what ``sweep`` needs. Trials are run by lorasweep's engines, not by the task."""
        self.loader = hydra_context.config_loader
        self.config = config
        if OmegaConf.select(config, "engine.target") is None:
            from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

            self.basic = BasicSweeper(self.max_batch_size, self.params)
            self.basic.setup(
                hydra_context=hydra_context, task_function=task_function, config=config
            )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep that ``arguments`` (overrides without ``hydra.``) describe.

        Raises:
            LorasweepError: the request, the record or the disk cannot be used.
            SystemExit: not every trial is done; carries the exit code.
        """
        if self.basic is not None:
            return self.basic.sweep(arguments)
        from lorasweep import cli
        from lorasweep.running import sweep

        hydra_overrides = OmegaConf.to_container(self.config.hydra.overrides.hydra)
        composer = cli.composer_for(self.loader, [str(o) for o in hydra_overrides or ()])
        code = sweep.run(arguments, self.params, composer)
        return sys.exit(code) if code else None


ConfigStore.instance().store(
    group="hydra/sweeper", name="lorasweep", node=LorasweepSweeperConf, provider="lorasweep"
)
