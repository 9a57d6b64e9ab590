"""Peak memory of one trial: reset before it, read after it."""

import ctypes
import gc
import re
from pathlib import Path

import torch

GIB = 2**30


def reset() -> None:
    """Give freed memory back and start the peaks anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        # 5 resets the peak of the resident set (Linux, proc(5)).
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux with glibc: the peak is that of the process's life
        pass


def peaks() -> dict[str, float]:
    """Peaks since ``reset`` in GiB: allocated and reserved on a GPU, and the process's own."""
    found = {"memory/peak_rss_gib": _peak_rss() / GIB}
    if torch.cuda.is_available():
        found["memory/peak_allocated_gib"] = torch.cuda.max_memory_allocated() / GIB
        found["memory/peak_reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
    return found


def _peak_rss() -> int:
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        match = None
    if match is not None:
        return int(match[1]) * 1024
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
