"""Whose the time and the memory of a recorded trial are: its own, or others' as well."""

from collections.abc import Mapping
from typing import Any


def shared(row: Mapping[str, Any]) -> str | None:
    """Say with whom a trial shared its GPU beyond its own pack; None where it had it alone.

    Records of before there was a tag for it have the setting, at least.
    """
    if row.get("lorasweep.shared"):
        return str(row["lorasweep.shared"])
    return "other programs" if str(row.get("executor.shared_gpu")) == "True" else None


def undisturbed(row: Mapping[str, Any]) -> bool:
    """Whether a trial, or its pack, had its GPU alone and ran under the settings it was asked for.

    One that was run again with other settings after a failure cost what those settings cost.
    """
    return shared(row) is None and not row.get("lorasweep.changed")
