"""What the record already holds for a sweep that starts or resumes."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lorasweep.planning import packs
from lorasweep.record.record import Record
from lorasweep.search import pruners
from lorasweep.search.base import Past, Sampler
from lorasweep.trial.result import FINAL_STATES, State
from lorasweep.trial.trial import Trial, lacks_adapter

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Known:
    """What the record says of a trial before it is asked for."""

    state: State
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class History:
    """What the record says before a sweep starts."""

    known: Mapping[str, Known]  # trials that need not be run, by key
    ended: frozenset[str]  # runs: they say nothing of what others run meanwhile
    begun: frozenset[str]  # trials that this sweep has started already


def known_of(row: Mapping[str, Any]) -> Known:
    """Read a recorded row as a sampler needs it."""
    metrics = {k: float(v) for k, v in row.items() if "/" in k and isinstance(v, int | float)}
    return Known(row["lorasweep.state"], metrics)


def history_of(rows: Iterable[Mapping[str, Any]], settings: Trial, since: float) -> History:
    """Read what need not be run, as the user wishes to resume.

    Args:
        rows: of the record.
        settings: of the sweep.
        since: in seconds since 1970; what was started before does not count.
    """
    ended_enough = enough(settings)
    known: dict[str, Known] = {}
    ended, begun = set[str](), set[str]()
    for row in rows:
        key, state = row["lorasweep.key"], row.get("lorasweep.state")
        if row["start_time"] >= since * 1000:
            begun.add(key)
            if ended_enough(row) and (key not in known or state == "done"):
                known[key] = known_of(row)
        if state not in (None, "stopped"):  # a result that waits may still end what was stopped
            ended.add(row["run_id"])
    return History(known, frozenset(ended), frozenset(begun))


def past_suggestions(
    suggestions: Mapping[int, Mapping[str, Any]], known: Mapping[str, Known]
) -> list[Past]:
    """What a search has suggested so far, and how that ended; what is to be run again did not."""
    found = []
    for number, suggestion in sorted(suggestions.items()):
        ended = known.get(suggestion["key"])
        state, metrics = (None, {}) if ended is None else (ended.state, ended.metrics)
        found.append(Past(number, suggestion["values"], state, metrics))
    return found


def other_searches(
    searches: Mapping[str, Mapping[int, Mapping[str, Any]]], sampler: Sampler
) -> list[str]:
    """Name the searches that a new one may have been meant to go on from.

    Args:
        searches: what was suggested in each sweep of the study, by the sweep's name.
        sampler: that of this search; of one that has suggestions of its own nothing is said.
    """
    if searches.get(sampler.identity):
        return []
    return [
        f"another search over these settings has {len(suggestions)} trials (sweep {name}); this "
        "one differs in its values, fixed settings or sampler, and begins anew"
        for name, suggestions in searches.items()
        if {key for one in suggestions.values() for key in one["values"]} - {"seed"}
        == sampler.searched
    ]


def reports(record: Record, row: Mapping[str, Any]) -> list[pruners.Report]:
    """Read what a trial's evaluations along the way gave."""
    scores: dict[int, dict[str, float]] = {}
    for name in ("eval/accuracy", "eval/loss"):
        for step, value in record.curve(row["run_id"], f"{name}_along"):
            scores.setdefault(step, {})[name] = value
    total = int(row["train/total_steps"])
    return [pruners.Report(step, total, found) for step, found in sorted(scores.items())]


def final(settings: Trial) -> frozenset[State]:
    """States in which a trial is not run again, as the user wishes to resume.

    With ``resume=fresh`` that holds for what was started since the sweep began anew.
    """
    states = set(FINAL_STATES)
    if settings["resume"] == "only_missing":
        states |= {"failed", "oom"}
    if settings["pruner.name"] == "none":
        states.discard("pruned")  # it would be trained to its end now
    return frozenset(states)


def enough(settings: Trial) -> Callable[[Row], bool]:
    """Say which recorded runs (their rows, or their tags) need not be repeated."""
    states, counts = final(settings), packs.counts(settings)
    return lambda run: (
        run.get("lorasweep.state") in states and counts(run) and not lacks_adapter(run, settings)
    )
