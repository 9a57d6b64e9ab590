"""The environment that a trial's process starts from: the user's, without what other tools left.

A launcher's variables make a Trainer one of many, and it waits for the others for ever; those of
accelerate and of numerical libraries change numbers that the key takes for the same; a proxy that
does not answer is waited for, although all that a trial needs was fetched before.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# Of launchers (torchrun, accelerate, MPI) and of libraries that compute.
_PREFIXES = (
    "ACCELERATE_", "DNNL_", "FSDP_", "KMP_", "MKL_", "MPI_", "MV2_COMM_", "OMPI_", "ONEDNN_",
    "PMIX_", "PMI_", "TORCHELASTIC_", "TORCHDYNAMO_", "XLA_",
)  # fmt: skip
_NAMES = frozenset(
    {
        # launchers
        "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
        "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT",
        "FORK_LAUNCHED",
        # numbers
        "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "OMP_DYNAMIC",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
        # Python
        "PYTHONIOENCODING", "PYTHONWARNINGS", "PYTHONINSPECT", "PYTHONSTARTUP",
    }
)  # fmt: skip
_PROXIES = frozenset(
    {"ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "http_proxy", "https_proxy"}
)
# Texts are UTF-8 whatever the locale; numbers of GPUs are those that nvidia-smi shows.
_OURS = {"PYTHONUTF8": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
_OFFLINE = {"HF_HUB_OFFLINE": "1"}


def of_trials(place: Mapping[str, str], *, apart: bool) -> dict[str, str]:
    """Return the environment that trials run in.

    Args:
        place: what gives them their device and threads.
        apart: in a process of their own, which reaches no network, as all was fetched before.
    """
    dropped = _NAMES | _PROXIES if apart else _NAMES
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in dropped and not name.startswith(_PREFIXES)
    }
    return {**kept, **_OURS, **(_OFFLINE if apart else {}), **place}


@contextmanager
def for_trials(place: Mapping[str, str], *, apart: bool) -> Iterator[None]:
    """Let trials run in this process, or processes of trials be born (see ``of_trials``)."""
    before, ours = dict(os.environ), of_trials(place, apart=apart)
    try:
        _become(ours)
        yield
    finally:
        _become(before)


def _become(environment: Mapping[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
