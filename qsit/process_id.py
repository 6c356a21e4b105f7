"""Which process this is, and whether another one still lives."""

import contextlib
import functools
import hashlib
import os
import socket
from pathlib import Path

import psutil


def identity() -> str:
    """host:pid:start of this process, with which it signs what it holds."""
    return _identity(os.getpid())


@functools.cache
def _identity(pid: int) -> str:
    return f"{_host()}:{pid}:{_started(pid)}"


@functools.cache
def _host() -> str:
    """The host's name, and on Linux a mark of its boot and of the container: others may have the same name."""
    try:
        seen = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}.{hashlib.sha256(seen.encode()).hexdigest()[:8]}"


def is_dead(owner: str) -> bool:
    """Whether `owner` is a process of this host and container that has ended. Of others nothing is known."""
    host, pid, start = owner.rsplit(":", 2)
    if host != _host():
        return False
    try:
        return _started(int(pid)) != start or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _started(pid: int) -> str:
    """When a process began: on Linux in ticks since boot, which no change of the clock moves. Raises NoSuchProcess."""
    began = psutil.Process(pid).create_time()
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]  # field 22 of proc(5)
    return f"{began:.2f}"
