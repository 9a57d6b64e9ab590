"""Data sets of the Hugging Face hub, pinned to a commit; their code, if any, is never run."""

import hashlib
import json
import re
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.errors import LorasweepError, RequestError, nearest
from lorasweep.models.source import http_error
from lorasweep.tasks.data import Examples, Task, TaskData, as_label, listing
from lorasweep.tasks.split import Rows, finish, two_sides
from lorasweep.tasks.subset import fraction_problems, size_problems

if TYPE_CHECKING:
    import datasets

_FORMAT = 1  # counts up when what is kept in the cache changes
_PATIENCE_S = 5.0  # for the one request that `problems` makes
_ELSEWHERE = ("name", "quotes")  # settings that decide nothing of what a hub gives
_READABLE = (".parquet", ".csv", ".tsv", ".json", ".jsonl")
_ACCESS = "ask for access on its page, then run 'hf auth login' or set HF_TOKEN"


def problems(task: Task) -> list[str]:
    """What can be said without the data: one request, of a few seconds at most."""
    found = _setting_problems(task)
    if found:
        return found
    try:
        return _card_problems(task, _ask_hub(task))
    except _UnreachableError as error:
        prepared = _prepared(task)
        return [str(error)] if prepared is None else _card_problems(task, [_about(prepared)])
    except RequestError as error:
        return error.problems


def load(task: Task, cache: Path) -> TaskData:
    """Download the data, or read the subset that an earlier call has kept.

    Rows without text or label are left out and counted in the provenance. Items are named after
    their row in their split, from 0: ``train:<row>``, ``eval:<row>``.

    Args:
        task: settings.
        cache: keeps the subset; the whole set stays in the cache of the datasets library.

    Raises:
        RequestError: the data set cannot be had, or not as asked.
    """
    settings = [_FORMAT, sorted((name, task[name]) for name in task if name not in _ELSEWHERE)]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    kept = cache / "hub" / f"{task['name']}-{key}.json"
    if kept.exists():
        return _read_kept(kept)
    data = _download(task)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=kept.parent, delete=False) as file:
        json.dump(asdict(data), file)
    Path(file.name).replace(kept)
    return data


def _read_kept(path: Path) -> TaskData:
    kept = json.loads(path.read_bytes())
    for side in ("train", "eval"):
        kept[side] = Examples(**kept[side])
    return TaskData(**kept)


class _UnreachableError(LorasweepError):
    """The hub did not answer."""


def _explain(task: Task, error: Exception) -> LorasweepError:
    """Turn what the libraries raise into what the user can do."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import errors

    where = f"task.id={task['id']}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        return RequestError([f"{where}: is gated; {_ACCESS}"])
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        there = f"the hub has no such data set, or not at revision {task['revision']}"
        return RequestError([f"{where}: {there}. If it is private, {_ACCESS}"])
    if status in (401, 403):
        return RequestError([f"{where}: the hub refuses your token; {_ACCESS}"])
    if isinstance(error, DatasetNotFoundError):  # gated or private, and the token does not do
        return RequestError([f"{where}: {error} If it exists, {_ACCESS}"])
    if isinstance(error, ConnectionError | http_error()):
        return _UnreachableError(
            f"{where}: the hub cannot be reached ({type(error).__name__}) and revision "
            f"{task['revision']} is not in the local cache. Connect once, or point HF_HOME to a "
            "cache that has it, or use your own files (task=local)"
        )
    return RequestError([f"{where}: {error}"])


def _setting_problems(task: Task) -> list[str]:
    found = []
    if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", task["id"] or ""):
        found.append(f"task.id={task['id']}: give a data set's hub id, like owner/name")
    if not re.fullmatch(r"[0-9a-f]{40}", task["revision"] or ""):
        found.append(
            f"task.revision={task['revision']}: pin the data to a commit (40 hexadecimal digits; "
            "see the history of its files on the hub), or the same trial could change"
        )
    if task["train_split"] is None:
        found.append("task.train_split=null: name the split to train on")
    if task["eval_split"] is None:
        found += fraction_problems(task)
    elif task["eval_split"] == task["train_split"]:
        found.append(f"task.eval_split={task['eval_split']}: is the split to train on")
    return found


@dataclass(frozen=True)
class _Config:
    """One configuration of a data set, as far as its card describes it."""

    name: str
    columns: list[str]
    splits: dict[str, int]  # rows


def _ask_hub(task: Task) -> list[_Config]:
    """Ask the hub, once, what the data set is."""
    import huggingface_hub as hub

    where = f"task.id={task['id']}"
    try:
        info = hub.HfApi().dataset_info(task["id"], revision=task["revision"], timeout=_PATIENCE_S)
    except (OSError, ImportError, http_error()) as error:
        raise _explain(task, error) from error
    if info.gated and not hub.get_token():
        raise RequestError([f"{where}: is gated; {_ACCESS}"])
    files = [file.rfilename.removesuffix(".gz") for file in info.siblings or []]
    if not any(name.endswith(_READABLE) for name in files):
        raise RequestError([f"{where}: has no parquet, csv or json files (its code is never run)"])
    card: Any = info.card_data or {}
    described = card.get("dataset_info") or []
    return [
        _Config(
            name=config.get("config_name", "default"),
            columns=[feature["name"] for feature in config.get("features", [])],
            # some cards leave the sizes out: then no size is too large for now
            splits={
                split["name"]: split.get("num_examples", sys.maxsize)
                for split in config.get("splits", [])
            },
        )
        for config in ([described] if isinstance(described, dict) else described)
    ]


def _card_problems(task: Task, configs: list[_Config]) -> list[str]:
    """Compare the settings with the card; where it says nothing, loading will."""
    names = [config.name for config in configs]
    if not configs:
        return []
    wanted = task["config"] or (names[0] if len(names) == 1 else "default")
    if wanted not in names:
        return [_not_there(task, "config", wanted, names)]
    config = configs[names.index(wanted)]
    found = [
        _not_there(task, setting, task[setting], known)
        for settings, known in (
            (("train_split", "eval_split"), list(config.splits)),
            (("text", "text_pair", "label"), config.columns),
        )
        for setting in settings
        if known and task[setting] is not None and task[setting] not in known
    ]
    if not found and config.splits and task["eval_split"] is not None:
        train, evaluation = (config.splits[task[f"{side}_split"]] for side in ("train", "eval"))
        found += size_problems(task, train, evaluation, classes=2)
    return found


def _not_there(task: Task, setting: str, value: str, known: list[str]) -> str:
    return (
        f"task.{setting}={value}: {task['id']} does not have it{nearest(value, known)} "
        f"(it has {listing(known, most=20)})"
    )


def _prepared(task: Task) -> Path | None:
    """Folder where the datasets library keeps this very revision, if it does."""
    from datasets import config, naming

    *owner, name = str(task["id"]).split("/")
    root = Path(config.HF_DATASETS_CACHE, "___".join([*owner, naming.camelcase_to_snakecase(name)]))
    there = list(root.glob(f"{task['config'] or '*'}/*/{task['revision']}/dataset_info.json"))
    return there[0].parent if len(there) == 1 else None


def _about(prepared: Path) -> _Config:
    about = json.loads((prepared / "dataset_info.json").read_text(encoding="utf-8"))
    splits = {name: split["num_examples"] for name, split in about["splits"].items()}
    return _Config(about["config_name"], list(about["features"]), splits)


def _download(task: Task) -> TaskData:
    sides = {
        side: _split(task, f"{side}_split")
        for side in ("train", "eval")
        if task[f"{side}_split"] is not None
    }
    rows = {side: _rows(task, side, split) for side, split in sides.items()}
    feature = sides["train"].features[task["label"]]
    return finish(
        task,
        two_sides(task, rows["train"], rows.get("eval"), getattr(feature, "names", None)),
        {
            "source": f"hub:{task['id']}",
            "revision": task["revision"],
            "config": task["config"],
            "licence": sides["train"].info.license or None,
            "rows_without_text_or_label": {
                side: len(split) - len(rows[side].numbers) for side, split in sides.items()
            },
        },
    )


def _split(task: Task, setting: str) -> "datasets.Dataset":
    """Read a split: from the library's cache without asking the hub, or else from the hub."""
    import datasets
    from datasets.exceptions import DatasetsError

    split, prepared = task[setting], _prepared(task)
    if prepared is not None:
        shards = [*prepared.glob(f"*-{split}.arrow"), *prepared.glob(f"*-{split}-*-of-*.arrow")]
        if not shards:
            raise RequestError([_not_there(task, setting, split, list(_about(prepared).splits))])
        parts = [datasets.Dataset.from_file(str(path)) for path in sorted(shards)]
        return datasets.concatenate_datasets(parts)
    try:
        # "hf://": or a folder of that name in the working directory would be read instead
        loaded = datasets.load_dataset(
            f"hf://datasets/{task['id']}", task["config"], split=split, revision=task["revision"]
        )
    except (OSError, ValueError, RuntimeError, DatasetsError, http_error()) as error:
        raise _explain(task, error) from error
    # without a network the library takes any revision that it has
    if not all(task["revision"] in file["filename"] for file in loaded.cache_files):
        raise _explain(task, ConnectionError("another revision is cached"))
    return loaded


def _rows(task: Task, side: str, split: "datasets.Dataset") -> Rows:
    """Read the columns in use, without the rows that lack something."""
    settings = [name for name in ("text", "text_pair", "label") if task[name] is not None]
    found = [text for name in settings for text in _column_problems(task, name, split)]
    if found:
        raise RequestError(found)
    texts, *others, labels = (list(split[task[name]]) for name in settings)
    pairs = others[0] if others else None
    classes = getattr(split.features[task["label"]], "names", None)
    if classes is not None:  # labels are indices, -1 where they are withheld
        labels = [classes[label] if label in range(len(classes)) else None for label in labels]
    labels = [as_label(label) for label in labels]
    second = pairs or texts
    numbers = [
        row for row in range(len(labels)) if texts[row] and second[row] and labels[row] is not None
    ]
    where = f"task.id={task['id']} task.{side}_split={task[f'{side}_split']}"
    if not numbers:
        raise RequestError([f"{where}: no row has both text and label"])
    return Rows(
        where=where,
        numbers=numbers,
        texts=[texts[row] for row in numbers],
        pairs=None if pairs is None else [pairs[row] for row in numbers],
        labels=[labels[row] for row in numbers],
    )


def _column_problems(task: Task, setting: str, split: "datasets.Dataset") -> list[str]:
    column = task[setting]
    if column not in split.column_names:
        return [_not_there(task, setting, column, split.column_names)]
    kind = getattr(split.features[column], "dtype", None)  # lists have none
    if kind is None or (setting != "label" and kind not in ("string", "large_string")):
        wanted = "one class a row" if setting == "label" else "text"
        return [f"task.{setting}={column}: is not {wanted} in {task['id']}"]
    return []
