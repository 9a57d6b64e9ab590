"""Which run of a key counts."""

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any


def latest(
    rows: Iterable[Mapping[str, Any]],
    keys: Container[str],
    counts: Callable[[Mapping[str, Any]], bool] = lambda row: True,
) -> dict[str, dict[str, Any]]:
    """Of each trial the row that counts: the last that is done, or the last that has ended.

    Args:
        rows: of a record, oldest first.
        keys: of the trials.
        counts: which rows are looked at.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        key, state = row["lorasweep.key"], row.get("lorasweep.state")
        if key not in keys or state is None or not counts(row):
            continue
        if state == "done" or found.get(key, {}).get("lorasweep.state") != "done":
            found[key] = dict(row)
    return found
