"""GPUs for the trials of one sweep alone, whose times and memory are then their own."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lorasweep.costs.devices import nvidia_smi
from lorasweep.errors import RequestError

_IDLE_MIB = 1024  # what an idle GPU may hold: the driver, a desktop


@contextmanager
def kept(gpus: Sequence[str], folder: Path) -> Iterator[None]:
    """Keep GPUs to this sweep.

    A sweep's first minute leaves a GPU's memory empty, so that of two which start together
    neither would see the other there: a lock tells.

    Args:
        gpus: their UUIDs.
        folder: where this user's sweeps have their locks.

    Raises:
        RequestError: some are in use by others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    with ExitStack() as locks:
        for gpu in dict.fromkeys(gpus):
            number, used = next(iter(nvidia_smi("index,memory.used", gpu)), [gpu, ""])
            try:
                locks.enter_context(FileLock(folder / f"{gpu}.lock", timeout=0))
            except Timeout:
                problems.append(_refusal(number, "another sweep uses it"))
                continue
            mib = float(used) if used.isdigit() else 0.0  # some drivers do not tell
            if mib > _IDLE_MIB:
                problems.append(_refusal(number, f"others use {mib / 1024:.1f} GiB of it"))
        if problems:
            raise RequestError(problems)
        yield


def _refusal(gpu: str, why: str) -> str:
    return (
        f"GPU {gpu}: {why}, so times and memory would not be the trials' own; run all the same "
        "with executor.shared_gpu=true"
    )
