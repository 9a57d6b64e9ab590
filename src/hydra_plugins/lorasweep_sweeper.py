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
    """``hydra.sweeper.params`` is what a study sweeps unless the command line says otherwise."""

    _target_: str = "hydra_plugins.lorasweep_sweeper.LorasweepSweeper"
    params: dict[str, Any] = field(default_factory=dict)


class LorasweepSweeper(Sweeper):
    """Expands the sweep grammar and runs the trials with lorasweep's scheduler."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = dict(params)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what ``sweep`` needs. Trials are run by lorasweep's engines, not by the task."""
        self.loader = hydra_context.config_loader
        self.config = config

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep that ``arguments`` (overrides without ``hydra.``) describe.

        Raises:
            LorasweepError: the request, the record or the disk cannot be used.
            SystemExit: not every trial is done; carries the exit code.
        """
        from lorasweep import app, space

        hydra_overrides = OmegaConf.to_container(self.config.hydra.overrides.hydra)
        composer = space.Composer(self.loader, [str(o) for o in hydra_overrides or ()])
        code = app.run(arguments, self.params, composer)
        if code:
            sys.exit(code)


ConfigStore.instance().store(
    group="hydra/sweeper", name="lorasweep", node=LorasweepSweeperConf, provider="lorasweep"
)
