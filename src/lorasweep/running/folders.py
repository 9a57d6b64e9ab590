"""A trial's own folder: its configuration, what it saves while it runs, and its artefacts."""

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

from lorasweep.trial.trial import Trial


def clear(folder: Path, *, state: bool, artifacts: bool = True) -> None:
    """Remove what an earlier attempt left: its artefacts, and if asked what it would go on from."""
    if artifacts:
        shutil.rmtree(folder / "artifacts", ignore_errors=True)
    if state:
        shutil.rmtree(folder / "state", ignore_errors=True)


def save_config(trial: Trial, *files: Path) -> None:
    """Write a trial's resolved configuration, the same into each file."""
    tree: dict[str, Any] = {}
    for name, value in trial.config.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    text = "".join(_yaml(json.dumps({name: value})) for name, value in tree.items())
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@lru_cache(maxsize=256)  # most groups of settings are the same in all trials of a sweep
def _yaml(text: str) -> str:
    """Write JSON as YAML."""
    import yaml

    return yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True)
