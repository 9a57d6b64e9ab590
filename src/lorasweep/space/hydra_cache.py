"""What makes the first seconds of a command short, for a process that runs one and ends.

Hydra parses the files of ``conf/`` anew for each composition, and copies its whole store for
each list of options: that was most of the time of ``--help`` and of a plan. And trials by the
thousand are all kept, so that looking for garbage among them finds none.
"""

import copy
import gc
import pickle
from typing import Any, ClassVar, Self

from hydra._internal import config_loader_impl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult


class Once(ConfigRepository):  # type: ignore[misc]
    """Remembers what it has read, and shares that with its copies and successors."""

    # pickled: a composition writes into what it is given, and this is the fastest deep copy
    _read: ClassVar[dict[tuple[tuple[str, ...], str], bytes]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies differ in their sources at most, which are replaced as a whole."""
        return copy.copy(self)

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """Find the folders to read from."""
        super().initialize_sources(config_search_path)
        self._where = tuple(str(source.path) for source in self.sources)

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Return a configuration that belongs to the caller."""
        at = self._where, config_path
        if at not in self._read:
            self._read[at] = pickle.dumps(super().load_config(config_path))
        found: ConfigResult | None = pickle.loads(self._read[at])
        return found


def hasten() -> None:
    """Let Hydra read each file once, and collect no garbage for now."""
    config_loader_impl.ConfigRepository = Once
    gc.disable()


def settle() -> None:
    """Go on as usual: the plan is made."""
    if config_loader_impl.ConfigRepository is Once:
        gc.enable()
