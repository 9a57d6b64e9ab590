"""On a GPU: recorded steps, and in strict mode the same bits in packs of 1, 8 and 32."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorasweep.engines.packed.engine import PackedEngine
from lorasweep.trial import Trial
from tests.engines.conftest import Make, place, run

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
            assert curves[trial.key] == whole[trial.key], (size, trial.label)
            one, other = adapter(trial, tmp_path / str(size)), adapter(trial, tmp_path / "32")
            assert all(torch.equal(one[name], other[name]) for name in other), trial.label


def test_fast_packs_differ_by_rounding_alone(make: Make, tmp_path: Path) -> None:
    trials = study(make, "fast", "lora")
    trained(trials, tmp_path / "32", 32)
    for trial in trials[::5]:
        trained([trial], tmp_path / "1", 1)
        one, other = adapter(trial, tmp_path / "1"), adapter(trial, tmp_path / "32")
        for name, tensor in other.items():
            scale = float(tensor.abs().max())
            assert float((one[name] - tensor).abs().max()) <= 0.1 * scale, (trial.label, name)
