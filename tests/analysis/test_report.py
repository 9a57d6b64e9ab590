import html
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from analysis import best, curves, figures, pareto, report, slices, views
from analysis.report import accounts
from lorasweep.errors import RequestError
from lorasweep.results import details, files
from lorasweep.results import tidy as table

Run = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / "docs/runs/default_sweep.parquet"


def some(run: Callable[..., Run], **changes: Any) -> pd.DataFrame:
    """A few trials of all series, two seeds, one failure whose words could break a table."""
    runs = [run("base", seed=seed) for seed in (0, 1)]
    for method in ("lora", "qlora"):
        for target in ("all_linear", "attention"):
            runs += [run(method, target, r, seed=s, **changes) for r in (1, 8) for s in (0, 1)]
    said = "CUDA | <script>alert(1)</script> in /home/someone/x.py\nand a traceback"
    runs.append(run(r=512, state="oom", **{"lorasweep.error": said}))
    return table.tidy(runs)


def curves_of(trials: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (key, "train/loss", float(step), 1.6 - step / 100)
            for key in trials["key"]
            for step in (10, 20, 30)
        ],
        columns=list(details.CURVES),
    )


def write(trials: pd.DataFrame, folder: Path, told: details.Details | None = None) -> str:
    file = folder.with_suffix(".parquet")
    files.write(trials, file)
    source = report.Source(trials, told or details.empty(), file.relative_to(folder.parent))
    return report.write(source, folder)[0].read_text()


def test_the_page_needs_nothing_else_and_is_the_same_twice(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    trials = some(run)
    told = details.Details(details.empty().items, curves_of(trials))
    page = write(trials, tmp_path / "a", told)
    first = {f.name: f.read_bytes() for f in sorted((tmp_path / "a").rglob("*")) if f.is_file()}
    files.write(trials, tmp_path / "a.parquet")
    assert write(trials, tmp_path / "a", told) == page
    again = {f.name: f.read_bytes() for f in sorted((tmp_path / "a").rglob("*")) if f.is_file()}
    assert first == again
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources
    assert all(one.startswith(("data:image/png;base64", "#s")) for one in sources)
    assert "<script" not in page
    assert "http" not in re.sub(r'base64,[^"]*', "", page)
    for heading in ("Verdicts", "Setting", "The plan against", "What failed", "How to reproduce"):
        assert heading in page
    markdown = (tmp_path / "a/report.md").read_text()
    shown = re.findall(r"\]\((figures/[^)]*)\)", markdown)
    assert len(shown) == len(set(shown)) >= 8
    assert all((tmp_path / "a" / name).exists() for name in shown)
    assert page.count("<img ") == len(shown)
    assert "1 oom" in markdown
    assert "/home/someone" not in markdown


NAMES = [
    "my étude x[1] (a) 50% #1",
    "org/`a|b` <b> ](x) *b* _c_ a&amp;b",
    "$x_1 $\\frac$ it's ?",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_shown_as_it_is_and_keeps_its_pictures(
    run: Callable[..., Run], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"model.name": name, "task.name": name.replace("/", "-")}
    runs = [run(method, r=r, **ours) for method in ("lora", "qlora") for r in (1, 2)]
    trials = table.tidy(runs)
    page = write(trials, tmp_path / "a")
    drawn = sorted(f.name for f in (tmp_path / "a/figures").iterdir())
    assert len(drawn) >= 3
    told = (tmp_path / "a/report.md").read_text()
    shown = _pictures(told)
    assert sorted(Path(one).name for one in shown) == drawn
    assert page.count('<img src="data:image/png;base64,') == len(drawn)
    assert f"{name} on {ours['task.name']}" in html.unescape(page)

    monkeypatch.setattr(figures, "FIGURES", {"overview": figures.FIGURES["overview"]})
    *_, captions = figures.draw_all(trials, tmp_path / "figures")
    assert [captions.parent / one for one in _pictures(captions.read_text())] == [
        captions.parent / "overview.png"
    ]
    assert captions.parent.parent == tmp_path / "figures"


def _pictures(markdown: str) -> list[str]:
    """Files of the pictures that a page in Markdown shows."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    inline = [child for token in tokens for child in token.children or []]
    return [unquote(str(one.attrs["src"])) for one in inline if one.type == "image"]


def test_a_report_of_almost_nothing(run: Callable[..., Run], tmp_path: Path) -> None:
    page = write(table.tidy([run("base")]), tmp_path / "base")
    assert "None of them has an adapter on trained weights." in page
    page = write(table.tidy([run(state="failed")]), tmp_path / "failed")
    assert "1 failed" in page


def test_the_default_sweeps_results_make_a_report_without_torch_or_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from analysis.__main__ import main\n"
        f"for name in ('claims', 'report'):\n"
        f"    main([name, '--table', {str(DEFAULT)!r}, '--out', {str(tmp_path)!r} + '/' + name])\n"
        "print({'torch', 'transformers', 'mlflow', 'peft', 'optuna'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "set()"
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("<img ") >= 8
    # it is no study of the paper's
    assert 'class="verdict' not in page
    assert "Patil" not in page
    assert (tmp_path / "claims/claims.md").read_text().startswith("There is nothing to judge")


def test_a_sweep_of_ones_own_is_told_truly(run: Callable[..., Run], tmp_path: Path) -> None:
    own = {
        "study": "sweep", "task.name": "local", "task.train_size": "None",
        "task.eval_size": "None", "train.max_steps": "40",
    }  # fmt: skip
    runs = [run(r=r, seed=seed, **own) for r in (1, 2, 8) for seed in (0, 1, 2)]
    page = write(table.tidy(runs), tmp_path / "a")
    told = (tmp_path / "a/report.md").read_text()
    assert "40 steps on batches drawn from every training example" in told
    assert "| epochs | 40 steps |" in told
    assert "| training examples | all |" in told
    assert "| evaluation examples | all |" in told
    assert ", epochs 1" not in told
    # nothing that cannot run, and no paper's claims
    assert "sweep.py" not in told
    assert "What was typed for the trials is not known." in told
    assert "Verdicts" not in told
    assert "paper" not in told
    assert page.count("<img ") >= 4

    typed = "python sweep.py -m 'task.train_file=my é.csv'"
    file = tmp_path / "my table.parquet"
    few = table.tidy(runs[:1])
    report.write(report.Source(few, details.empty(), file, typed), tmp_path / "b")
    told = (tmp_path / "b/report.md").read_text()
    assert f"    {typed}\n" in told
    assert f"    make report TABLE='{file}'" in told


def test_how_to_reproduce_a_study_names_its_settings(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    known = {"model.name": "minilm", "task.name": "reviews5"}
    runs = [run(seed=seed, **known) for seed in (0, 1)]
    write(table.tidy([*runs, run(study="mine", seed=2, **known)]), tmp_path / "a")
    told = (tmp_path / "a/report.md").read_text()
    line = "python sweep.py -m study=patil2025 model=minilm task=reviews5 seed=0,1"
    assert f"    {line}\n\nWhat was typed for the others is not known." in told


def test_the_front_is_what_nothing_cheaper_beats() -> None:
    assert pareto.front([3, 1, 2, 2, 5, np.nan], [0.7, 0.5, 0.4, 0.6, 0.7, 0.9]) == [1, 3, 0]


def test_packed_trials_are_priced_by_the_plan_or_not_at_all(run: Callable[..., Run]) -> None:
    alone = views.study_view(some(run), "toy", "stars")
    frame, prices = pareto.priced(alone)
    assert not any(price.predicted for price in prices)
    assert frame["memory"].notna().all()
    shared = {"time/pack_share_s": 2.0, "lorasweep.engine": "packed"}
    packed = some(run, **shared)
    frame, prices = pareto.priced(views.study_view(packed, "toy", "stars"))
    assert all(price.predicted for price in prices)
    assert frame["memory"].isna().all()  # a model whose shape the settings do not tell
    with pytest.raises(RequestError):
        pareto.plot_pareto(packed, "toy", "stars")


def test_no_curves_is_said(run: Callable[..., Run]) -> None:
    trials = some(run)
    none = details.empty().curves
    with pytest.raises(RequestError):
        curves.plot_curves(trials, none, "toy", "stars")
    assert "not drawn" in curves.caption(trials, none, "toy", "stars")
    axes = curves.plot_curves(trials, curves_of(trials), "toy", "stars").axes
    assert [line.get_label() for line in axes[0].get_lines() if line.get_linewidth() > 1] == [
        "1",
        "8",
    ]


def test_shares_of_packs_add_up_and_are_not_compared(run: Callable[..., Run]) -> None:
    shared = {"time/pack_share_s": 30.0, "time/train_s": float("nan")}
    trials = some(run, **shared)
    told = accounts.costs(trials)
    assert set(told.loc[told["method"] == "lora", "packed"]) == {8}
    assert told.loc[told["method"] == "lora", "spent min"].item() == pytest.approx(4.0)
    assert told.loc[told["method"] == "lora", "measured min a trial"].isna().all()
    assert accounts.failures(trials)["error"].tolist() == [
        "CUDA | <script>alert(1)</script> in …/x.py"
    ]


def test_what_finished_and_learnt_little_is_told(run: Callable[..., Run]) -> None:
    scores = {(1, 0): 0.6, (1, 1): 0.58, (8, 0): 0.61, (8, 1): 0.21, (64, 0): 0.2, (64, 1): 0.3}
    runs = [run("base", **{"eval/accuracy": 0.2})]
    runs += [run(r=r, seed=s, **{"eval/accuracy": score}) for (r, s), score in scores.items()]
    (found,) = accounts.collapsed(table.tidy(runs)).to_dict("records")
    assert found["trials"] == "3 of 6"
    assert found["accuracy"] == "0.200 … 0.300"
    assert found["where"] == "r 8, α 16 (1 of 2 seeds); r 64, α 128"
    short = run(r=64, seed=2, **{"eval/accuracy": 0.25, "task.train_size": "80"})
    assert len(accounts.collapsed(table.tidy([*runs, short]))) == 1, "less to learn from"
    assert accounts.collapsed(table.tidy(runs[1:])).empty, "no untrained base to compare with"


def test_one_after_another_is_told_from_steps_of_trials_alone(run: Callable[..., Run]) -> None:
    packed = {
        "lorasweep.engine": "packed",
        "time/pack_share_s": 6.0,
        "time/train_s": float("nan"),
        "train/steps": 2000.0,
    }
    alone = {
        "task.train_size": "80",
        "task.eval_size": "100",
        "train/steps": 10.0,
        "time/train_s": 5.0,
        "time/eval_s": 2.0,
        "time/load_s": 3.0,
        "time/total_s": 10.0,
    }
    runs = [run("lora", "attention", r, **packed) for r in (1, 2)]
    runs.append(run("lora", "attention", 4, **alone))
    (told,) = accounts.costs(table.tidy(runs)).to_dict("records")
    # each 3 s to load, 2000 steps of 0.5 s and 1000 items of 0.02 s; and the one that was alone
    assert told["one after another, min"] == pytest.approx((2 * 1023 + 10) / 60)
    assert told["from"] == "steps measured alone"


def test_the_best_and_the_least_that_does(run: Callable[..., Run]) -> None:
    scores = {1: 0.55, 2: 0.592, 8: 0.6, 64: 0.58, 512: 0.2}
    runs = [
        run(r=r, seed=seed, **{"eval/accuracy": score + seed / 1000, "params/trainable": 100.0 * r})
        for r, score in scores.items()
        for seed in (0, 1)
    ]
    runs.append(run(r=256, **{"eval/accuracy": 0.7}))  # of one seed: not looked at
    tidy = table.tidy(runs)
    (part,) = slices.slices(tidy, "toy", "stars")
    (found,) = best.table(part, details.empty()).to_dict("records")
    assert (found["best"], found["least"]) == ("r 8, α 16", "r 2, α 4")
    assert (found["of"], found["accuracy"]) == (5, "0.6005")
    assert found["its weights"] == "200"
    assert found["less the best"].startswith("−0.0080 [")


def test_alpha_below_the_rank_is_set_beside_twice_the_rank(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    runs = [run("lora", "attention", 8, alpha, seed=s) for alpha in (2, 8, 16) for s in (0, 1, 2)]
    runs += [run("lora", "attention", 4, seed=s) for s in (0, 1, 2)]
    write(table.tidy(runs), tmp_path / "a")
    told = (tmp_path / "a/report.md").read_text()
    assert (tmp_path / "a/figures/toy_stars_alpha_below_rank.png").stat().st_size > 0
    rows = [line for line in told.split("### α below the rank")[1].splitlines() if "LoRA" in line]
    assert [line.split("|")[4].strip() for line in rows[:3]] == ["2", "8", "16"]
    assert "−0.0" in rows[0]
    assert rows[2].rstrip(" |").endswith("–")
