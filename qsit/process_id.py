"""The identity of a process, and whether another process is still alive."""

import contextlib
import functools
import hashlib
import os
import socket
from pathlib import Path

import psutil


def identity() -> str:
    """Return host:pid:start of this process, which marks what it holds in the ledger."""
    return _identity(os.getpid())


@functools.cache
def _identity(pid: int) -> str:
    return f"{_host()}:{pid}:{_started(pid)}"


@functools.cache
def _host() -> str:
    """Return the host's name; on Linux with a digest of its boot and container, since names are not unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}.{hashlib.sha256(boot.encode()).hexdigest()[:8]}"


def is_dead(owner: str) -> bool:
    """Return whether `owner` was a process of this host and container and has ended. Others count as alive."""
    host, pid, start = owner.rsplit(":", 2)
    if host != _host():
        return False
    try:
        return _started(int(pid)) != start or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _started(pid: int) -> str:
    """Return when a process began; on Linux in ticks since boot, independent of the clock. Raises NoSuchProcess."""
    began = psutil.Process(pid).create_time()
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]  # field 22 of proc(5)
    return f"{began:.2f}"
