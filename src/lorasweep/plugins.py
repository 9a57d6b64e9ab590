"""Modules that a setting names: those of a room of the package, or a user's own."""

import importlib
from functools import cache
from types import ModuleType

from lorasweep.errors import LorasweepError


class UnknownPluginError(LorasweepError):
    """There is no module of this name."""


@cache
def load(room: str, name: str) -> ModuleType:
    """Import the module that a setting names.

    Args:
        room: package that a name without a dot belongs to, such as ``lorasweep.methods``.
        name: a module of the room; with a dot, any module that Python finds.

    Raises:
        UnknownPluginError: there is none. Errors within the module are not caught.
    """
    path = name if "." in name else f"{room}.{name}"
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks something else
        hint = "; is its folder on PYTHONPATH?" if "." in name else ""
        raise UnknownPluginError(f"there is no module {path}{hint}") from error
