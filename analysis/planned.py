"""Trials as a command line would describe them, and what the plan says of them."""

from functools import cache

import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from lorasweep import cli
from lorasweep.costs import devices, memory, seconds
from lorasweep.costs.seconds import Calibration, Data
from lorasweep.errors import RequestError
from lorasweep.space import expand, schema
from lorasweep.space.composition import Composer, plain
from lorasweep.trial.trial import Trial

GIB = 2**30
N_LABELS = 5


@cache
def _composer() -> Composer:
    running = GlobalHydra.instance()
    if running.is_initialized():  # a program composes from the same folder already
        return Composer(running.config_loader())
    schema.register()
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        return Composer(GlobalHydra.instance().config_loader())


def trial_of(*words: str) -> Trial:
    """Trial that these overrides describe.

    Raises:
        RequestError: they describe none that could run.
    """
    options = [word for word in words if "." not in word.partition("=")[0]]
    tree = _composer()(options).tree.copy()  # composing is slow, so once for the same options
    for word in words:
        name, _, value = word.partition("=")
        if "." in name:
            OmegaConf.update(tree, name, yaml.safe_load(value), merge=False)
    problems: list[str] = []
    trial = expand.finish(plain(tree), problems)
    if problems:
        raise RequestError(problems)
    return trial


def hours(trial: Trial, device: str, data: Data) -> float:
    """Predicted hours of a trial on a device."""
    found = seconds.estimate(trial, data, devices.find(device), Calibration())
    return found.total / 3600


def gib(trial: Trial) -> float:
    """Predicted peak that PyTorch allocates, in GiB."""
    return memory.estimate(trial, N_LABELS).allocated / GIB
