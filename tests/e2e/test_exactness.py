"""``engine.exactness=strict`` as typed: the same bits however a trial comes to run."""

import os
from pathlib import Path

from tests.conftest import Sweep
from tests.e2e.conftest import rows_of

STRICT = [
    "model=tiny_llama", "engine=packed", "engine.exactness=strict", "train.max_steps=3",
    # large enough for PyTorch to divide products among threads
    "train.batch_size=96", "train.max_length=48",
]  # fmt: skip


def test_strict_is_bitwise_in_any_number_of_workers(
    sweep: Sweep, data: list[str], tmp_path: Path
) -> None:
    """One worker has all cores of this machine, each of two workers half of them."""
    ways = {
        "two": ["-m", "executor.workers=2", "lora.r=2,4,8", "seed=0,1"],
        "one": ["-m", "executor.workers=1", "lora.r=8", "seed=1"],
        "no worker": ["lora.r=8", "seed=1"],
    }
    adapters = set()
    for name, typed in ways.items():
        output = tmp_path / name
        cores = str(os.cpu_count())
        done = sweep(*typed, *STRICT, *data, f"output_dir={output}", OMP_NUM_THREADS=cores)
        assert done.returncode == 0, done.stdout + done.stderr
        (run,) = [
            row["run_id"]
            for row in rows_of(output)
            if (int(row["lora.r"]), int(row["seed"])) == (8, 1)
        ]
        (file,) = output.rglob(f"{run}/**/adapter_model.safetensors")
        adapters.add(file.read_bytes())
    assert len(adapters) == 1
