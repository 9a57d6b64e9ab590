"""A trial in a pack is the trial alone: its neighbours leave no trace."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import peft
import pytest
import torch
from safetensors.torch import load_file

from lorasweep.engines.packed import noise, steps
from lorasweep.engines.packed.adapter import Template
from lorasweep.engines.packed.bank import MATRICES
from lorasweep.engines.packed.base import Base
from lorasweep.engines.packed.compat import base_of, problems
from lorasweep.engines.packed.engine import Pack, PackedEngine
from lorasweep.engines.packed.evaluation import evaluate
from lorasweep.engines.packed.layout import Pass
from lorasweep.models import convert, source
from lorasweep.record.record import Record
from lorasweep.running.progress import Screen
from lorasweep.space import expand, grammar
from lorasweep.space.composition import Composer
from lorasweep.trial import naming
from lorasweep.trial.trial import Trial
from tests.engines.conftest import Make, Watch, place, run

# The greatest difference that sharing products made in the cases below was 2e-6.
FAST = {"rtol": 1e-3, "atol": 2e-5}


def weights(trial: Trial, root: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(place(root)(trial) / "adapter" / "adapter_model.safetensors"))


def mixed(make: Make, model: str, exactness: str) -> tuple[list[Trial], list[Trial], Trial]:
    """Eight trials with little in common: seven, one that joins late, and which one fails."""
    of = [f"model={model}", "engine=packed", f"engine.exactness={exactness}", "train.epochs=1"]
    settings: list[list[str]] = [
        ["lora.r=1", "lora.alpha=4", "train.learning_rate=1e-3", "train.schedule=cosine"],
        ["lora.r=2", "target=attention", "train.batch_size=5", "seed=1"],
        ["lora.r=16", "target=qv", "lora.dropout=0.1", "seed=2", "train.order=random"],
        ["lora.r=64", "target=all_linear_head", "lora.dropout=0.3", "train.batch_size=6"],
        ["train.learning_rate=1e30", "seed=4"],
        ["train.max_steps=3", "seed=5", "train.weight_decay=0.1", "train.warmup=0.5"],
        ["train.batch_size=5", "train.accumulation=2", "seed=6", "train.eval_every=4"],
    ]
    trials = [make(*of, *one)[0] for one in settings]
    late = make(*of, "seed=7", "lora.r=3", "train.epochs=1.5")
    return trials, late, trials[4]


@pytest.mark.parametrize("exactness", ["strict", "fast"])
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_bert"])
def test_each_trial_of_a_mixed_pack_ends_as_alone(
    model: str, exactness: str, make: Make, tmp_path: Path
) -> None:
    trials, late, wild = mixed(make, model, exactness)
    together = run(PackedEngine(), trials, tmp_path / "pack", Watch(more=late))
    engine, alone = PackedEngine(), Watch()
    for trial in [*trials, *late]:
        run(engine, [trial], tmp_path / "alone", alone)
    states = {key: result.state for key, result in together.results.items()}
    assert states == {t.key: "diverged" if t is wild else "done" for t in [*trials, *late]}
    for trial in [*trials, *late]:
        a, b = alone.results[trial.key], together.results[trial.key]
        assert a.state == b.state
        if exactness == "strict":
            assert repr(a.curve) == repr(b.curve), naming.label(trial)  # repr: nan is equal to nan
        if trial is wild:
            continue
        first, second = weights(trial, tmp_path / "alone"), weights(trial, tmp_path / "pack")
        assert first.keys() == second.keys()
        for name in first:
            if exactness == "strict":
                assert torch.equal(first[name], second[name]), (naming.label(trial), name)
            else:
                torch.testing.assert_close(first[name], second[name], **FAST)


def test_the_late_one_joins_while_others_train(make: Make, tmp_path: Path) -> None:
    short, long, late = make(
        "model=tiny_bert", "engine=packed", "sampler.zip=[train.max_steps,seed]",
        "train.max_steps=2,12,5", "seed=0,1,2",
    )  # fmt: skip
    watch = run(PackedEngine(), [short, long], tmp_path, Watch(more=[late]))
    told = [key for key, _ in watch.steps]
    assert told.index(late.key) > told.index(long.key)
    assert told[-1] == long.key, "the long one trains past the end of the late one"


def test_an_oom_splits_the_pack_and_loses_nothing(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = make("model=tiny_bert", "engine=packed", "train.max_steps=6", "seed=0,1,2,3,4")
    whole = run(PackedEngine(), trials, tmp_path / "whole")
    passes, scores = [0], Base.scores

    def small(self: Base, now: Pass) -> list[torch.Tensor]:
        passes[0] += 1
        if len(now.lanes) > 2 and passes[0] > 3:  # memory runs out in the fourth step
            scores(self, now)
            raise torch.OutOfMemoryError("too many")
        return scores(self, now)

    monkeypatch.setattr(Base, "scores", small)
    split = run(PackedEngine(), trials, tmp_path / "split")
    for trial in trials:
        assert split.results[trial.key].state == "done"
        assert split.results[trial.key].metrics["train/steps"] == 6
        notes = split.results[trial.key].environment["notes"]
        assert "5 trials did not fit the device together; some waited for the others" in notes
        for name, expected in weights(trial, tmp_path / "whole").items():
            torch.testing.assert_close(weights(trial, tmp_path / "split")[name], expected, **FAST)
    assert whole.results.keys() == split.results.keys()


def test_an_adapter_that_cannot_be_drawn_ends_its_trial_alone(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Template.draw

    def drawn(self: Template, rank: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        if rank == 3:
            raise MemoryError("no room for rank 3")
        return draw(self, rank, generator)

    monkeypatch.setattr(Template, "draw", drawn)
    trials = make("model=tiny_llama", "engine=packed", "train.max_steps=2", "lora.r=2,3,4")
    results = run(PackedEngine(), trials, tmp_path).results
    assert [results[t.key].state for t in trials] == ["done", "failed", "done"]
    assert "no room for rank 3" in str(results[trials[1].key].error)


def test_a_trial_that_does_not_fit_alone_is_an_oom(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = make(
        "model=tiny_bert", "engine=packed", "train.max_steps=2", "lora.r=4,8", "lora.alpha=8"
    )

    def choosy(self: Base, now: Pass) -> list[torch.Tensor]:
        if any(lane.adapter.rank == 8 for lane in now.lanes):
            raise torch.OutOfMemoryError("too large")
        return scores(self, now)

    scores = Base.scores
    monkeypatch.setattr(Base, "scores", choosy)
    watch = run(PackedEngine(), [small, large], tmp_path)
    states = [watch.results[t.key].state for t in (small, large)]
    assert states == ["done", "oom"]


def test_a_stopped_pack_goes_on_where_it_was(make: Make, tmp_path: Path) -> None:
    trials = make(
        "model=tiny_bert", "engine=packed", "engine.exactness=strict", "train.max_steps=10",
        "train.eval_every=3", "train.patience=3", "lora.dropout=0.1", "seed=0,1,2",
    )  # fmt: skip
    whole = run(PackedEngine(), trials, tmp_path / "whole")
    watch = Watch()
    watch.stop_after = 4
    run(PackedEngine(), trials, tmp_path / "parts", watch)
    assert {r.state for r in watch.results.values()} == {"stopped"}
    after = run(PackedEngine(), trials[::-1], tmp_path / "parts")
    for trial in trials:
        assert after.results[trial.key].curve == whole.results[trial.key].curve
        for name, expected in weights(trial, tmp_path / "whole").items():
            assert torch.equal(weights(trial, tmp_path / "parts")[name], expected)
        assert not (place(tmp_path / "parts")(trial).parent / "state").exists()


def test_dequantised_once_or_each_time_is_the_same(make: Make, tmp_path: Path) -> None:
    of = ["model=tiny_llama", "engine=packed", "method=qlora", "train.max_steps=5"]
    (kept,), (each,) = (make(*of, f"engine.nf4_cache={word}") for word in ("auto", "off"))
    run(PackedEngine(), [kept], tmp_path / "kept")
    run(PackedEngine(), [each], tmp_path / "each")
    for name, expected in weights(kept, tmp_path / "kept").items():
        assert torch.equal(weights(each, tmp_path / "each")[name], expected)


def test_time_and_memory_of_a_pack_have_names_of_their_own(make: Make, tmp_path: Path) -> None:
    trials = make("model=tiny_bert", "engine=packed", "train.max_steps=4", "seed=0,1")
    watch = run(PackedEngine(), trials, tmp_path)
    for result in watch.results.values():
        assert result.metrics["time/pack_share_s"] > 0
        assert result.metrics["memory/pack_peak_rss_gib"] > 0
        fair = {"time/train_s", "time/eval_s", "time/total_s", "memory/peak_rss_gib"}
        assert not fair & result.metrics.keys(), "kept for trials that ran alone"


REFUSED: dict[str, tuple[Sequence[str], str]] = {
    "no adapter": (["method=fft"], "method=fft"),
    "int8": (["method=qlora", "method.quant=int8"], "int8"),
    "optimizer": (["train.optimizer=sgd"], "sgd"),
    "fp16": (["train.precision=fp16"], "fp16"),
    "checkpointing": (["train.checkpointing=true"], "checkpointing"),
}


@pytest.mark.parametrize(("settings", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_packed_is_said(settings: Sequence[str], word: str, make: Make) -> None:
    (trial,) = make("model=tiny_llama", "engine=packed", *settings)
    assert word in str(problems(trial))


def test_a_method_that_packs_do_not_know_is_refused(make: Make) -> None:
    (trial,) = make("model=tiny_llama", "engine=packed")
    for name in ("method.dora", "lora.rank_stabilised", "target.layers"):
        assert name in str(problems(Trial({**trial.config, name: True})))


def test_a_tensor_that_was_not_trained_is_not_saved(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft.LoraConfig", partial(peft.LoraConfig, use_dora=True))
    trials = make("model=tiny_llama", "engine=packed", "train.max_steps=2")
    (result,) = run(PackedEngine(), trials, tmp_path).results.values()
    assert result.state == "failed"
    assert "packs did not train" in str(result.error)
    assert "magnitude" in str(result.error)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_packs_form_on_one_base(make: Make) -> None:
    alike = make(
        "model=tiny_llama", "engine=packed", "lora.r=1,2", "lora.dropout=0,0.1", "seed=0,1",
        "target=attention,mlp", "train.learning_rate=1e-3,1e-4", "train.batch_size=4,8",
    )  # fmt: skip
    assert {problems(t) for t in alike} == {None}
    assert len({base_of(t) for t in alike}) == 1
    unlike = make(
        "engine=packed", "model=tiny_llama,tiny_bert", "method=lora,qlora", "train.max_length=32,48"
    )
    assert len({base_of(t) for t in unlike}) == len(unlike) == 8


@pytest.mark.parametrize("exactness", ["strict", "fast"])
def test_steps_of_fixed_shape_are_the_same_steps(
    exactness: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU records, computed on the CPU: slots, shared banks, padding at the end.

    Dropout is then drawn by place, so that such trials are like themselves alone, not like plain.
    """
    trials, late, wild = mixed(make, "tiny_llama", exactness)
    everyone = [*trials, *late]
    plain = run(PackedEngine(), trials, tmp_path / "plain", Watch(more=late))
    monkeypatch.setattr(steps, "worthwhile", lambda base: True)
    fixed = run(PackedEngine(), trials, tmp_path / "fixed", Watch(more=late))
    engine, alone = PackedEngine(), Watch()
    for trial in everyone[:4]:
        run(engine, [trial], tmp_path / "alone", alone)
    for trial in everyone:
        a, b = plain.results[trial.key], fixed.results[trial.key]
        assert a.state == b.state == ("diverged" if trial is wild else "done"), b.error
        if trial is wild:
            continue
        found = weights(trial, tmp_path / "fixed")
        if trial["lora.dropout"] == 0:
            for name, expected in weights(trial, tmp_path / "plain").items():
                torch.testing.assert_close(found[name], expected, **FAST)
        if trial.key in alone.results:
            for name, expected in weights(trial, tmp_path / "alone").items():
                torch.testing.assert_close(found[name], expected, **FAST)
                assert exactness == "fast" or torch.equal(found[name], expected)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_the_last_block_goes_on_with_what_is_judged(
    kind: str, window: int | None, make: Make, tmp_path: Path
) -> None:
    """The steps and scores are those of passes that keep every token to the end."""
    of = ["model=tiny_llama", f"model.shape.model_type={kind}", "+model.shape.head_dim=16"]
    if window is not None:
        of += ["+model.shape.use_sliding_window=true", f"+model.shape.sliding_window={window}"]
        of += ["+model.shape.max_window_layers=1"]
    of += ["engine=packed", "train.max_steps=3", "train.max_length=24"]
    trials = [
        *make(*of, "target=attention", "train.batch_size=40"),
        *make(*of, "target=all_linear_head", "train.batch_size=5", "lora.r=8", "seed=1"),
        *make(*of, "target=mlp", "train.batch_size=1", "train.order=random", "seed=2"),
    ]
    base = Base(trials[0])
    plain, fixed = (Pack(base, place(tmp_path), Watch()) for _ in range(2))
    for trial in trials:
        plain.admit([trial])
        fixed.admit([trial])
    slots = steps.Steps(base, fixed.active, pool=None, compiled=False)
    seen: list[torch.Size] = []
    mlp = base.blocks[-1].get_submodule("block.mlp")
    mlp.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:2]))
    for _ in range(3):  # the third of the large batches is what the epoch has left
        losses, norms = plain._gradients(plain.active), slots.step(fixed.active)
        for a, b, loss, norm in zip(plain.active, fixed.active, losses, norms, strict=True):
            a.learn(loss)
            b.stepped(norm)
    assert seen[1::2] == [(3, 40)] * 3, "of each lane as many as the largest batch"
    for a, b in zip(plain.active, fixed.active, strict=True):
        assert [value for *_, value in b.curve] == pytest.approx([v for *_, v in a.curve], rel=1e-4)
        (bank, row), (other, there) = ((m.adapter.bank, m.adapter.row) for m in (a, b))
        for name in MATRICES:  # moments as well: what the gradients were
            expected = bank.read(getattr(bank, name), row)
            found = other.read(getattr(other, name), there)
            torch.testing.assert_close(found, expected, **FAST)
    adapters = [m.adapter for m in fixed.active]
    kept, picked = (evaluate(base, adapters, 20, one) for one in (None, slots))
    for a, b in zip(kept, picked, strict=True):
        torch.testing.assert_close(b.scores, a.scores, **FAST)


def test_steps_that_drop_more_than_updates_are_not_of_fixed_shape(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout of attention is drawn in every pass."""
    of = ["model=tiny_llama", "+model.shape.attention_dropout=0.2", "engine=packed"]
    (trial,) = make(*of, "train.max_steps=4")
    plain = run(PackedEngine(), [trial], tmp_path / "plain").results[trial.key]
    monkeypatch.setattr(steps, "worthwhile", lambda base: True)
    found = run(PackedEngine(), [trial], tmp_path / "fixed").results[trial.key]
    assert (found.state, found.curve) == ("done", plain.curve)


class NoPool:
    """Memory of recordings where there can be none."""

    lent = nullcontext


def test_steps_that_cannot_be_compiled_or_recorded_say_so(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the screen once, and in the record of each trial, of one that joins later too."""
    failing = ["no C++ compiler", "not permitted in a recording\n at …"]
    recorded = Mock(side_effect=[RuntimeError(text) for text in failing])
    monkeypatch.setattr(steps, "worthwhile", lambda base: True)
    monkeypatch.setattr(steps, "worth_compiling", lambda base, left: True)
    monkeypatch.setattr(Pack, "_new_pool", lambda self: NoPool())
    monkeypatch.setattr(steps.Steps, "_record", recorded)
    of = ["model=tiny_llama", "engine=packed"]
    trials = make(*of, "train.max_steps=2,4", "seed=0")
    late = make(*of, "train.max_steps=2", "seed=1")
    results = run(PackedEngine(), trials, tmp_path, Watch(more=[*late])).results
    expected = [
        "steps were not compiled, which is slower: no C++ compiler",
        "steps were not recorded, which is slower: not permitted in a recording",
    ]
    screen = Screen(3)
    record = Record(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts")
    sweep = record.open_sweep("fallback", "s", "a test")
    for trial in [*trials, *late]:
        result = results[trial.key]
        assert (result.state, result.environment["notes"]) == ("done", expected)
        screen.end(trial, result)
        run_id = record.claim(sweep, trial, "packed")
        assert run_id is not None
        record.close_trial(run_id, result, {})
    shown = capsys.readouterr().out
    assert [shown.count(text) for text in expected] == [1, 1]
    assert {row["lorasweep.notes"] for row in record.all()} == {"; ".join(expected)}


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_positions_that_a_batch_scales_are_refused(rope: str, make: Make, tmp_path: Path) -> None:
    (random,) = make("model=tiny_llama")
    convert.random(source.settings(random), tmp_path)
    file = tmp_path / "config.json"
    scaled = {"rope_type": rope, "factor": 2.0, "rope_theta": 1e4}
    scaled |= {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    scaled["original_max_position_embeddings"] = 16
    file.write_text(json.dumps({**json.loads(file.read_text()), "rope_parameters": scaled}))
    of = ["model=tiny_llama", "engine=packed", "model.source=path", f"model.path={tmp_path}"]
    short, long = make(*of, "train.max_steps=2", "train.max_length=16,32")
    watch = Watch()
    run(PackedEngine(), [short], tmp_path, watch)
    run(PackedEngine(), [long], tmp_path, watch)
    assert watch.results[short.key].state == "done", watch.results[short.key].error
    assert "engine=trainer or train.max_length=16" in str(watch.results[long.key].error)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dropout_of_fixed_steps_is_dropout(
    precision: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains as the usual one does, and a trial that is stopped goes on with the same."""
    monkeypatch.setattr(steps, "worthwhile", lambda base: True)
    settings = ("model=tiny_llama", "engine=packed", "target=all_linear_head")
    settings += ("lora.dropout=0.5", f"train.precision={precision}")
    trials = [
        *make(*settings, "seed=0", "lora.r=2", "train.epochs=2"),
        *make(*settings, "seed=1", "lora.r=4", "train.epochs=2"),
    ]
    (without,) = make(*settings, "lora.dropout=0", "train.epochs=2")
    whole = run(PackedEngine(), [*trials, without], tmp_path / "whole")
    halted = Watch()
    halted.stop_after = 3
    run(PackedEngine(), trials, tmp_path / "halves", halted)
    assert {r.state for r in halted.results.values()} == {"stopped"}
    resumed = run(PackedEngine(), trials, tmp_path / "halves")
    for trial in trials:
        assert repr(resumed.results[trial.key].curve) == repr(whole.results[trial.key].curve)
    losses = {key: dict_of(r.curve)["train/loss"] for key, r in whole.results.items()}
    assert len({tuple(found) for found in losses.values()}) == 3  # by seed, and without dropout
    for found in losses.values():
        assert found[-1] < found[0]


def dict_of(curve: Sequence[tuple[str, int, float]]) -> dict[str, list[float]]:
    return {name: [v for n, _, v in curve if n == name] for name, _, _ in curve}


def test_near_ranks_share_a_bank_while_that_takes_few_zeros() -> None:
    counts = {16: 8, 64: 2, 128: 1, 256: 1, 512: 1}
    apart = {rank: rank for rank in counts}
    assert steps.common_ranks(counts, weights=300_000, room=0) == apart
    some = steps.common_ranks(counts, weights=300_000, room=200_000_000)
    assert some == {**apart, 128: 512, 256: 512}
    assert set(steps.common_ranks(counts, weights=1, room=1_000_000).values()) == {512}


def test_hashed_dropout_drops_as_often_as_asked_and_anew_each_time() -> None:
    drawn = noise.Noise(2, 3, torch.device("cpu"))
    drawn.keys.copy_(torch.from_numpy(noise.keys([7, 7, 8], [0, 1, 0], 3)))
    for lane, p in enumerate((0.05, 0.5, 0.5)):
        drawn.seat(lane, p)
    assert drawn.lift.flatten().tolist() == pytest.approx([1 / 0.95, 2, 2])
    masks = [noise.thinned(torch.ones(3, 500, 400), key, drawn.bars) for key in drawn.keys]
    for mask in masks:
        assert mask.mean((1, 2)).tolist() == pytest.approx([0.95, 0.5, 0.5], abs=5e-3)
        for line in (mask[1].mean(0), mask[1].mean(1)):  # no row, no column is favoured
            assert float((line - 0.5).abs().max()) < 0.15
    halves = [mask[row].flatten() for mask in masks for row in (1, 2)]
    halves += [halves[0].roll(1), halves[0].roll(400)]
    likeness = torch.corrcoef(torch.stack(halves))
    assert float((likeness - torch.eye(len(halves))).abs().max()) < 0.01


def test_a_pack_of_none_is_refused(composer: Composer, data: list[str]) -> None:
    problems: list[str] = []
    described = grammar.read([*data, "engine=packed", "engine.pack_size=0"], {}, composer, problems)
    expand.expand(described, composer, problems)
    assert problems == ["engine.pack_size=0: must be above 0"]
