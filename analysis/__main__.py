"""``python -m analysis``: from the record to the table, figures, claims and the report."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis import figures, tables, views
from lorasweep import addresses
from lorasweep.errors import DONE, LorasweepError, RequestError
from lorasweep.results import details, files

RECORD = Path("outputs") / addresses.NAME
RESULTS = Path("results")
TRIALS = "trials.parquet"
_WHAT = {
    "table": "read the record into the tidy table",
    "figures": "draw every figure and table",
    "tables": "set the paper's Tables 1 to 4 beside our own accounting",
    "claims": "judge the paper's claims: confirmed, refuted or undecided",
    "report": "write all of it as one page, HTML and Markdown",
    "rates": "say which learning rate a search found, for study=patil2025_tuned",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 2 (bad request) or 3 (record, disk)."""
    options = _parser().parse_args(arguments)
    try:
        commands = {"table": _make_whole_table, "figures": _make_figures, "tables": _make_tables}
        commands |= {"claims": _judge, "report": _report, "rates": _find_rates}
        commands[options.command](_Place.of(options))
    except LorasweepError as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in _WHAT.items():
        command = commands.add_parser(name, help=what)
        command.add_argument(
            "--uri",
            help=f"record to read: an output_dir, a file or an address (default: {RECORD})",
        )
        out = "where to write: all of it goes there (default: results, beside an --uri)"
        if name == "table":
            out = f"file to write (default: results/{TRIALS}, beside an --uri)"
        else:
            command.add_argument("--table", type=Path, help="tidy table, in place of a record")
        command.add_argument("--out", type=Path, help=out)
    return parser


@dataclass(frozen=True)
class _Place:
    """What a command reads and where it writes.

    Attributes:
        uri: address of the record to read; None to read the table.
        table: the tidy table, written first where there is a record.
        out: folder for what the command makes.
        tables: folder for tables made with it.
    """

    uri: str | None
    table: Path
    out: Path
    tables: Path

    @classmethod
    def of(cls, options: argparse.Namespace) -> "_Place":
        """Read the options: results of different records do not mix unless that is asked for."""
        asked, named = options.uri, getattr(options, "table", None)
        # A table that is named is taken as it is: it may be all that is left of its record.
        if asked is None and named is None and RECORD.exists():
            asked = str(RECORD)
        uri = None if asked is None else addresses.record_named(asked)
        root = _results_of(uri)
        if options.command == "table":
            file = options.out or root / TRIALS
            return cls(uri or addresses.absolute(str(RECORD)), file, file.parent, file.parent)
        beside = options.out if options.out is not None and uri is not None else root
        return cls(
            uri,
            table=named or beside / TRIALS,
            out=options.out or root / options.command,
            tables=(options.out or root) / "tables",
        )


def _results_of(uri: str | None) -> Path:
    """Folder for the results of a record: beside it, unless it is the default one."""
    file = None if uri is None else addresses.record_file(uri)
    if file is None or file == RECORD.resolve():
        return RESULTS
    return file.parent / RESULTS


def _make_table(uri: str, out: Path, *, whole: bool) -> pd.DataFrame:
    """Write the table, and beside it the answers and curves: all with ``whole``, or those known."""
    made = files.build(uri)
    files.write(made, out)
    # A record that was moved without its artefacts has answers only in the earlier file.
    found = details.build(uri, made) if whole else details.empty()
    details.write(details.completed(found, details.read(out), made), out)
    done = int((made["state"] == "done").sum())
    _say(f"{out}: {len(made)} trial{'s' * (len(made) > 1)}, {done} finished, from {uri}")
    return made


def _trials(place: _Place, *, whole: bool) -> pd.DataFrame:
    """Return the table of a command, made from the record first where there is one."""
    if place.uri is None:
        return files.read(place.table)
    return _make_table(place.uri, place.table, whole=whole)


def _make_whole_table(place: _Place) -> None:
    assert place.uri is not None
    _make_table(place.uri, place.table, whole=True)


def _make_tables(place: _Place) -> None:
    from analysis import paper_tables

    if place.uri is not None:
        _trials(place, whole=False)
    measured = paper_tables.Measurements(place.table, paper_tables.BENCH)
    written = paper_tables.write_all(measured, place.out)
    _say(f"{place.out}: {len(written)} files")


def _make_figures(place: _Place) -> None:
    trials = _trials(place, whole=False)
    with Console(stderr=True).status("drawing"):
        drawn = figures.draw_all(trials, place.out)
    for folder in sorted({file.parent for file in drawn}):
        count = sum(file.parent == folder and file.suffix == ".png" for file in drawn)
        _say(f"{folder}: {count} figures (PDF and PNG), captions.md")
    written = tables.write_all(trials, place.tables)
    _say(f"{place.tables}: {len(written)} files")


def _judge(place: _Place) -> None:
    from analysis import claims  # scipy's and statsmodels' tests: not for the other commands

    trials = _trials(place, whole=True)
    cards = claims.judge(trials, details.read(place.table))
    for card in cards:
        _say(card.title)
        for claim in card.claims:
            _say(f"  {claim.number:4}{claim.verdict:11}{claim.rule}")
    if not cards:
        _say(claims.NOTHING)
    written = claims.write(cards, place.out)
    _say(", ".join(str(file) for file in written))


def _report(place: _Place) -> None:
    from analysis import report

    trials, path = _trials(place, whole=True), place.table
    commands = path.with_suffix(".commands.txt")
    told = commands.read_text(encoding="utf-8") if commands.exists() else _typed(place)
    with Console(stderr=True).status("drawing"):
        written = report.write(report.Source(trials, details.read(path), path, told), place.out)
    _say(f"{written[0]}, {written[1]}: {len(written) - 2} figure files")


def _typed(place: _Place) -> str:
    """What was typed to make a record; nothing for a results file."""
    if place.uri is None:
        return ""
    from lorasweep.record.record import Record

    return "\n".join(Record(place.uri, place.out).commands())


def _find_rates(place: _Place) -> None:
    from analysis import rates

    trials = _trials(place, whole=False)
    found = rates.searches(trials)
    if not found:
        raise RequestError(["no search for a learning rate: one rank and alpha, several rates"])
    for model, task in found:
        for row in rates.tried(trials, model, task).itertuples():
            series = views.series_name((str(row.method), str(row.target)))
            picked = "  picked" if row.picked else ""
            _say(f"{series:22} {row.learning_rate:<8g} {row.accuracy:.4f}{picked}")
        _say(rates.words(trials, model))


def _say(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
