"""What a test of a fleet's faults starts from: a ledger, a broker, photos, and workers that need no PyTorch."""

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import Engine, func, select

from models import db
from models.tables import ChunkRow, ItemRow, JobRow, ScoreRow
from qsit.states import ChunkState, ItemState, JobState, Quarantine
from tests.support.chaos import twice
from tests.support.fleet import NULL_WORKER
from tests.support.paths import ROOT
from tests.support.programs import run, started, until


@dataclass
class Stage:
    """A ledger, a broker, a folder of photos, and the settings of a worker."""

    url: str
    engine: Engine
    photos: Path
    scratch: Path
    variables: dict[str, str]

    def submit(self, *options: str, check: int | None = 0) -> "subprocess.CompletedProcess[str]":
        return run("submit", str(self.photos), *options, database_url=self.url, check=check, **self.variables)

    @contextmanager
    def worker(self, name: str, **settings: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Start a worker, and wait until it has loaded its model."""
        with started(
            *NULL_WORKER, database_url=self.url, log=self.log(name), cwd=ROOT, **self.variables | settings
        ) as process:
            until(lambda: "loaded on cpu" in self.log(name).read_text())
            yield process

    def log(self, name: str) -> Path:
        return self.scratch / f"{name}.log"

    def turns(self, worker: str) -> int:
        """How many tasks a worker has finished."""
        return len(re.findall(r"Task qsit\.score_chunk\S+ succeeded", self.log(worker).read_text()))

    def jobs(self) -> list[str]:
        with db.reading(self.engine) as connection:
            return list(connection.execute(select(JobRow.state).order_by(JobRow.id)).scalars())

    def chunks(self, state: ChunkState) -> int:
        return self.count(select(func.count()).select_from(ChunkRow).where(ChunkRow.state == state))

    def count(self, query: "object") -> int:
        with db.reading(self.engine) as connection:
            return int(connection.execute(query).scalar() or 0)  # type: ignore[call-overload]

    def is_in_flight(self) -> bool:
        return self.count(select(func.count()).where(ItemRow.quarantine == Quarantine.IN_FLIGHT)) > 0

    def check_done_once(self, photos: int, jobs: int = 1) -> None:
        """Check that every job is finished, each of its photos scored, and no score or item written twice."""
        assert self.jobs() == [JobState.FINISHED] * jobs
        assert self.count(select(func.count()).select_from(ScoreRow)) == photos
        scored = select(func.count()).select_from(ItemRow).where(ItemRow.state == ItemState.SCORED)
        assert self.count(scored) == self.count(select(func.count()).select_from(ItemRow)) == photos * jobs
        assert self.count(select(func.sum(ChunkRow.scored))) == photos * jobs
        assert twice(self.engine) == []


def send(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """Send a signal to a worker and all its processes."""
    parent = psutil.Process(process.pid)
    for member in [parent, *parent.children(recursive=True)]:
        member.send_signal(number)
