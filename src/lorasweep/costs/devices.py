"""Devices by name: their memory, and the rates that bound a step's time.

Rates are the makers' datasheet figures for dense matrix products (16-bit inputs with float32
sums; float32 without TF32, PyTorch's default) and for memory. Memory is what PyTorch reports,
a little under the name's.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One device: bytes, and operations or bytes a second."""

    name: str
    kind: str  # cuda or cpu
    memory: float
    half: float  # FLOP/s in bf16 or fp16
    single: float  # FLOP/s in fp32
    bandwidth: float

    @property
    def gib(self) -> float:
        """Memory in GiB."""
        return self.memory / GIB


def _gpu(name: str, gib: float, half: float, single: float, bandwidth: float) -> Device:
    """Device from GiB, TFLOP/s and GB/s."""
    return Device(name, "cuda", gib * GIB, half * 1e12, single * 1e12, bandwidth * 1e9)


DEVICES = {
    device.name: device
    for device in (
        _gpu("a100_40gb", 39.4, 312, 19.5, 1555),
        _gpu("a100_80gb", 79.1, 312, 19.5, 2039),
        _gpu("h100", 79.1, 989, 67, 3350),
        _gpu("h200", 139.8, 989, 67, 4800),
        _gpu("l4", 22.0, 121, 30.3, 300),
        _gpu("l40s", 44.4, 362, 91.6, 864),
        _gpu("a6000", 47.4, 155, 38.7, 768),
        _gpu("a10g", 22.0, 70, 31.2, 600),
        _gpu("t4", 14.6, 65, 8.1, 320),
        _gpu("v100_16gb", 15.8, 125, 15.7, 900),
        _gpu("v100_32gb", 31.7, 125, 15.7, 900),
        _gpu("rtx3080ti", 11.8, 68, 34.1, 912),
        _gpu("rtx3090", 23.6, 71, 35.6, 936),
        _gpu("rtx4090", 23.5, 165, 82.6, 1008),
        _gpu("rtx5090", 31.4, 209, 104.8, 1792),
    )
}
# The share of a card's nominal memory that programs can have, and the speed taken for a card
# of which only the size is known.
USABLE = 0.98
_UNKNOWN_SPEED = DEVICES["a100_40gb"]
# A core's rates when nothing better is known: a few AVX2 products a cycle, shared memory.
_CORE_FLOPS, _CPU_BANDWIDTH = 20e9, 20e9


def find(name: str | None) -> Device:
    """Device by name (``h100``), by size (``24gb``), or the one present (None).

    Raises:
        KeyError: the name is neither known nor a size; the message lists what is.
    """
    if name is None:
        return present()
    word = str(name).lower().replace("-", "_")
    if word == "cpu":
        return cpu()
    if word in DEVICES:
        return DEVICES[word]
    size = re.fullmatch(r"(\d+(?:\.\d+)?)_?gi?b", word)
    if size is not None:
        return replace(_UNKNOWN_SPEED, name=word, memory=float(size[1]) * USABLE * GIB)
    raise KeyError(f"not a device (known: cpu, {', '.join(DEVICES)}, or a size such as 24gb)")


def present() -> Device:
    """First visible NVIDIA GPU, or the CPU. Asks ``nvidia-smi``, so that no CUDA is started."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    tool = shutil.which("nvidia-smi")
    if tool is None or visible == "":
        return cpu()
    first = [] if visible is None else ["-i", visible.split(",")[0]]
    query = [tool, *first, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        name, mib = answer.stdout.splitlines()[0].rsplit(",", 1)
        return recognise(name.strip(), float(mib) * 2**20)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return cpu()


def visible_gpus() -> list[str]:
    """GPUs that programs may use here by UUID, in PCI order or as ``CUDA_VISIBLE_DEVICES`` says.

    Its numbers are those that ``nvidia-smi`` shows. UUIDs mean the same to every program, while
    CUDA itself counts the fastest GPU first. What the driver does not tell (the parts of a
    partitioned GPU) keeps its name.
    """
    uuids = [line[0] for line in nvidia_smi("uuid")]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return uuids
    found: list[str] = []
    for name in map(str.strip, visible.split(",")):
        gpu = _uuid(name, uuids)
        if gpu is None:  # CUDA, too, sees nothing that comes after it
            break
        found.append(gpu)
    return list(dict.fromkeys(found))


def _uuid(name: str, uuids: Sequence[str]) -> str | None:
    """UUID of the GPU with this number or beginning of its UUID; None where there is none."""
    if name.isdigit():
        return name if not uuids else uuids[int(name)] if int(name) < len(uuids) else None
    if not name.startswith(("GPU-", "MIG-")):
        return None
    return next((uuid for uuid in uuids if uuid.startswith(name)), name)


def nvidia_smi(query: str, gpu: str | None = None) -> list[list[str]]:
    """Ask the driver; nothing where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    which = [] if gpu is None else ["-i", gpu]
    command = [tool, *which, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]


def recognise(marketing: str, memory: float) -> Device:
    """Device for the name and bytes that a driver reports (``NVIDIA A100-SXM4-40GB``)."""
    words = set(re.split(r"[^a-z0-9]+", marketing.lower()))
    joined = re.sub(r"[^a-z0-9]", "", marketing.lower())

    def fits(device: Device) -> bool:
        stem = device.name.split("_")[0]
        return stem in words or (stem.startswith("rtx") and joined.endswith(stem))

    known = [device for device in DEVICES.values() if fits(device)]
    if not known:
        return replace(_UNKNOWN_SPEED, name=marketing, memory=memory * USABLE)
    nearest = min(known, key=lambda device: abs(device.memory - memory))
    return replace(nearest, memory=memory * 0.99)


def same(device: Device, recorded: str) -> bool:
    """Whether a device name in the record (PyTorch's, or ``CPU: …``) means this device."""
    if device.kind == "cpu" or recorded.startswith("CPU"):
        return device.kind == "cpu" and recorded.startswith("CPU")
    return recognise(recorded, device.memory).name == device.name


def cpu() -> Device:
    """Return this machine's CPU and main memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rate = (cores or 1) * _CORE_FLOPS
    return Device("cpu", "cpu", float(memory), rate, rate, _CPU_BANDWIDTH)
