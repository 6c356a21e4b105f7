"""Child processes that end with this one, however it ends."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

STOP_S = 20.0
"""Seconds that a process may take to end in order before it is killed."""

DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of prctl(2); stays set after exec
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes PROGRAM, which Linux kills when the thread that started it ends: `python -c ... PARENT PROGRAM ARGUMENT...`.
A preexec_fn would run Python in a forked copy of this process, whose other threads may hold locks."""


def start(command: list[str], log: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a program in a session of its own, so that Ctrl-C reaches this process alone. Call in the main thread."""
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), *command]
    with log.open("wb") as output:
        return subprocess.Popen(  # noqa: S603 -- our own programs
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )


def end(process: "subprocess.Popen[bytes]", first: signal.Signals) -> None:
    """Send a process its first signal, wait, and kill it together with what it has started."""
    if process.poll() is None:
        process.send_signal(first)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
