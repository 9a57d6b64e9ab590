"""The report: one page that says what was asked, what came out, how sure it is and what it cost.

Written once as Markdown with its figures beside it, and rendered from that as one HTML file that
needs nothing else. The same table gives the same bytes.
"""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import best, claims, curves, figures, pareto, rates, style, tables
from analysis.claims import Scorecard, verdicts
from analysis.names import escaped, image, stem
from analysis.paper_tables import (
    BENCH,
    Measurements,
    for_people,
    table1,
    table2,
    table3,
    table4,
)
from analysis.report import accounts, html
from analysis.slices import Slice, slices
from analysis.studies.patil2025 import claims as patil2025
from analysis.studies.patil2025 import small_alpha
from lorasweep.errors import RecordError, RequestError
from lorasweep.results.details import Details

TITLE = "LoRA and QLoRA against rank, alpha and layers: a published study, tested"
OWN_TITLE = "What the sweep gave"  # where no study of the paper is among the trials
_CONF = Path(__file__).resolve().parents[2] / "conf"
_PAPER_TABLES = {
    "Table 1. Time and memory of one trial": table1,
    "Table 2. Memory from the data type (GB)": table2,
    "Table 3. Memory at r = 8, all linear layers, term by term (GB)": table3,
    "Table 4. Trainable parameters, and their share in percent": table4,
}


@dataclass(frozen=True)
class Source:
    """What a report is made from.

    Attributes:
        table: one row a trial.
        details: answers and curves of those trials.
        path: of the table, as a reader would type it.
        commands: what was typed to make it, where that was kept.
    """

    table: pd.DataFrame
    details: Details
    path: Path
    commands: str = ""


def write(source: Source, folder: Path) -> list[Path]:
    """Write ``report.html``, ``report.md`` and the figures into a folder; return the files.

    Raises:
        RecordError: the disk refused.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        cards = claims.judge(source.table, source.details)
        text, drawn = _text(source, cards, folder)
        page = folder / "report.html"
        page.write_text(html.page(text, folder), encoding="utf-8")
        (folder / "report.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecordError(f"The report could not be written to {folder}: {error}.") from error
    return [page, folder / "report.md", *drawn]


def _text(source: Source, cards: Sequence[Scorecard], folder: Path) -> tuple[str, list[Path]]:
    pictures = _Pictures(folder)
    places = claims.places(source.table)
    readings = [part for place in places for part in slices(source.table, *place)]
    parts = [
        f"# {TITLE if cards else OWN_TITLE}",
        _question(source, cards),
        *_verdicts(cards),
        *_best(source, readings),
        "## Setting",
        *_setting(source, readings, paper=bool(cards)),
        *_rates(source, pictures),
        *(line for part in readings for line in _figures(part, source, pictures)),
        *(_tables(source) if cards else []),
        "## The plan against what happened",
        *_plan(source, paper=bool(cards)),
        "## What failed, and why",
        *_failures(source),
        *_evidence(cards),
        "## How to reproduce it",
        *_again(source),
    ]
    return "\n\n".join(part for part in parts if part) + "\n", pictures.written


class _Pictures:
    """Figures of the report, each drawn once into a folder beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.written = folder, list[Path]()

    def add(self, figure: Figure, name: str, about: str) -> str:
        """Save a figure and return the Markdown that shows it."""
        (png,) = style.save(figure, self.folder / "figures" / name, (".png",))
        self.written.append(png)
        return image(about, f"figures/{png.name}")


def _question(source: Source, cards: Sequence[Scorecard]) -> str:
    if not cards:
        return _of_ones_own(source.table)
    done = int((source.table["state"] == "done").sum())
    asked = (
        "Patil, Khot and Gudivada (Applied Sciences 15, 3087, 2025) fine-tuned LLaMA3-8B to rate "
        "Yelp reviews with one to five stars: LoRA or QLoRA, on the attention layers or on all "
        "linear layers, with ranks from 1 to 512 and α from r to 8r. They trained each combination "
        "once, with one seed, and drew ten conclusions. Do these hold when the seeds are several, "
        "and how sure can one be?"
    )
    first = cards[0]
    answer = " ".join(_counted(card) for card in cards)
    answer += f" The results hold {done} finished trials of {len(source.table)}."
    if first.part.model != patil2025.PAPER_MODEL:
        answer += (
            f" The model here is {escaped(first.part.model)} and not LLaMA3-8B: a verdict says "
            "whether the claim carries over to it, not whether the paper measured well."
        )
    return f"{asked}\n\n{answer}"


def _of_ones_own(table: pd.DataFrame) -> str:
    """What there is, where no question was asked beforehand."""
    places = table[["model", "task"]].drop_duplicates().itertuples(index=False, name=None)
    named = "; ".join(escaped(f"{model} on {task}") for model, task in places)
    told = f"The results hold {int((table['state'] == 'done').sum())} finished trials of "
    told += f"{len(table)}: {named}."
    if not claims.places(table) and not rates.compared(table):
        told += " None of them has an adapter on trained weights."
    return told


def _counted(card: Scorecard) -> str:
    """``On toy on stars, learning rate 0.001, of the ten claims: 1 confirmed, …``."""
    counts = Counter(claim.verdict for claim in card.claims)
    told = ", ".join(f"{counts[v]} {v}" for v in ("confirmed", "refuted", "undecided"))
    return f"On {escaped(card.title)}, of the ten claims: {told}."


def _verdicts(cards: Sequence[Scorecard]) -> list[str]:
    if not cards:
        return []
    rules = (
        f"A difference counts from {patil2025.COUNTS:g} of accuracy on. Every comparison is paired "
        "by seed, and by evaluation item where the answers were kept; its 95 % interval is over "
        "both. A claim is confirmed if every part of it is, refuted if any part is (Holm's "
        "correction over its parts), and else undecided. One seed alone is always undecided. The "
        "last column is the verdict by macro F1 over seeds alone, as a check. "
        "All rules and margins: docs/claims.md."
    )
    found = ["## Verdicts", rules]
    for card in cards:
        found += [f"### {escaped(card.title)}", tables.markdown(claims.summary(card))]
    return found


def _best(source: Source, parts: Sequence[Slice]) -> list[str]:
    """What a reader would choose."""
    found = ["## What would do", best.SAYS] if parts else []
    for part in parts:
        told = tables.markdown(best.table(part, source.details))
        found += [f"### {escaped(part.heading)}", told]
    return found


def _setting(source: Source, parts: Sequence[Slice], *, paper: bool) -> list[str]:
    table = source.table
    commits = sorted(table["git_commit"].dropna().unique())
    told = f"Made by lorasweep at {', '.join(c[:12] for c in commits)}." if commits else ""
    if not parts:
        return [told]
    tuned = [part for part in parts if part.name == "tuned"]
    notes = [
        f"Tuned means: {escaped(part.title)}. " + (_TUNED if part.chosen_here else _SEARCHED)
        for part in tuned
    ]
    frame = accounts.settings(parts, paper=paper)
    return [tables.markdown(frame), *notes, told]


def _rates(source: Source, pictures: _Pictures) -> list[str]:
    """The search for a learning rate, where there was one."""
    found = []
    for model, task in rates.compared(source.table):
        told = rates.caption(source.table, model, task)
        name = stem(model, task, "learning_rates")
        found += [f"## Learning rates: {escaped(f'{model} on {task}')}"]
        found += [pictures.add(rates.plot(source.table, model, task), name, "learning rates"), told]
    return found


_SEARCHED = (
    "Each was found by a search of its own (below); ranks and alphas are compared within one rate."
)
_TUNED = (
    "Each was chosen by its mean accuracy over all cells on the items it is judged by, so the "
    "level is a little too good: ranks and alphas are compared within one rate, and claims that "
    "compare methods or layers are not judged."
)


def _figures(part: Slice, source: Source, pictures: _Pictures) -> list[str]:
    where = part.table, part.model, part.task
    prefix = stem(part.model, part.task, part.name)
    found = [f"## Figures: {escaped(part.heading)}"]
    for name, (draw, tell) in figures.FIGURES.items():
        found += _shown(lambda d=draw: d(*where), pictures, f"{prefix}_{name}", tell(*where))
    below = small_alpha.table(part, source.details)
    if len(below):
        found += ["### α below the rank, in numbers", tables.markdown(below)]
    found += ["### Accuracy against cost"]
    found += _shown(
        lambda: pareto.plot_pareto(*where), pictures, f"{prefix}_pareto", pareto.caption(*where)
    )
    found += ["### How the trials learnt"]
    known = source.details.curves
    for metric in curves.NAMES:
        if metric != "train/loss" and not (known["metric"] == metric).any():
            continue
        told = curves.caption(part.table, known, part.model, part.task, metric)
        name = f"{prefix}_curves_{metric.replace('/', '_')}"
        found += _shown(
            lambda m=metric: curves.plot_curves(part.table, known, part.model, part.task, m),
            *(pictures, name, told),
        )
    return found


def _shown(draw, pictures: _Pictures, name: str, caption: str) -> list[str]:  # type: ignore[no-untyped-def]
    """A picture and its caption, or the caption alone where there is nothing to draw."""
    about = caption.replace("**", "").split(". ")[0]
    try:
        return [pictures.add(draw(), name, about), caption]
    except RequestError:
        return [caption]


def _tables(source: Source) -> list[str]:
    measured = Measurements(source.path, BENCH)
    found = [
        "## The paper's tables beside ours",
        "*paper* is what it printed, *formula* what its formula gives, *ours* what the plan says "
        "of what is really held, on an A100-40GB; *measured* is from trials that ran alone on the "
        "device named above, or from bench/.",
    ]
    if measured.arms.place:
        found[1] += f" The cost study ran on {escaped(measured.arms.place['device'])}."
    for title, make in _PAPER_TABLES.items():
        found += [f"### {title}", tables.markdown(for_people(make(measured)))]
    return [*found, "### Table 5. The base model", tables.markdown(tables.table5(source.table))]


def _plan(source: Source, *, paper: bool) -> list[str]:
    frame = accounts.costs(source.table)
    packed = int(frame["packed"].sum()) if len(frame) else 0
    notes = [accounts.totals(source.table, frame, paper=paper)]
    if packed:
        notes.append(
            f"{packed} trials were packed: each has a share of its pack's time, and memory is the "
            "pack's. Time and memory of methods are compared over trials that ran alone only."
        )
    rounded = frame.copy()
    for column in rounded.select_dtypes("number").columns:
        digits = 0 if column in ("trials", "packed") else 2
        rounded[column] = [_number(value, digits) for value in rounded[column]]
    return [*notes, tables.markdown(rounded)] if len(frame) else notes


def _failures(source: Source) -> list[str]:
    lost, collapsed = accounts.failures(source.table), _collapsed(source)
    if lost.empty:
        return [f"Nothing: all {len(source.table)} trials finished.", *collapsed]
    counts = lost.groupby("state")["trials"].sum()
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    shown = lost.head(60)
    more = f"The first {len(shown)} of {len(lost)} rows:" if len(lost) > len(shown) else ""
    head = f"{counts.sum()} of {len(source.table)}: {told}."
    return [head, more, tables.markdown(shown), *collapsed]


def _collapsed(source: Source) -> list[str]:
    found = accounts.collapsed(source.table)
    if found.empty:
        return []
    return [
        "These finished and learnt little: their accuracy is nearer to the untrained base's than "
        "to the best mean of their method and target.",
        tables.markdown(found),
    ]


def _evidence(cards: Sequence[Scorecard]) -> list[str]:
    if not cards:
        return []
    found = [
        "## The evidence, part by part",
        "Differences are of accuracy (0 to 1). *p* is that of the contrary of what the claim says, "
        "adjusted by Holm over the parts; *p refuted* that of the contrary of its refutation. "
        "Parts in brackets inform and do not count.",
    ]
    for card in cards:
        for claim in card.claims:
            found += [
                f"### {claim.number}, {escaped(card.title)}",
                f"{claim.says} **{claim.verdict}**",
                f"Read as: {claim.reading}.",
                tables.markdown(_parts(claim)),
            ]
    return found


def _parts(claim: verdicts.Claim) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "part": part.what if part.counts else f"({part.what})",
                "effect [95 %]": claims.evidence_text(part),
                "p": _number(part.p_confirm_holm, 4),
                "p refuted": _number(part.p_refute_holm, 4),
                "verdict": f"**{part.verdict}**",
                "rule": part.rule,
                "why": part.why,
            }
            for part in claim.parts
        ]
    )


def _again(source: Source) -> list[str]:
    file = shlex.quote(str(source.path))
    found = [f"From the results file, on any computer:\n\n    make report TABLE={file}"]
    if source.commands:
        lines = "\n".join(f"    {line}" for line in source.commands.strip().splitlines())
        return [*found, f"The trials themselves:\n\n{lines}"]
    typed, others = _studies(source.table)
    where = "Their settings, whole, are in the column `config` of the table."
    if others:
        rest = "the others" if typed else "the trials"
        where = f"What was typed for {rest} is not known. {where}"
    if typed:
        found.append("The trials, with settings that differ from those of their study:")
        found.append("\n".join(f"    {line}" for line in typed))
    return [*found, where]


def _studies(table: pd.DataFrame) -> tuple[list[str], int]:
    """Commands of the studies in sweeps/, and how many groups of trials are from elsewhere."""
    lines, others = list[str](), 0
    known = table[["study", "model", "task"]].drop_duplicates()
    for study, model, task in known.itertuples(index=False, name=None):
        words = {"study": study, "model": model, "task": task}
        files = [_CONF / group / f"{name}.yaml" for group, name in words.items()]
        # files of one's own are not named in the table
        if task == "local" or not all(file.is_file() for file in files):
            others += 1
            continue
        rows = table[(table["study"] == study) & (table["model"] == model)]
        seeds = ",".join(f"{seed:g}" for seed in sorted(rows["seed"].unique()))
        told = " ".join(f"{group}={name}" for group, name in words.items())
        lines.append(f"python sweep.py -m {told} seed={seeds}")
    return lines, others


def _number(value: float, digits: int) -> str:
    return "–" if value != value else f"{value:,.{digits}f}"
