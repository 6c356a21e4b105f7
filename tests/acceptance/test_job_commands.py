"""The commands that pause, resume, cancel, retry and prune jobs, with a fleet at work."""

import contextlib
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from migrations.upgrade import upgrade
from tests.support.paths import ROOT
from tests.support.programs import make_photos, run, started, until

BATCH_S = 0.5


@dataclass
class Fleet:
    """Commands on one ledger and queue."""

    database_url: str
    broker_url: str
    folder: Path

    @contextlib.contextmanager
    def worker(self, **variables: str) -> Iterator[None]:
        """Run a worker with the null model, whose batch takes half a second."""
        own = {"QSIT_MODEL": "demo", "QSIT_ROOTS": str(self.folder), "QSIT_DEVICE": "cpu", "NULL_BATCH_S": str(BATCH_S)}
        command = (sys.executable, "-m", "tests.support.null_worker")
        options = own | {"QSIT_BROKER_URL": self.broker_url} | variables
        with started(*command, database_url=self.database_url, log=self.folder / "log", cwd=ROOT, **options):
            yield

    def qsit(self, *arguments: str, check: int | None = 0) -> str:
        """Run a command and return its output."""
        options = {"QSIT_BROKER_URL": self.broker_url, "QSIT_MODEL": "demo"}
        done = run(*arguments, database_url=self.database_url, check=check, **options)
        return done.stdout + done.stderr

    def status(self, job: str) -> dict[str, Any]:
        row: dict[str, Any] = json.loads(self.qsit("status", job, "--format", "json"))
        return row


@pytest.fixture
def fleet(broker_url: str, tmp_path: Path) -> Fleet:
    url = f"sqlite:///{tmp_path}/qsit.db"
    upgrade(url)
    return Fleet(url, broker_url, tmp_path)


def test_pause_resume_and_cancel_take_effect_with_the_next_batch(fleet: Fleet) -> None:
    photos = make_photos(fleet.folder / "photos", 400)
    with fleet.worker(QSIT_BATCH_TOKENS="8192"):
        fleet.qsit("submit", str(photos), "--name", "long")
        until(lambda: fleet.status("long")["scored"] > 0)

        assert "qsit resume" in fleet.qsit("pause", "long")
        until(lambda: fleet.status("long")["running"] == 0)
        paused = fleet.status("long")
        assert paused["state"] == "paused"
        assert 0 < paused["scored"] < 400
        assert "paused" in paused["obstacles"][0]

        fleet.qsit("resume", "long")
        until(lambda: fleet.status("long")["scored"] > paused["scored"])

        fleet.qsit("cancel", "long")
        until(lambda: fleet.status("long")["running"] == 0)
        cancelled = fleet.status("long")
        assert cancelled["state"] == "cancelled"
        assert cancelled["scored"] < 400
        assert cancelled["scored"] + cancelled["cancelled"] == 400
        assert "cancelled" in fleet.qsit("wait", "long", check=1)

        # the workers are free for the next job, which has the rest
        assert f"{cancelled['cancelled']} scored" in fleet.qsit("submit", str(photos), "--name", "rest", "--wait")


def test_failed_photos_are_retried_by_reason(fleet: Fleet) -> None:
    photos = make_photos(fleet.folder / "photos", 4)
    with fleet.worker(QSIT_MAX_PIXELS="100"):
        assert "4 failed" in fleet.qsit("submit", str(photos), "--wait", check=3)
        assert "0 photos of job 1 queued again" in fleet.qsit("retry", "--reason", "corrupt")

    with fleet.worker():
        assert "4 photos of job 1 queued again" in fleet.qsit("retry", "--reason", "too_large")
        assert "4 scored" in fleet.qsit("wait")

    assert "8 rows" not in fleet.qsit("prune")
    assert "4 rows removed" in fleet.qsit("prune", "--older-than", "0")
    assert fleet.status("1")["scored"] == 4


def test_mistakes_end_in_one_line(fleet: Fleet) -> None:
    for command in ("pause", "resume", "cancel", "retry", "wait", "status"):
        assert "there is no job yet" in fleet.qsit(command, check=1)
        assert (
            fleet.qsit(command, "nobody", check=1) == "qsit: there is no job nobody; `qsit status` shows the latest\n"
        )
    assert "is not one of" in fleet.qsit("retry", "--reason", "bad luck", check=2)


def test_jobs_go_by_priority_and_those_of_the_same_priority_take_turns(fleet: Fleet) -> None:
    for number, priority in ((0, 0), (1, 0), (2, 5)):
        photos = make_photos(fleet.folder / str(number), 64)  # four chunks
        fleet.qsit("submit", str(photos), "--name", f"job {number}", "--priority", str(priority))
    with fleet.worker():
        for number in range(3):
            fleet.qsit("wait", f"job {number}")

    lines = fleet.qsit("results", "--sort", "-scored_at", "--format", "jsonl").splitlines()
    order = [json.loads(line)["job"] for line in lines if line.startswith("{")][::-1]
    turns = [(job, len(list(photos))) for job, photos in itertools.groupby(order)]
    assert turns[0] == (1, 32), "its first chunks were sent before another job existed"
    assert turns[1:] == [(3, 64), (2, 16), (1, 16), (2, 16), (1, 16), (2, 32)]
