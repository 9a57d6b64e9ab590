"""The user's own files: csv, tsv, jsonl or parquet, one row an item."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorasweep.errors import RequestError, nearest
from lorasweep.tasks.data import Examples, Task, TaskData, as_label, listing
from lorasweep.tasks.sources.columns import READERS, Table, UnreadableError, unquoted
from lorasweep.tasks.split import Rows, finish, two_sides
from lorasweep.tasks.subset import fraction_problems

_COLUMNS = ("text", "text_pair", "label")
# Half of a character outside the basic plane: JSON can hold one, no tokenizer can.
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def problems(task: Task) -> list[str]:
    """Everything wrong with the files, found by reading them as a trial would."""
    try:
        _read(task)
    except RequestError as error:
        return error.problems
    return []


def digest(task: Task) -> str | None:
    """SHA-256 of the files' content; None if one cannot be read, which `problems` explains.

    Quotes that are read as a part of the texts count too, where there are any.
    """
    total = hashlib.sha256()
    for setting in _files(task):
        try:
            path = _path(task, setting)
            content = path.read_bytes()
        except OSError:
            return None
        total.update(hashlib.sha256(content).digest())
        if b'"' in content and unquoted(path, task["quotes"]):
            total.update(b"unquoted")
    return total.hexdigest()


def load(task: Task, cache: Path) -> TaskData:
    """Read the files. Nothing is kept in the cache, which would be no nearer than they are.

    Items are named after their row in their file, from 0: ``train:<row>``, ``eval:<row>``.

    Raises:
        RequestError: the files cannot be used; holds everything wrong with them.
    """
    files = [task[setting] for setting in _files(task)]
    return finish(task, _read(task), {"source": "files", "files": files, "hash": digest(task)})


def _files(task: Task) -> list[str]:
    return ["train_file"] + ["eval_file"] * (task["eval_file"] is not None)


def _path(task: Task, setting: str) -> Path:
    return Path(str(task[setting])).expanduser()


def _read(task: Task) -> tuple[Examples, Examples, list[str]]:
    """Read every file, and complain about all of them at once."""
    found = [] if task["eval_file"] is not None else fraction_problems(task)
    rows = {}
    for setting in _files(task):
        try:
            rows[setting] = _rows(task, setting)
        except RequestError as error:
            found += error.problems
    if found:
        raise RequestError(found)
    return two_sides(task, rows["train_file"], rows.get("eval_file"))


def _rows(task: Task, setting: str) -> Rows:
    """Read the columns in use of one file."""
    where = f"task.{setting}={task[setting]}"
    wanted = {name: str(task[name]) for name in _COLUMNS if task[name] is not None}
    columns = _columns(where, _path(task, setting), set(wanted.values()), task["quotes"])
    found = _column_problems(where, wanted, list(columns))
    if not found:
        columns = {name: columns[column] for name, column in wanted.items()}
        found = _cell_problems(where, wanted, columns)
    if found:
        raise RequestError(found)
    return Rows(
        where=where,
        numbers=range(len(columns["text"])),
        texts=columns["text"],
        pairs=columns.get("text_pair"),
        labels=[str(as_label(value)) for value in columns["label"]],
    )


def _columns(where: str, path: Path, wanted: set[str], quotes: bool | None) -> Table:
    """Read a file into columns, or say why that cannot be."""
    if path.is_dir():
        raise RequestError([f"{where}: is a folder; name one file in it"])
    if not path.exists():
        raise RequestError([f"{where}: there is no such file (looked for {path.absolute()})"])
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise RequestError(
            [f"{where}: files ending in '{path.suffix}' are not known (only {', '.join(READERS)})"]
        )
    try:
        columns = reader(path, wanted, quotes)
    except (UnreadableError, OSError) as error:
        raise RequestError([f"{where}: {error}"]) from error
    if not columns:
        raise RequestError([f"{where}: is empty"])
    return columns


def _column_problems(where: str, wanted: Mapping[str, str], there: list[str]) -> list[str]:
    return [
        f"{where}: there is no column '{column}' (task.{name}){nearest(column, there)} "
        f"(it has {listing(there, most=20)})"
        for name, column in wanted.items()
        if column not in there
    ]


def _cell_problems(where: str, wanted: Mapping[str, str], columns: Table) -> list[str]:
    """Say which rows cannot be used: blank, of the wrong type, or of no readable characters."""
    if not columns["label"]:
        return [f"{where}: holds no rows"]
    found = []
    for name, column in wanted.items():
        faults: dict[str, list[int]] = {}
        for row, value in enumerate(columns[name]):
            fault = _fault(value, is_text=name != "label")
            if fault:
                faults.setdefault(fault, []).append(row)
        found += [
            f"{where}: {len(rows):,} of {len(columns[name]):,} rows {fault} in the column "
            f"'{column}' (task.{name}): rows {listing(rows)}, counted from 0 without a header"
            for fault, rows in faults.items()
        ]
    return found


def _fault(value: Any, *, is_text: bool) -> str | None:
    if isinstance(value, list | dict | bytes):
        return f"hold a {type(value).__name__}"
    if as_label(value) is None:
        return "hold nothing"
    if is_text and not isinstance(value, str):
        return "are not text"
    return "hold half a character" if is_text and _HALF_CHARACTER.search(value) else None
