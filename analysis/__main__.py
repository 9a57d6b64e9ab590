"""``python -m analysis``: from the record to the table, figures, claims and the report."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis import cells, figures, tables
from analysis import details as more
from analysis import table as tidy
from lorasweep.errors import DONE, LorasweepError, RequestError

RECORD = Path("outputs/mlflow.db")
TABLE = Path("results/trials.parquet")
OUT = {name: Path("results") / name for name in ("figures", "claims", "report", "rates")}
_WHAT = {
    "figures": "draw every figure and table",
    "claims": "judge the paper's claims: confirmed, refuted or undecided",
    "report": "write all of it as one page, HTML and Markdown",
    "rates": "say which learning rate a search found, for study=patil2025_tuned",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 2 (bad request) or 3 (record, disk)."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "table":
            _make_table(options.uri, options.out, whole=True)
        else:
            commands = {"figures": _make_figures, "claims": _judge, "report": _report}
            {**commands, "rates": _find_rates}[options.command](options)
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
    for name, what in _WHAT.items():
        command = commands.add_parser(name, help=what)
        command.add_argument(
            "--uri", help=f"record to read first (default: {RECORD} where it exists)"
        )
        command.add_argument("--table", type=Path, help=f"tidy table (default: {TABLE})")
        command.add_argument("--out", type=Path, default=OUT[name], help="default: %(default)s")
    return parser


def _make_table(uri: str, out: Path, *, whole: bool) -> pd.DataFrame:
    """Write the table, and with ``whole`` the answers and curves beside it."""
    made = tidy.build(uri)
    tidy.write(made, out)
    if whole:
        # A record that was moved without its artefacts has answers only in the earlier file.
        more.write(more.completed(more.build(uri, made), more.read(out), made), out)
    done = int((made["state"] == "done").sum())
    _say(f"{out}: {len(made)} trial{'s' * (len(made) > 1)}, {done} finished, from {uri}")
    return made


def _trials(options: argparse.Namespace, *, whole: bool) -> tuple[pd.DataFrame, Path]:
    """Return the table of a command, made from the record first where there is one."""
    uri, path = options.uri, options.table or TABLE
    # A table that is named is taken as it is: it may be all that is left of its record.
    if uri is None and options.table is None and RECORD.exists():
        uri = f"sqlite:///{RECORD}"
    return (_make_table(uri, path, whole=whole) if uri else tidy.read(path)), path


def _make_figures(options: argparse.Namespace) -> None:
    trials, _ = _trials(options, whole=False)
    with Console(stderr=True).status("drawing"):
        drawn = figures.draw_all(trials, options.out)
    for folder in sorted({file.parent for file in drawn}):
        count = sum(file.parent == folder and file.suffix == ".png" for file in drawn)
        _say(f"{folder}: {count} figures (PDF and PNG), captions.md")
    written = tables.write_all(trials, options.out.parent / "tables")
    _say(f"{options.out.parent / 'tables'}: {len(written)} files")


def _judge(options: argparse.Namespace) -> None:
    from analysis import claims  # scipy's and statsmodels' tests: not for the other commands

    trials, path = _trials(options, whole=True)
    cards = claims.judge(trials, more.read(path))
    for card in cards:
        _say(card.title)
        for claim in card.claims:
            _say(f"  {claim.number:4}{claim.verdict:11}{claim.rule}")
    written = claims.write(cards, options.out)
    _say(", ".join(str(file) for file in written))


def _report(options: argparse.Namespace) -> None:
    from analysis import report

    trials, path = _trials(options, whole=True)
    commands = path.with_suffix(".commands.txt")
    told = commands.read_text(encoding="utf-8") if commands.exists() else ""
    with Console(stderr=True).status("drawing"):
        written = report.write(report.Source(trials, more.read(path), path, told), options.out)
    _say(f"{written[0]}, {written[1]}: {len(written) - 2} figure files")


def _find_rates(options: argparse.Namespace) -> None:
    from analysis import rates

    trials, _ = _trials(options, whole=False)
    found = rates.searches(trials)
    if not found:
        raise RequestError(["no search for a learning rate: one rank and alpha, several rates"])
    for model, task in found:
        for row in rates.tried(trials, model, task).itertuples():
            series = cells.series_name((str(row.method), str(row.target)))
            picked = "  picked" if row.picked else ""
            _say(f"{series:22} {row.learning_rate:<8g} {row.accuracy:.4f}{picked}")
        _say(rates.words(trials, model))


def _say(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
