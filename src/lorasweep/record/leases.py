"""Who runs what: the identity of a controlling process, and whether it still lives.

A controller says in the record how long it may be believed to live (its lease) and renews
that while it does. On its own machine a dead process is seen at once, without waiting.
"""

import socket
import time
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

LEASE_S = 60.0  # a controller that has not renewed for so long is taken for dead
RENEW_S = 10.0


@dataclass(frozen=True)
class Owner:
    """A process: the machine it runs on, its number there, and when it started (seconds)."""

    host: str
    pid: int
    started: int

    def __str__(self) -> str:
        """Return the form that stands in the record."""
        return f"{self.host}:{self.pid}:{self.started}"

    @classmethod
    def parse(cls, text: str) -> "Owner":
        """Read what ``str`` wrote."""
        host, pid, started = text.rsplit(":", 2)
        return cls(host, int(pid), int(started))


@cache
def here() -> Owner:
    """Return this process."""
    process = psutil.Process()
    return Owner(_host(), process.pid, int(process.create_time()))


def _host() -> str:
    """Name a machine in which process numbers mean the same.

    Cloned machines have equal names: the number that a kernel draws when it starts tells them
    apart, elsewhere the network card's. Two containers on a machine number processes apart.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode():x}"
    return f"{socket.gethostname()}/{boot}/{space}"


def alive(owner: str, until: float) -> bool:
    """Whether an owner whose lease ends at ``until`` (seconds since 1970) may still be at work."""
    found = Owner.parse(owner)
    if found.host != here().host:
        return time.time() < until
    try:
        process = psutil.Process(found.pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        return not ended and abs(process.create_time() - found.started) < 2
    except psutil.NoSuchProcess:
        return False
