"""Reading table files into columns, with complaints that say where."""

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from lorasweep.tasks.data import listing

Table = dict[str, list[Any]]  # columns by name, all of one length


class UnreadableError(Exception):
    """The file is not what its name says; the text says where and why."""


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # the error counts from after a byte-order mark, where there is one
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UnreadableError(
            f"not UTF-8 text (line {line:,}, byte {error.start:,} is "
            f"0x{error.object[error.start]:02x}); save it as UTF-8"
        ) from error


def unquoted(path: Path, quotes: bool | None) -> bool:
    """Whether double quotes in a separated file are a part of its texts.

    In tsv they are unless it is told otherwise: corpora are written so, and a text may open a
    quotation that another row closes.
    """
    usual = {".csv": True, ".tsv": False}.get(path.suffix.lower())
    return usual is not None and not (usual if quotes is None else quotes)


def _read_separated(path: Path, separator: str, quotes: bool | None) -> Table:
    plain = unquoted(path, quotes)
    csv.field_size_limit(sys.maxsize)  # texts may be longer than the 128 KiB of the default
    # newline="": line ends within quotes belong to the text
    reader = csv.reader(
        io.StringIO(_text(path), newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
        strict=True,
    )
    try:
        header = next(reader, [])
        lines = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise UnreadableError(
            f"line {reader.line_num:,}: {error} (are the quotes in pairs? Where they are a part "
            "of the texts, say task.quotes=false)"
        ) from error
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UnreadableError(f"two columns are called {listing(twice)}")
    uneven = [line for line, cells in lines if len(cells) != len(header)]
    if uneven:
        raise UnreadableError(
            f"{len(uneven):,} rows do not have the {len(header)} fields of the header: those that "
            f"end on lines {listing(uneven)}; put texts with separators in double quotes"
            + (" and say task.quotes=true" if plain else "")
        )
    rows = [cells for _, cells in lines]
    table = {name: [row[place] for row in rows] for place, name in enumerate(header)}
    surrounded = [name for name, cells in table.items() if _surrounded([name, *cells])]
    if plain and quotes is None and surrounded:
        raise UnreadableError(
            f"double quotes surround the texts of the column {listing(surrounded)}; say "
            "task.quotes=true to take them off, or task.quotes=false to keep them"
        )
    return table


def _surrounded(cells: Sequence[str]) -> bool:
    """Whether quotes are surely those of a file's format: all in pairs, and doubled within."""
    marked = [cell for cell in cells if '"' in cell]
    pairs = all(re.fullmatch(r'"(?:[^"]|"")*"', cell) for cell in marked)
    whole = len(marked) >= len(cells) - 1  # the header may go without
    return bool(marked) and pairs and (whole or any('""' in cell[1:-1] for cell in marked))


def _read_csv(path: Path, wanted: Collection[str], quotes: bool | None) -> Table:
    return _read_separated(path, ",", quotes)


def _read_tsv(path: Path, wanted: Collection[str], quotes: bool | None) -> Table:
    return _read_separated(path, "\t", quotes)


def _read_jsonl(path: Path, wanted: Collection[str], quotes: bool | None) -> Table:
    rows = list(_objects(_text(path)))
    columns = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in columns}


def _objects(text: str) -> Iterator[dict[str, Any]]:
    # split("\n"), not splitlines: JSON strings may hold other line separators as they are
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UnreadableError(f"line {number:,} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UnreadableError(
                f'line {number:,} is not an object like {{"text": …, "label": …}}'
            )
        yield row


def _read_parquet(path: Path, wanted: Collection[str], quotes: bool | None) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        table = pq.read_table(path, columns=[name for name in names if name in wanted])
    except pa.ArrowException as error:
        raise UnreadableError(f"not a readable parquet file ({error})") from error
    return {name: table.column(name).to_pylist() if name in wanted else [] for name in names}


# By file ending. Each takes the columns wanted and whether quotes surround texts (of separated
# files; None: as usual for the ending), returns all names, and may leave other columns empty.
READERS: dict[str, Callable[[Path, Collection[str], bool | None], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
