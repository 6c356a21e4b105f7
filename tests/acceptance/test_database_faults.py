"""A database that fails under workers and waiting commands: they say so once, wait, and continue by themselves."""

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
from tests.conftest import create_database
from tests.support.paths import ROOT
from tests.support.programs import QSIT, family, make_photos, named, run, started, until
from tests.support.servers import postgres_server

PHOTOS = 300
AWAY_S = 10.0


@pytest.fixture
def empty_postgres(postgres: str) -> str:
    """The URL of a database without a schema."""
    return create_database(postgres, f"t{uuid.uuid4().hex[:12]}")


@dataclass
class Fleet:
    """A worker with the null model, a running job, and a command that waits for it."""

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
        """Check that the same processes score each photo once and finish the job."""
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
    """Start a fleet that has scored some photos and needs seconds for the others."""
    upgrade(database_url)
    photos = make_photos(folder / "photos", PHOTOS)
    variables = {
        "QSIT_BROKER_URL": broker_url,
        "QSIT_MODEL": "demo",
        "QSIT_ROOTS": str(photos),
        "QSIT_DEVICE": "cpu",
        "NULL_BATCH_S": "0.4",
    }
    worker = (sys.executable, "-m", "tests.support.null_worker")
    submit = (QSIT, "submit", str(photos), "--wait")
    log, wait_log = folder / "worker.log", folder / "wait.log"
    with (
        started(*worker, database_url=database_url, log=log, cwd=ROOT, **variables),
        started(*submit, database_url=database_url, log=wait_log, **variables) as waiting,
    ):
        fleet = Fleet(database_url, log, waiting, wait_log)
        until(lambda: fleet.scored() >= 16)
        yield fleet


def test_postgresql_is_gone_for_ten_seconds(broker_url: str, tmp_path: Path) -> None:
    with postgres_server() as server, in_work(server.get_uri(), broker_url, tmp_path) as fleet:
        before = fleet.workers()
        server.stop()
        time.sleep(AWAY_S)
        server.start()
        fleet.finishes()
        assert fleet.workers() == before, "no process was started again"
        # once for each reason: it is gone, it is starting up
        assert 1 <= fleet.wait_log.read_text().count("waiting until it answers") <= 4
        assert 1 <= fleet.log.read_text().count("trying again until it works") <= 4


def test_a_worker_that_may_not_write_fails_no_photo(empty_postgres: str, broker_url: str, tmp_path: Path) -> None:
    with in_work(empty_postgres, broker_url, tmp_path) as fleet:
        with psycopg.connect(empty_postgres, autocommit=True) as connection:
            connection.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'not you' USING ERRCODE = '42501'; END $$"
            )
            connection.execute("CREATE TRIGGER refuse BEFORE INSERT ON scores EXECUTE FUNCTION refuse()")
            until(lambda: "not you" in run("status", database_url=fleet.database_url).stdout)
            time.sleep(AWAY_S)
            connection.execute("DROP TRIGGER refuse ON scores")
        fleet.finishes()


def test_sqlite_is_locked_for_longer_than_one_attempt_waits(broker_url: str, tmp_path: Path) -> None:
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
        full = (4096, resource.RLIM_INFINITY)  # files cannot grow beyond that, as on a full disk
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
    with postgres_server() as server, in_work(server.get_uri(), broker_url, tmp_path) as fleet:
        server.stop()
        until(lambda: "waiting until it answers" in fleet.wait_log.read_text())
        fleet.waiting.terminate()
        assert fleet.waiting.wait(30) == 143
        (parent,) = named(fleet.database_url, "tests.support.null_worker")
        parent.terminate()
        until(lambda: not parent.is_running() or parent.status() == psutil.STATUS_ZOMBIE, 60)
        assert "Traceback" not in fleet.wait_log.read_text() + fleet.log.read_text()


def test_a_table_that_is_missing_is_not_waited_for(database_url: str) -> None:
    engine = db.connect(database_url, create=True)
    with pytest.raises(DatabaseError) as raised, db.reading(engine) as connection:
        connection.execute(select(ScoreRow.image_id))
    engine.dispose()
    assert not isinstance(raised.value, DatabaseUnavailable)


def test_connections_that_the_server_closed_are_replaced(empty_postgres: str) -> None:
    engine = db.connect(empty_postgres)
    with db.reading(engine) as connection:
        idle = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with psycopg.connect(empty_postgres, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 10000)", [idle])

    with db.reading(engine) as connection:
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() != idle
    engine.dispose()
