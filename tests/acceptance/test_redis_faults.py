"""Faults of Redis under a running fleet: it waits, says why once, and continues; nothing is lost or done twice."""

import contextlib
import json
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import func, select

from models import db
from models.tables import ItemRow
from tests.support.paths import EXAMPLES
from tests.support.programs import QSIT, SLOW_MODEL, family, make_photos, run, started, until
from tests.support.servers import Valkey

PHOTO_COUNT = 64


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with contextlib.closing(Valkey()) as server:
        yield server


@dataclass
class Fleet:
    """A worker and its log."""

    server: Valkey
    database_url: str
    variables: dict[str, str]
    top: Path
    log: Path
    process: "subprocess.Popen[bytes]"


@pytest.fixture(scope="module")
def fleet(server: Valkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    top = tmp_path_factory.mktemp("fleet")
    database_url, log = f"sqlite:///{top}/qsit.db", top / "log"
    variables = {"QSIT_BROKER_URL": server.url, "QSIT_MODEL": SLOW_MODEL, "QSIT_ROOTS": str(top)}
    slowly = {"QSIT_BATCH_TOKENS": "1000", "OMP_NUM_THREADS": "1"}
    run("db", "upgrade", database_url=database_url)
    with started(QSIT, "worker", database_url=database_url, log=log, **variables, **slowly) as worker:
        until(lambda: "loaded on cpu" in log.read_text())
        yield Fleet(server, database_url, variables, top, log, worker)


@dataclass
class Night:
    """A job that a fleet is scoring."""

    fleet: Fleet
    folder: Path
    number: str
    before: int  # length of the log

    def log(self) -> str:
        return self.fleet.log.read_text()[self.before :]

    def status(self) -> str:
        return run("status", database_url=self.fleet.database_url).stdout

    def says(self, words: str) -> None:
        """Wait until the worker says so in `qsit status`, and check that its log has it once."""
        until(lambda: words in self.log())
        until(lambda: words in self.status())
        lines = [line for line in self.log().splitlines() if words in line and "MainProcess" not in line]
        assert len(lines) == 1, lines

    def finishes(self) -> None:
        """Check that every photo is scored once and that the worker no longer complains of Redis."""
        waited = run("wait", self.number, database_url=self.fleet.database_url)
        assert f"{PHOTO_COUNT} photos: {PHOTO_COUNT} scored" in waited.stderr
        engine = db.connect(self.fleet.database_url)
        with db.reading(engine) as connection:
            items = (
                select(ItemRow.state, func.count()).where(ItemRow.job_id == int(self.number)).group_by(ItemRow.state)
            )
            assert connection.execute(items).all() == [("scored", PHOTO_COUNT)]
        engine.dispose()
        until(lambda: "Redis at" not in self.status())
        assert "Traceback" not in self.log()
        assert "PendingDeprecation" not in self.log()
        troubles = [
            line.partition("] ")[2]
            for line in self.log().splitlines()
            if "Connection to broker lost" in line or "Cannot connect" in line
        ]
        assert len(troubles) == len(set(troubles)), "each is logged once"


@pytest.fixture
def night(fleet: Fleet) -> Night:
    folder = make_photos(fleet.top / uuid.uuid4().hex, PHOTO_COUNT)
    before = len(fleet.log.read_text())
    number = run("submit", str(folder), database_url=fleet.database_url, **fleet.variables).stdout.strip()
    night = Night(fleet, folder, number, before)
    until(lambda: "received" in night.log())
    return night


def test_a_restart(night: Night, server: Valkey) -> None:
    server.kill()
    server.start()

    night.finishes()


def test_an_absence(night: Night, server: Valkey) -> None:
    server.kill()
    night.says("does not answer")

    server.start()

    night.finishes()


def test_being_emptied(night: Night, server: Valkey) -> None:
    server.client.flushall()

    night.finishes()


def test_being_full(night: Night, fleet: Fleet, server: Valkey) -> None:
    server.client.config_set("maxmemory", 1)
    night.says("is full")
    rescore = ("submit", str(night.folder), "--rescore")
    submitted = run(*rescore, database_url=fleet.database_url, **fleet.variables)
    [warning] = submitted.stderr.splitlines()
    assert "is full" in warning
    assert "nothing is lost" in warning

    server.client.config_set("maxmemory", 0)

    night.finishes()
    assert f"{PHOTO_COUNT} scored" in run("wait", submitted.stdout.strip(), database_url=fleet.database_url).stderr


def test_hanging(night: Night, server: Valkey) -> None:
    server.signal(signal.SIGSTOP)
    night.says("does not answer")

    server.signal(signal.SIGCONT)

    night.finishes()


def test_becoming_a_replica(night: Night, server: Valkey) -> None:
    server.client.replicaof("127.0.0.1", "1")
    night.says("takes no messages")
    until(lambda: "ReadOnlyError" in night.log())

    server.client.replicaof("NO", "ONE")

    night.finishes()


def test_two_complaints_are_shown_at_once(night: Night, fleet: Fleet, server: Valkey) -> None:
    outside = "under none of this worker's roots"
    night.finishes()
    run("submit", str(EXAMPLES), "--name", "outside", database_url=fleet.database_url, **fleet.variables)
    night.says(outside)
    server.kill()
    night.says("does not answer")
    assert outside in night.status()

    server.start()

    until(lambda: "does not answer" not in night.status())
    assert outside in night.status()
    run("cancel", "outside", database_url=fleet.database_url)


def test_garbage_in_the_queue_is_dropped(night: Night, server: Valkey) -> None:
    [name] = [name for name in server.client.scan_iter() if name.startswith(b"qsit.")]
    for garbage in (b"no json", b"[]", b"{}", b'{"body": 1}', b'{"properties": 3, "body": "x"}', b"\xff"):
        server.client.rpush(name, garbage)

    night.finishes()


def test_a_worker_ends_in_order_while_redis_is_away(night: Night, fleet: Fleet, server: Valkey) -> None:
    server.kill()
    night.says("does not answer")

    fleet.process.terminate()
    ended = fleet.process.wait(90)
    server.start()

    assert ended == 0
    assert "Traceback" not in night.log()
    until(lambda: family(fleet.database_url) == [], timeout_s=10)  # its decoders end once they see that it has


def test_a_listing_is_whole_though_redis_dies_meanwhile(server: Valkey, tmp_path: Path) -> None:
    database_url = f"sqlite:///{tmp_path}/qsit.db"
    folder, pipe, log = tmp_path / "photos", tmp_path / "pipe", tmp_path / "log"
    paths = [folder / f"{number}.jpg" for number in range(20_000)]
    folder.mkdir()
    for path in paths:
        path.touch()
    os.mkfifo(pipe)
    run("db", "upgrade", database_url=database_url)

    command = (QSIT, "submit", "--files-from", str(pipe), "--model", "demo")
    with started(*command, database_url=database_url, log=log, QSIT_BROKER_URL=server.url) as submit:
        with pipe.open("w") as lines:  # opens when the command reads it, which is after its check of Redis
            server.kill()
            lines.writelines(f"{path}\n" for path in paths)
        assert submit.wait(120) == 0
    server.start()

    [warning, job] = log.read_text().splitlines()
    assert "does not answer" in warning
    assert job == "1"
    status = json.loads(run("status", "--format", "json", database_url=database_url).stdout)
    assert (status["listing_complete"], status["queued"]) == (True, 20_000)


def test_two_ledgers_share_one_redis(server: Valkey, tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 40)
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("one", "other")]
    variables = {"QSIT_BROKER_URL": server.url, "QSIT_MODEL": "demo", "QSIT_ROOTS": str(folder)}
    logs = [tmp_path / "one.log", tmp_path / "other.log"]
    for url in urls:
        run("db", "upgrade", database_url=url)

    with contextlib.ExitStack() as stack:
        for url, log in zip(urls, logs, strict=True):
            stack.enter_context(started(QSIT, "worker", database_url=url, log=log, **variables))
        until(lambda: all("loaded on cpu" in log.read_text() for log in logs))
        for url in urls:
            run("submit", str(folder), database_url=url, **variables)
        for url in urls:
            assert "40 scored" in run("wait", database_url=url).stderr

    for url, log in zip(urls, logs, strict=True):
        engine = db.connect(url)
        with db.reading(engine) as connection:
            chunks = connection.exec_driver_sql("SELECT count(*) FROM chunks").scalar_one()
        engine.dispose()
        assert log.read_text().count("received") == chunks, "each fleet received only its own messages"
