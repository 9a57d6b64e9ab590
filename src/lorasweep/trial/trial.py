"""A trial: one configuration, trained and evaluated once."""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from lorasweep.trial.key import Config, Form, filled, hashed, key_of


@lru_cache(maxsize=256)
def _group_names(names: tuple[str, ...], prefix: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, name.removeprefix(prefix)) for name in names if name.startswith(prefix))


def keyed(config: Config, kind: object, form: Form) -> "Trial":
    """Trial of a kind with its key, which comes faster from the kind's form."""
    trial = Trial(config, kind)
    vars(trial)["key"] = hashed(filled(form, config))  # where the property keeps it
    return trial


@dataclass(frozen=True)
class Trial:
    """One configuration, flat (``{"lora.r": 8, …}``) and fully resolved (alpha is a number)."""

    config: Config
    # the same object in trials of a sweep that differ in ``LOOSE`` settings at most
    kind: object = field(default_factory=object, compare=False, repr=False)

    @cached_property
    def key(self) -> str:
        """Identity for resume, dedupe and retry."""
        return key_of(self.config)

    def __getitem__(self, name: str) -> Any:
        """Value of one setting by its dotted name."""
        return self.config[name]

    def group(self, name: str) -> dict[str, Any]:
        """Return one group of settings without its prefix: ``group("train")["epochs"]``."""
        names = _group_names(tuple(self.config), name + ".")
        return {short: self.config[long] for long, short in names}

    @property
    def adapts(self) -> bool:
        """Whether a low-rank adapter is trained."""
        return bool(self.config["method.trains"] == "adapter")


ADAPTER_NOT_KEPT = {"lorasweep.adapter": "not kept"}  # tag of a run with save_adapter=false


def lacks_adapter(run: Config, settings: Trial) -> bool:
    """Whether a recorded run (its row, or its tags) did not keep the adapter that is asked for."""
    if not settings["engine.save_adapter"] or run.get("lorasweep.state") != "done":
        return False
    adapts = run.get("method.trains") == "adapter"  # older runs have no tag that says it
    kept = str(run.get("engine.save_adapter")) != "False" or not adapts
    return not kept or ADAPTER_NOT_KEPT.items() <= run.items()
