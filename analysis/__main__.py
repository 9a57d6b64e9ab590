"""``python -m analysis``: from the record to the tidy table, the figures and the tables."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis import figures, tables
from analysis import table as tidy
from lorasweep.errors import DONE, LorasweepError

RECORD = Path("outputs/mlflow.db")
TABLE = Path("results/trials.parquet")
FIGURES = Path("results/figures")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 2 (bad request) or 3 (record, disk)."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "table":
            _make_table(options.uri, options.out)
        else:
            _make_figures(options)
    except LorasweepError as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("table", help="read the record into the tidy table")
    make.add_argument("--uri", default=f"sqlite:///{RECORD}", help="record (default: %(default)s)")
    make.add_argument("--out", type=Path, default=TABLE, help="default: %(default)s")
    draw = commands.add_parser("figures", help="draw every figure and table")
    draw.add_argument("--uri", help=f"record to read first (default: {RECORD} where it exists)")
    draw.add_argument("--table", type=Path, help=f"tidy table (default: {TABLE})")
    draw.add_argument("--out", type=Path, default=FIGURES, help="default: %(default)s")
    return parser


def _make_table(uri: str, out: Path) -> pd.DataFrame:
    made = tidy.build(uri)
    tidy.write(made, out)
    done = int((made["state"] == "done").sum())
    _say(f"{out}: {len(made)} trial{'s' * (len(made) > 1)}, {done} finished, from {uri}")
    return made


def _make_figures(options: argparse.Namespace) -> None:
    uri, path = options.uri, options.table or TABLE
    # A table that is named is drawn as it is: it may be all that is left of its record.
    if uri is None and options.table is None and RECORD.exists():
        uri = f"sqlite:///{RECORD}"
    trials = _make_table(uri, path) if uri else tidy.read(path)
    with Console(stderr=True).status("drawing"):
        drawn = figures.draw_all(trials, options.out)
    for folder in sorted({file.parent for file in drawn}):
        count = sum(file.parent == folder and file.suffix == ".png" for file in drawn)
        _say(f"{folder}: {count} figures (PDF and PNG), captions.md")
    written = tables.write_all(trials, options.out.parent / "tables")
    _say(f"{options.out.parent / 'tables'}: {len(written)} files")


def _say(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
