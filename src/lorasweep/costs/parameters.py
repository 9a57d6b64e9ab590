"""Parameters of a trial, to the unit: what is trained, and what there is in all."""

from functools import lru_cache

from lorasweep import methods
from lorasweep.costs.setting import Setting, setting_of
from lorasweep.methods.base import Parameters
from lorasweep.trial.trial import Trial


def count(trial: Trial, n_labels: int) -> Parameters:
    """Parameters of a trial whose task has ``n_labels`` classes."""
    return of(setting_of(trial, n_labels))


@lru_cache(maxsize=65536)
def of(s: Setting) -> Parameters:
    """Parameters of a trial with this setting."""
    return methods.load(s.method).parameters(s)
