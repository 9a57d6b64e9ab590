"""Trials are told apart on the screen and in the record by all that varies."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from lorasweep import table_width
from lorasweep.costs import devices
from lorasweep.costs.seconds import Data
from lorasweep.planning import plan, show
from lorasweep.request.request import Request
from lorasweep.running import ending, summary
from lorasweep.search import objectives
from lorasweep.space import expand, grammar
from lorasweep.space.composition import Composer
from lorasweep.tasks.kinds.classification import metrics
from lorasweep.trial import naming
from lorasweep.trial.trial import Trial
from tests.conftest import ROOT, Sweep
from tests.e2e.conftest import rows_of

WORDS = ("model=tiny_bert", "task=reviews5")


def trials(composer: Composer, *words: str) -> list[Trial]:
    problems: list[str] = []
    read = grammar.read([*WORDS, *words], {}, composer, problems)
    found = expand.expand(read, composer, problems)
    assert problems == [], problems
    return found


def labels(found: Sequence[Trial]) -> list[str]:
    names = naming.varying(found)
    return [naming.label(trial, names) for trial in found]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("train.learning_rate=1e-3,5e-3",), ("train.learning_rate",)),
        (("lora.dropout=0,0.1", "train.batch_size=4,8"), ("lora.dropout", "train.batch_size")),
        (("target.roles=[query],[query,value]",), ("target.roles",)),
        (
            ("task.train_size=10,20", "task.subset_seed=0,1"),
            ("task.subset_seed", "task.train_size"),
        ),
        (("method=qlora", "method.quant=nf4,fp4"), ("method.quant",)),
        (("model.shape.hidden_size=32,64",), ("model.shape.hidden_size",)),
        (("target=all_linear,all_linear_head",), ()),
        (("lora.r=1,2", "lora.alpha=r,2r", "seed=0,1", "target=q,v"), ()),
        (("method=lora,qlora,fft",), ()),
        (("model=tiny_bert,tiny_llama",), ()),
    ],
)
def test_every_trial_of_a_sweep_has_a_label_of_its_own(
    composer: Composer, words: tuple[str, ...], names: tuple[str, ...]
) -> None:
    found = trials(composer, *words)
    assert naming.varying(found) == names
    assert len(set(labels(found))) == len(found) > 1


def test_what_means_nothing_to_a_trial_is_not_in_its_label(composer: Composer) -> None:
    found = trials(composer, "method=base,lora", "train.learning_rate=1e-3,5e-3")
    assert labels(found) == [
        "tiny_bert base",
        "tiny_bert lora all_linear r=8 α=16 learning_rate=0.001",
        "tiny_bert lora all_linear r=8 α=16 learning_rate=0.005",
    ]


def test_the_plan_has_a_column_for_what_varies(composer: Composer) -> None:
    found = trials(composer, "train.learning_rate=1e-3,5e-3", "seed=3,4")
    made = plan.plan(found, {}, devices.find("cpu"), lambda _: Data(3, 96, 48))
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    show.show(made, console)
    rows = [line for line in console.export_text().splitlines() if line.startswith("│")]
    assert len(set(rows)) == 4


def row(seed: int, rate: str, accuracy: float, state: str = "done") -> dict[str, object]:
    return {
        "model.name": "m", "method.name": "lora", "method.trains": "adapter", "lora.r": "8",
        "target.name": "all_linear", "target.head": "full", "lora.alpha": "16", "seed": str(seed),
        "train.learning_rate": rate, "eval/accuracy": accuracy, "eval/f1_macro": accuracy,
        "lorasweep.state": state,
    }  # fmt: skip


def test_means_over_seeds_come_first(composer: Composer) -> None:
    found = trials(composer, "train.learning_rate=1e-3,5e-3", "seed=0,1")
    aims = objectives.parse(["accuracy"], [])
    rows = [row(0, "0.001", 0.5), row(1, "0.001", 0.7), row(0, "0.005", 0.9)]
    rows.append(row(1, "0.005", 0.1, "failed"))
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    ending.tell(Request(found, aims), rows, [False] * 4, 4, console)
    said = console.export_text()
    assert said.index("Means over seeds") < said.index("Trials by accuracy")
    lines = [line.split("│")[1:-1] for line in said.splitlines() if line.startswith("│")]
    means = [[cell.strip() for cell in line][-4:-1] for line in lines[:2]]
    assert means == [["0.005", "1 of 2", "0.900"], ["0.001", "2", "0.600 ± 0.141"]]
    assert summary.means(rows[:1]) is None


@pytest.mark.parametrize(
    ("predicted", "collapsed"),
    [([0] * 6, True), ([2] * 6, True), ([0, 0, 0, 0, 0, 1], False), ([0, 0, 1, 1, 2, 2], False)],
)
def test_a_trial_that_predicts_one_class_is_told(predicted: list[int], collapsed: bool) -> None:
    scores = [[float(k == p) for k in range(3)] for p in predicted]
    assert summary.collapsed(metrics([0, 0, 0, 1, 1, 2], scores)) is collapsed


def test_a_table_fits_the_terminal_and_says_what_it_leaves_out() -> None:
    rows = [{**row(seed, rate, 0.1 * seed), "params/trainable": "1000"} for seed in (1, 2)
            for rate in ("0.001", "0.005")]  # fmt: skip
    for columns in (60, 80, 120):
        console = Console(
            width=columns,
            record=True,
            force_terminal=True,
            file=open("/dev/null", "w"),  # noqa: PTH123, SIM115
        )
        table = summary.results(rows, varying=["train.learning_rate"])
        table_width.show(console, table, ["trainable", "memory", "train s"])
        said = console.export_text()
        assert "…" not in said
        assert {"0.001", "0.005"} <= set(said.split())
    assert "in all rows: model m" in said or columns == 120


def test_runs_of_a_sweep_differ_in_name(sweep: Sweep, data: list[str], tmp_path: Path) -> None:
    import mlflow

    done = sweep(
        "-m", "model=tiny_bert", "train.learning_rate=1e-3,5e-3", "train.max_steps=2",
        "target=all_linear,all_linear_head", "train.max_length=16", *data, f"output_dir={tmp_path}",
        "engine.target=bench.noop.Noop",
        BENCH_LOG=str(tmp_path / "log"), PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "task local: 96 items to train, 48 to evaluate, 3 classes; always" in done.stdout
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    names = [client.get_run(r["run_id"]).info.run_name for r in rows_of(tmp_path)]
    assert len(set(names)) == 4
    assert "tiny_bert lora all_linear_head r=8 α=16 learning_rate=0.005" in names
    shown = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len({line.split("] ")[1].split(":")[0] for line in shown}) == 4
