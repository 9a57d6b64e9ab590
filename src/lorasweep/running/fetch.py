"""Bring bases and data to this machine before the first trial starts."""

from collections.abc import Sequence

from lorasweep.errors import LorasweepError, RequestError
from lorasweep.request.preflight import already_quantised, distinct
from lorasweep.trial.trial import Trial


def fetch(trials: Sequence[Trial]) -> list[str]:
    """Bring bases and data to this machine before the first trial starts.

    Returns:
        A sentence about each task: how many items, and what score is had without learning.

    Raises:
        RequestError: something cannot be had; holds all that cannot.
    """
    from lorasweep.models import source
    from lorasweep.tasks import data, sources

    problems: list[str] = []
    told: list[str] = []
    cache = source.cache_home()
    for trial in distinct(trials, "model"):
        try:
            source.locate(source.settings(trial), cache)
        except LorasweepError as error:
            problems.append(f"model={trial['model.name']}: {error}")
    for trial in distinct(trials, "task"):
        try:
            task = trial.group("task")
            told.append(data.summary(task, sources.load(task, cache)))
        except RequestError as error:
            problems += error.problems
        except LorasweepError as error:
            problems.append(str(error))
    problems = problems or already_quantised(trials)  # that could not be told before
    if problems:
        raise RequestError(problems)
    return told
