"""Start the real programs, and find the processes that they leave behind."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from tests.support.paths import GOLDEN

BIN = Path(sys.executable).parent
QSIT = str(BIN / "qsit")
SLOW_MODEL = str(GOLDEN / "checkpoint")
"""It turns a photo into eight times as many tokens as the demo model."""


def run(*arguments: str, database_url: str, check: object = 0, **variables: str) -> "subprocess.CompletedProcess[str]":
    """
    Run `qsit` with environment variables and expect an exit status, or any if `check` is None.

    `check` is typed as an object because mypy expects each keyword to fit `**variables`.
    """
    done = subprocess.run(
        [QSIT, *arguments], env=environment(database_url, variables), capture_output=True, text=True, timeout=300
    )
    assert "Traceback" not in done.stderr, done.stderr
    if check is not None:
        assert done.returncode == check, f"{done.returncode}: {done.stdout}\n{done.stderr}"
    return done


@contextlib.contextmanager
def started(
    *command: str, database_url: str, log: Path, cwd: str | Path | None = None, **variables: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program with environment variables meanwhile. At the end, kill it with all its processes."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment(database_url, variables),
            stdout=output,
            stderr=output,
            cwd=cwd,
            preexec_fn=_accept_signals,
        )
    try:
        yield process
    finally:
        kill(family(database_url) if process.poll() is None else [])
        process.wait()


def _accept_signals() -> None:
    """Undo that a program ignores signals because the tests run under nohup or in the background of a shell."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def environment(database_url: str, variables: dict[str, str]) -> dict[str, str]:
    """Return the environment for a program, without the user's settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("QSIT_")}
    scratch = _scratch(database_url)
    scratch.mkdir(exist_ok=True)
    return own | {"QSIT_DATABASE_URL": database_url, "TMPDIR": str(scratch)} | variables


def _scratch(database_url: str) -> Path:
    """Return a folder with a short path, for sockets. Its name identifies the servers of a database's processes."""
    return Path(tempfile.gettempdir()) / f"qsit-test-{zlib.crc32(database_url.encode()):08x}"


def family(database_url: str) -> list[psutil.Process]:
    """Return every living process that was started for a database, children included."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            ours = process.environ().get("QSIT_DATABASE_URL") == database_url
            if ours or str(_scratch(database_url)) in " ".join(process.cmdline()):  # Valkey overwrites its environment
                found.append(process)
    return found


def kill(processes: Iterable[psutil.Process]) -> None:
    """Send SIGKILL to each process that still lives."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def named(database_url: str, words: str) -> list[psutil.Process]:
    """Return the living processes of a database whose command line has these words."""
    found = []
    for process in family(database_url):
        with contextlib.suppress(psutil.NoSuchProcess):
            if words in " ".join(process.cmdline()):
                found.append(process)
    return found


def until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    """Wait until a condition is true. The timeout only ends a test that would hang."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.02)


def make_photos(folder: Path, count: int) -> Path:
    """Fill a folder with small photos that all differ."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 24, 32, 3), dtype=np.uint8)
    for index in range(count):
        Image.fromarray(pixels[index]).save(folder / f"{index:05d}.png")
    return folder
