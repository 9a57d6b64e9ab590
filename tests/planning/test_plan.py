"""The plan: what would run, what fits, what would help, and that it comes at once."""

import json

import pytest
from rich.console import Console

from lorasweep.costs import devices, memory
from lorasweep.costs.devices import Device
from lorasweep.costs.seconds import Data
from lorasweep.planning import plan, show
from lorasweep.space import expand, grammar
from lorasweep.space.composition import Composer
from lorasweep.trial.trial import Trial

STUDY = ("model=llama3_8b", "task=yelp5", "train=patil2025", "lora.dropout=0.05")
GIB = 2**30


def trials(composer: Composer, *words: str) -> list[Trial]:
    problems: list[str] = []
    found = expand.expand(grammar.read(words, {}, composer, problems), composer, problems)
    assert problems == []
    return found


def yelp(trial: Trial) -> Data:
    return Data(5, trial["task.train_size"], trial["task.eval_size"])


def planned(
    composer: Composer, device: str, *words: str, states: dict[str, str] | None = None
) -> plan.Plan:
    found = trials(composer, *STUDY, *words)
    return plan.plan(found, states or {}, devices.find(device), yelp)


def shown(found: plan.Plan) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    show.show(found, console)
    return console.export_text()


def test_states_say_what_would_run(composer: Composer) -> None:
    found = trials(composer, *STUDY, "lora.r=1,2,4,8,16,32,64")
    recorded = ["done", "diverged", "shared", "failed", "oom", "stopped"]
    states = dict(zip([t.key for t in found], recorded, strict=False))
    made = plan.plan(found, states, devices.find("h100"), yelp)
    assert [p.state for p in made.trials] == [
        "done", "done", "shared", "failed", "failed", "failed", "new",
    ]  # fmt: skip
    assert [p.runs for p in made.trials] == [False] * 3 + [True] * 4
    summary = made.summary
    assert {k: summary[k] for k in ("trials", "new", "done", "failed", "shared", "unfit")} == {
        "trials": 7, "new": 1, "done": 2, "failed": 3, "shared": 1, "unfit": 0,
    }  # fmt: skip
    running = sum(p.seconds.total for p in made.trials if p.runs)
    assert summary["gpu_hours"] == pytest.approx(running / 3600)


def test_why_trials_are_left_to_the_reference_is_said_without_a_pack_too(
    composer: Composer,
) -> None:
    words = ("train.checkpointing=true", "lora.r=8,16", "device=a100_40gb")
    packed = planned(composer, "a100_40gb", "engine=packed", *words)
    said = "2 alone: train.checkpointing=true: packs keep their activations."
    assert show.pack_sentences(packed) == [said]
    assert show.pack_sentences(planned(composer, "a100_40gb", "engine=trainer", *words)) == []
    on_cpu = planned(composer, "cpu", "train.checkpointing=true", "device=cpu")
    assert show.pack_sentences(on_cpu) == []


def test_disk_is_that_of_adapters_and_predictions(composer: Composer) -> None:
    made = planned(composer, "h100", "lora.r=8", "method=lora,base")
    adapter = 4 * 20_992_000
    rows = 2 * 10_000 * (4 * 5 + 24)
    assert made.disk == adapter + rows
    kept = planned(composer, "h100", "lora.r=8", "engine.save_adapter=false")
    assert kept.disk == rows / 2


def test_json_for_machines(composer: Composer) -> None:
    made = planned(composer, "h100", "lora.r=8,512", "target=attention")
    found = json.loads(show.to_json(made))
    assert set(found) == {"trials", "packs", "summary"}
    keys = [p.trial.key for p in made.trials]
    assert found["packs"] == [[key] for key in keys]
    assert [t["key"] for t in found["trials"]] == keys
    assert [t["trainable"] for t in found["trials"]] == [6_836_224, 436_228_096]
    for entry in found["trials"]:
        assert set(entry) == {
            "key", "state", "config", "trainable", "total", "peak_gib", "seconds", "fits",
        }  # fmt: skip
        assert entry["config"]["model.name"] == "llama3_8b"
        assert entry["fits"] is True
        assert entry["state"] == "new"
    assert found["summary"]["device"] == "h100"


def test_json_says_of_each_trial_what_it_is(composer: Composer) -> None:
    words = ("method=base,lora", "lora.alpha=8,8.0,r", "seed=0,1", "train.learning_rate=1e-4,1")
    made = planned(composer, "h100", *words)
    rows = list(show.json_rows(made))
    assert rows == [json.dumps(json.loads(row)) for row in rows]
    for row, p in zip(rows, made.trials, strict=True):
        read = json.loads(row)
        assert repr(read["config"]) == repr(p.trial.config)
        assert (read["key"], read["trainable"]) == (p.trial.key, p.parameters.trainable)


# ---------------------------------------------------------------- what would help


@pytest.mark.parametrize(
    ("device", "words", "change"),
    [
        ("16gb", ["method=qlora", "train.batch_size=64"], ("train.checkpointing=true",)),
        (
            "16gb",
            ["method=qlora", "train.batch_size=16", "train.checkpointing=true", "lora.r=256"],
            ("train.optimizer=paged_adamw_8bit",),
        ),
        (
            "24gb",
            ["method=lora", "train.batch_size=256", "train.checkpointing=true"],
            ("train.batch_size=64", "train.accumulation=4"),
        ),
        ("12gb", ["method=lora", "train.checkpointing=true"], ("method=qlora",)),
        ("24gb", ["method=fft", "train.checkpointing=true"], ("method=lora",)),
        ("24gb", ["method=base", "train.eval_batch_size=4096"], ("train.eval_batch_size=512",)),
        ("2gb", ["method=qlora"], ()),
        # what costs no result, together and no smaller than needed, before the data is cut
        (
            "48gb",
            ["method=lora", "train.max_length=4096"],
            ("train.eval_batch_size=32", "train.checkpointing=true"),
        ),
        (
            "16gb",
            ["method=qlora", "train.max_length=4096"],
            (
                "train.eval_batch_size=16",
                "train.checkpointing=true",
                "train.batch_size=2",
                "train.accumulation=4",
            ),
        ),
    ],
)
def test_the_smallest_change_that_makes_a_trial_fit(
    composer: Composer, device: str, words: list[str], change: tuple[str, ...]
) -> None:
    made = planned(composer, device, *words)
    assert not made.trials[0].fits
    assert made.remedies == {change: (made.trials[0].trial.key,)}


def test_following_the_advice_makes_the_trial_fit(composer: Composer) -> None:
    """One change is not always enough, and nothing needless is advised."""
    made = planned(composer, "8gb", "method=fft", "train.batch_size=64", "train.max_length=512")
    (change,) = made.remedies
    assert len(change) > 1
    words = ["method=fft", "train.batch_size=64", "train.max_length=512", *change]
    last = {word.partition("=")[0]: word for word in words}
    assert planned(composer, "8gb", *last.values()).trials[0].fits
    for less in change:
        rest = {name: word for name, word in last.items() if word != less}
        if not {"train.batch_size", "train.accumulation"} & {less.partition("=")[0]}:
            again = [*rest.values(), *([words[0]] if less.startswith("method") else [])]
            assert not planned(composer, "8gb", *again).trials[0].fits


def test_trials_that_are_done_need_not_fit(composer: Composer) -> None:
    (trial,) = trials(composer, *STUDY, "method=fft")
    made = planned(composer, "24gb", "method=fft", states={trial.key: "done"})
    assert made.unfit == ()
    assert made.remedies == {}


def test_fit_counts_the_pool_and_cuda(composer: Composer) -> None:
    (trial,) = trials(composer, *STUDY, "method=lora")
    peak = memory.estimate(trial, 5)
    assert peak.footprint > peak.allocated + 0.5 * GIB
    between = Device("between", "cuda", (peak.allocated + peak.footprint) / 2, 1e15, 1e14, 1e12)
    assert not plan.plan([trial], {}, between, yelp).trials[0].fits


# ---------------------------------------------------------------- for people


def test_the_table_of_study_p(composer: Composer) -> None:
    words = ("method=lora,qlora", "target=attention,all_linear_head")
    ranks = planned(composer, "a100_40gb", *words, "lora.r=1,2,4,...,512")
    text = shown(ranks)
    assert "Plan on a100_40gb, 39.4 GiB" in text
    assert "1,344,297,472" in text
    assert "15.1875" in text
    assert len(ranks.unfit) == 1
    assert "1 trial does not fit; train.checkpointing=true would help." in text
    assert "40 trials (40 new) on a100_40gb" in show.short(ranks)


def test_a_long_sweep_is_shown_by_groups(composer: Composer) -> None:
    seeds = ",".join(str(seed) for seed in range(20))
    words = ("method=lora,fft", "lora.r=1,2,...,8", f"seed={seeds}")
    made = planned(composer, "h200", *words)
    assert len(made.trials) == 20 * 4 + 20
    text = shown(made)
    assert "80 new" in text
    assert "20 new" in text
    assert text.count("llama3_8b") == 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(48, "48 s"), (720, "12 min"), (12_240, "3.4 h"), (99.6, "100 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert show.duration(seconds) == text
