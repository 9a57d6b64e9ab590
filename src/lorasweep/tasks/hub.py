"""Data sets of the Hugging Face hub, pinned to a commit; their code, if any, is never run."""

import hashlib
import json
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.errors import LorasweepError, RequestError
from lorasweep.tasks.data import Examples, Task, TaskData, as_label, listing, nearest
from lorasweep.tasks.sides import Rows, finish, two_sides
from lorasweep.tasks.subset import fraction_problems, size_problems

if TYPE_CHECKING:
    import datasets

_FORMAT = 1  # counts up when what is kept in the cache changes
_PATIENCE_S = 5.0  # for the one request that `problems` makes
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
        return [] if _is_prepared(task) else [str(error)]
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
    settings = [_FORMAT, sorted((name, task[name]) for name in task if name != "name")]
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


def _where(task: Task) -> str:
    return f"task.id={task['id']}"


def _unreachable(task: Task, error: Exception) -> _UnreachableError:
    return _UnreachableError(
        f"{_where(task)}: the hub cannot be reached ({type(error).__name__}) and this revision is "
        "not in the local cache. Connect once, or point HF_HOME to a cache that has it, or use "
        "your own files (task=local)"
    )


def _refused(task: Task, *, gated: bool) -> RequestError:
    if gated:
        return RequestError([f"{_where(task)}: is gated: {_ACCESS}"])
    return RequestError(
        [
            f"{_where(task)}: the hub has no such data set, or not at revision "
            f"{task['revision']}. If it is private: {_ACCESS}"
        ]
    )


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
    from huggingface_hub import errors

    try:
        info = hub.HfApi().dataset_info(task["id"], revision=task["revision"], timeout=_PATIENCE_S)
    except errors.GatedRepoError as error:
        raise _refused(task, gated=True) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise _refused(task, gated=False) from error
    except (OSError, _http_error()) as error:
        raise _unreachable(task, error) from error
    if info.gated and not hub.get_token():
        raise _refused(task, gated=True)
    files = [file.rfilename.removesuffix(".gz") for file in info.siblings or []]
    if not any(name.endswith(_READABLE) for name in files):
        raise RequestError(
            [f"{_where(task)}: has no parquet, csv or json files (its code is never run)"]
        )
    card: Any = info.card_data or {}
    described = card.get("dataset_info") or []
    return [
        _Config(
            name=config.get("config_name", "default"),
            columns=[feature["name"] for feature in config.get("features", [])],
            splits={split["name"]: split["num_examples"] for split in config.get("splits", [])},
        )
        for config in ([described] if isinstance(described, dict) else described)
    ]


def _http_error() -> type[Exception]:
    """What the HTTP client raises, whichever client this version of the hub library uses."""
    from huggingface_hub import errors

    return errors.HTTPError  # type: ignore[attr-defined]


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


def _is_prepared(task: Task) -> bool:
    """Whether the datasets library has this very revision in its cache."""
    from datasets import config, naming

    *owner, name = str(task["id"]).split("/")
    folder = Path(config.HF_DATASETS_CACHE) / "___".join(
        [*owner, naming.camelcase_to_snakecase(name)]
    )
    return any(folder.glob(f"{task['config'] or '*'}/*/{task['revision']}/dataset_info.json"))


def _download(task: Task) -> TaskData:
    sides = {
        side: _split(task, task[f"{side}_split"])
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


def _split(task: Task, split: str) -> "datasets.Dataset":
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    try:
        # "hf://": or a folder of that name in the working directory would be read instead
        loaded = datasets.load_dataset(
            f"hf://datasets/{task['id']}",
            task["config"],
            split=split,
            revision=task["revision"],
        )
    except DatasetNotFoundError as error:
        raise _refused(task, gated="gated" in str(error)) from error
    except (ConnectionError, _http_error()) as error:
        raise _unreachable(task, error) from error
    except (ValueError, RuntimeError, DatasetsError) as error:
        raise RequestError([f"{_where(task)}: {error}"]) from error
    # without a network the library takes any revision that it has
    if not all(task["revision"] in file["filename"] for file in loaded.cache_files):
        raise _unreachable(task, ConnectionError("another revision"))
    return loaded


def _rows(task: Task, side: str, split: "datasets.Dataset") -> Rows:
    """Read the columns in use, without the rows that lack something."""
    settings = [name for name in ("text", "text_pair", "label") if task[name] is not None]
    found = [
        _not_there(task, name, task[name], split.column_names)
        for name in settings
        if task[name] not in split.column_names
    ]
    if found:
        raise RequestError(found)
    texts, *others, labels = (list(split[task[name]]) for name in settings)
    pairs = others[0] if others else None
    classes = getattr(split.features[task["label"]], "names", None)
    if classes is not None:  # labels are indices, −1 where they are withheld
        labels = [classes[label] if label in range(len(classes)) else None for label in labels]
    labels = [as_label(label) for label in labels]
    second = pairs or texts
    numbers = [
        row for row in range(len(labels)) if texts[row] and second[row] and labels[row] is not None
    ]
    where = f"{_where(task)} task.{side}_split={task[f'{side}_split']}"
    if not numbers:
        raise RequestError([f"{where}: no row has both text and label"])
    return Rows(
        where=where,
        numbers=numbers,
        texts=[texts[row] for row in numbers],
        pairs=None if pairs is None else [pairs[row] for row in numbers],
        labels=[labels[row] for row in numbers],
    )
