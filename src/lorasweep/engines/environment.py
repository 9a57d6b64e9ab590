"""What a result was made with: versions, commit, device."""

import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "scikit-learn",
    "numpy",
    "mlflow",
    "hydra-core",
)


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def device_name() -> str:
    """Name of the GPU, or of the processor and its number of cores."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"CPU: {name}, {torch.get_num_threads()} threads"


@cache
def describe() -> dict[str, Any]:
    """Versions, git commit and whether the tree was changed since, device, memory."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    status = _git("status", "--porcelain")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
        "device": device_name(),
        "cuda": torch.version.cuda,
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }
