"""Sweeps of LoRA, QLoRA and their relatives: one command line, one record, one report."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorasweep.api import sweep

__all__ = ["__version__", "sweep"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load ``sweep`` when it is asked for: with pandas and Hydra, a second."""
    if name != "sweep":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lorasweep.api import sweep

    return sweep
