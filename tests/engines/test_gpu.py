"""On a GPU: recorded steps, and in strict mode the same bits in packs of 1, 8 and 32."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorasweep.engines.packed import steps
from lorasweep.engines.packed.engine import PackedEngine
from lorasweep.engines.packed.fused import thinned_down
from lorasweep.engines.packed.noise import thinned
from lorasweep.trial.trial import Trial
from tests.engines.conftest import Make, place, run
from tests.engines.test_packs import dict_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def study(make: Make, exactness: str, method: str) -> list[Trial]:
    """Thirty-two trials: eight ranks, with dropout and without, two targets, several rates."""
    common = ["model=tiny_llama", "engine=packed", f"engine.exactness={exactness}"]
    common += [f"method={method}", "train.precision=bf16", "train.order=random", "train.epochs=2"]
    return [
        trial
        for number, (target, dropout) in enumerate(
            [("all_linear", 0.05), ("attention", 0.0), ("all_linear_head", 0.1), ("qv", 0.05)]
        )
        for trial in make(
            *common, f"target={target}", f"lora.dropout={dropout}", f"seed={number}",
            f"train.learning_rate={1e-3 * (number + 1)}", "lora.r=1,2,4,...,128",
        )
    ]  # fmt: skip


def adapter(trial: Trial, root: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(place(root)(trial) / "adapter" / "adapter_model.safetensors"))


def trained(trials: Sequence[Trial], root: Path, size: int) -> dict[str, str]:
    """Run trials in packs of ``size``. Returns their curves, told to the last digit."""
    engine, curves = PackedEngine(), {}
    for start in range(0, len(trials), size):
        watch = run(engine, trials[start : start + size], root)
        for key, result in watch.results.items():
            assert result.state == "done", result.error
            curves[key] = repr(result.curve)
    return curves


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_strict_packs_give_the_same_bits(make: Make, tmp_path: Path, method: str) -> None:
    trials = study(make, "strict", method)[::-1]
    whole = trained(trials, tmp_path / "32", 32)
    for size, some in ((8, trials[:16]), (1, trials[::5])):
        curves = trained(some, tmp_path / str(size), size)
        for trial in some:
            assert curves[trial.key] == whole[trial.key], (size, trial.key)
            one, other = adapter(trial, tmp_path / str(size)), adapter(trial, tmp_path / "32")
            assert all(torch.equal(one[name], other[name]) for name in other), trial.key


def test_fast_packs_differ_by_rounding_alone(make: Make, tmp_path: Path) -> None:
    trials = study(make, "fast", "lora")
    trained(trials, tmp_path / "32", 32)
    for trial in trials[::5]:
        trained([trial], tmp_path / "1", 1)
        one, other = adapter(trial, tmp_path / "1"), adapter(trial, tmp_path / "32")
        for name, tensor in other.items():
            scale = float(tensor.abs().max())
            assert float((one[name] - tensor).abs().max()) <= 0.1 * scale, (trial.key, name)


def test_the_few_that_are_left_are_recorded_anew(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    common = ["model=tiny_llama", "engine=packed", "train.precision=bf16", "lora.dropout=0.05"]
    short = make(*common, "train.epochs=1", "lora.r=1,2,4,...,16")
    long = make(*common, "train.epochs=4", "lora.r=4")
    watch = run(PackedEngine(), [*short, *long], tmp_path)
    assert [result.state for result in watch.results.values()] == ["done"] * 6
    assert "not recorded" not in caplog.text


WINDOWS = [
    "model=tiny_llama", "model.shape.model_type=qwen2", "+model.shape.use_sliding_window=true",
    "+model.shape.sliding_window=6", "+model.shape.max_window_layers=1",
]  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("exactness", ["fast", "strict"])
def test_recorded_steps_look_through_the_same_windows(
    exactness: str, precision: str, make: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    of = [*WINDOWS, "engine=packed", f"engine.exactness={exactness}", "train.max_steps=10"]
    trials = make(*of, f"train.precision={precision}", "lora.r=2,4", "seed=0,1")
    (whole,) = make(*of, f"train.precision={precision}", "model.shape.use_sliding_window=false")
    recorded = run(PackedEngine(), [*trials], tmp_path / "recorded")
    wide = run(PackedEngine(), [whole], tmp_path / "wide").results[whole.key]
    assert "not recorded" not in caplog.text
    monkeypatch.setattr(steps, "worthwhile", lambda base: False)
    plain = run(PackedEngine(), [*trials], tmp_path / "plain")
    apart = 1e-3 if precision == "fp32" else 3e-2
    for trial in trials:
        one, other = (dict_of(w.results[trial.key].curve) for w in (recorded, plain))
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=apart)
    assert dict_of(wide.curve)["train/loss"][0] != one["train/loss"][0]


def test_dropout_of_attention_is_drawn_and_not_recorded(make: Make, tmp_path: Path) -> None:
    of = ["model=tiny_llama", "engine=packed", "train.max_steps=10", "engine.exactness=strict"]
    (without,) = make(*of)
    trials = make(*of, "+model.shape.attention_dropout=0.3", "seed=0,1")
    plain = run(PackedEngine(), [without], tmp_path).results[without.key]
    packed = run(PackedEngine(), trials, tmp_path / "pack")
    alone = run(PackedEngine(), trials[:1], tmp_path / "alone")
    assert {r.state for r in packed.results.values()} == {"done"}
    key = trials[0].key
    assert repr(packed.results[key].curve) == repr(alone.results[key].curve)
    assert packed.results[key].curve != plain.curve
    assert "the base has dropout of its own" in packed.results[key].environment["notes"][0]


@pytest.mark.parametrize("exactness", ["fast", "strict"])
def test_steps_that_cannot_be_recorded_are_the_same_steps(
    exactness: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = ["model=tiny_llama", "engine=packed", f"engine.exactness={exactness}", "train.max_steps=6"]
    trials = make(*of, "lora.dropout=0.1", "seed=0,1")
    recorded = run(PackedEngine(), trials, tmp_path / "recorded").results

    class NoGraph:
        def __init__(self) -> None:
            raise RuntimeError("no graphs today")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", NoGraph)
    found = run(PackedEngine(), trials, tmp_path / "plain").results
    for trial in trials:
        result = found[trial.key]
        assert result.state == "done", result.error
        assert result.environment["notes"] == [
            "steps were not recorded, which is slower: no graphs today"
        ]
        losses, expected = (dict_of(r.curve)["train/loss"] for r in (result, recorded[trial.key]))
        assert losses == pytest.approx(expected, rel=1e-3)


def products(
    x: torch.Tensor, a: torch.Tensor, key: torch.Tensor, bars: torch.Tensor, *, fused: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return thin(x)·Aᵀ, and the gradients of x and A where every number's is 1."""
    x, a = x.detach().requires_grad_(), a.detach().requires_grad_()
    if fused:
        low = thinned_down(x, a, key, bars, kernels=True)
    else:
        low = torch.bmm(thinned(x, key, bars), a.transpose(1, 2))
    return low.detach(), *torch.autograd.grad(low, (x, a), torch.ones_like(low))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("lanes", "tokens", "width", "rank"),
    [
        (5, 1024, 576, 16),
        (3, 1000, 1536, 64),
        (2, 8, 576, 100),
        (3, 192, 2048, 512),
        (2, 64, 90, 1),
    ],
)
def test_dropout_within_a_product_is_the_same_dropout(
    dtype: torch.dtype, lanes: int, tokens: int, width: int, rank: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(lanes + 2, tokens, width, device="cuda", dtype=dtype)[1:-1]
    bank = torch.randn(lanes, 2 * rank * width, device="cuda", dtype=dtype)
    a = bank[:, rank * width :].view(lanes, rank, width)  # its lanes do not follow each other
    key = torch.randint(-(2**31), 2**31, (lanes, 2), device="cuda", dtype=torch.int32)
    bars = torch.full((lanes, 1, 1), round(0.3 * 2**24), device="cuda", dtype=torch.int32)
    bars[1] = 0
    found = products(x, a, key, bars, fused=True)
    exact = products(x.double(), a.double(), key, bars, fused=False)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == dtype
        error = float((one - other).norm() / other.norm())
        assert error < (1e-5 if dtype == torch.float32 else 4e-3)
    of_x = found[1]
    assert bool((of_x[thinned(torch.ones_like(x), key, bars) == 0] == 0).all())
    assert bool((of_x[1] != 0).any(0).all()), "a lane without dropout keeps all"
    alone = products(x[1:2], a[1:2], key[1:2], bars[1:2], fused=True)
    assert all(torch.equal(one[0], other[1]) for one, other in zip(alone, found, strict=True))


def test_dropout_within_a_product_compiles_and_records() -> None:
    torch.manual_seed(0)
    key = torch.randint(-(2**31), 2**31, (4, 2), device="cuda", dtype=torch.int32)
    bars = torch.full((4, 1, 1), round(0.1 * 2**24), device="cuda", dtype=torch.int32)
    a = torch.randn(4, 16, 96, device="cuda", dtype=torch.bfloat16)
    fused = partial(thinned_down, kernels=True)
    compiled = torch.compile(fused, fullgraph=True, dynamic=True)
    for tokens in (64, 128):
        x = torch.randn(4, tokens, 96, device="cuda", dtype=torch.bfloat16)
        expected = fused(x, a, key, bars)
        assert torch.equal(compiled(x, a, key, bars), expected)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = compiled(x, a, key, bars)
        x.neg_()
        graph.replay()
        assert torch.equal(found, -expected)
