"""Starting the real programs, and finding what they leave behind."""

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
"""Its photos have eight times the tokens that the demo's have, so that a job is not over before it is disturbed."""


def run(
    *arguments: str, database_url: str, check: int | None = 0, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run `qsit`, and expect an exit status."""
    done = subprocess.run(
        [QSIT, *arguments], env=environment(database_url, variables), capture_output=True, text=True, timeout=300
    )
    assert "Traceback" not in done.stderr, done.stderr
    if check is not None:
        assert done.returncode == check, f"{done.returncode}: {done.stdout}\n{done.stderr}"
    return done


@contextlib.contextmanager
def started(
    *command: str, database_url: str, log: Path, cwd: Path | None = None, **variables: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """A program that runs meanwhile; killed with all its processes at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment(database_url, variables),
            stdout=output,
            stderr=output,
            cwd=cwd,
            preexec_fn=_heed_signals,
        )
    try:
        yield process
    finally:
        kill(family(database_url) if process.poll() is None else [])
        process.wait()


def _heed_signals() -> None:
    """Also where the tests themselves run under nohup or in the background of a shell."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def environment(database_url: str, variables: dict[str, str]) -> dict[str, str]:
    """What a program is started with: no settings of the user's."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("QSIT_")}
    scratch = _scratch(database_url)
    scratch.mkdir(exist_ok=True)
    return own | {"QSIT_DATABASE_URL": database_url, "TMPDIR": str(scratch)} | variables


def _scratch(database_url: str) -> Path:
    """A folder for sockets, which want a short path; by its name the servers in it are told."""
    return Path(tempfile.gettempdir()) / f"qsit-test-{zlib.crc32(database_url.encode()):08x}"


def family(database_url: str) -> list[psutil.Process]:
    """Every living process that was started for a database, children included."""
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
    """SIGKILL to each that still lives."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def named(database_url: str, words: str) -> list[psutil.Process]:
    """Those of the family whose command line has these words."""
    found = []
    for process in family(database_url):
        with contextlib.suppress(psutil.NoSuchProcess):
            if words in " ".join(process.cmdline()):
                found.append(process)
    return found


def until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    """Wait for something that will come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def make_photos(folder: Path, count: int) -> Path:
    """A folder of small photos, each of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 24, 32, 3), dtype=np.uint8)
    for index in range(count):
        Image.fromarray(pixels[index]).save(folder / f"{index:05d}.png")
    return folder
