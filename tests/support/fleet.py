"""A fleet whose programs are started again whenever they end, and can be killed."""

import contextlib
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from producer.private_run import broker_program
from tests.support.paths import ROOT
from tests.support.programs import environment, family, kill, until

KINDS = ("parent", "child", "broker", "emptied broker", "tree")
NULL_WORKER = (sys.executable, "-m", "tests.support.null_worker")
SETTINGS = {
    "QSIT_MODEL": "demo",
    "QSIT_DEVICE": "cpu",
    "QSIT_BATCH_TOKENS": "8192",
    "QSIT_LEASE_S": "3",
    "QSIT_DECODE_S": "1",
    "NULL_BATCH_S": "0.02",
}


class Service:
    """A program that is started again whenever it ends, as systemd does."""

    def __init__(self, command: Sequence[str], variables: dict[str, str], log: Path) -> None:
        self._command, self._variables, self._log = command, variables, log
        self._stopping = False
        self.process = self._start()
        self._watch = threading.Thread(target=self._restart, daemon=True)
        self._watch.start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as output:
            return subprocess.Popen(
                self._command, env=self._variables, stdout=output, stderr=output, cwd=ROOT, start_new_session=True
            )

    def _restart(self) -> None:
        while not self._stopping:
            if self.process.poll() is not None:
                time.sleep(0.2)
                self.process = self._start()
            time.sleep(0.02)

    def release(self) -> None:
        """Let it end for good."""
        self._stopping = True
        self._watch.join()

    def stop(self) -> int:
        """Send SIGTERM, and return the exit status."""
        self.release()
        self.process.terminate()
        return self.process.wait(60)


@dataclass
class Fleet:
    """A broker and its workers."""

    database_url: str
    broker: Service
    workers: list[Service]
    broker_folder: Path

    def kill(self, kind: str, chance: random.Random) -> None:
        """Send SIGKILL to a process of this kind, as soon as one lives."""
        until(lambda: self._kill(kind, chance), timeout_s=60)

    def _kill(self, kind: str, chance: random.Random) -> bool:
        with contextlib.suppress(psutil.Error):
            if "broker" in kind:
                return self._kill_broker(empty=kind == "emptied broker")
            parent = psutil.Process(chance.choice(self.workers).process.pid)
            if not _lives(parent):
                return False
            if kind == "parent":
                parent.kill()
                return True
            if kind == "child":
                children = [child for child in parent.children() if "spawn_main" in " ".join(child.cmdline())]
                living = [child for child in children if _lives(child)]
                kill(living[:1])
                return bool(living)
            kill([*parent.children(recursive=True), parent])
            return True
        return False

    def _kill_broker(self, *, empty: bool) -> bool:
        broker = psutil.Process(self.broker.process.pid)
        if not _lives(broker):
            return False
        if empty:
            shutil.rmtree(self.broker_folder / "appendonlydir", ignore_errors=True)
        broker.kill()
        return True


def _lives(process: psutil.Process) -> bool:
    return process.status() != psutil.STATUS_ZOMBIE


@contextlib.contextmanager
def fleet(
    database_url: str, roots: Path, workers: int, logs: Path, program: Sequence[str] = NULL_WORKER, **settings: str
) -> Iterator[Fleet]:
    """Run a fleet whose programs are started again whenever they end. At the end, none of its processes is left."""
    folder = Path(environment(database_url, {})["TMPDIR"]) / "broker"
    folder.mkdir(exist_ok=True)
    variables = environment(database_url, broker_of(folder) | SETTINGS | {"QSIT_ROOTS": str(roots)} | settings)
    command = [
        broker_program(),
        "--port",
        "0",
        "--unixsocket",
        str(folder / "s"),
        "--dir",
        str(folder),
        "--save",
        "",
        "--appendonly",
        "yes",
    ]
    services = [Service(command, variables, logs / "broker.log")]
    try:
        until((folder / "s").exists)
        services += [Service(program, variables, logs / f"worker{number}.log") for number in range(workers)]
        yield Fleet(database_url, services[0], services[1:], folder)
    finally:
        for service in services:
            service.release()
        kill(family(database_url))
        for service in services:
            service.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def broker_of(folder: Path) -> dict[str, str]:
    """Return the setting for the broker in a folder."""
    return {"QSIT_BROKER_URL": f"redis+socket://{folder / 's'}?virtual_host=0"}
