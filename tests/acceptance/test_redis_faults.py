"""What Redis can do to a running fleet: it stops, says why once, and goes on; nothing is lost or done twice."""

import contextlib
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from sqlalchemy import func, select

from models import db
from models.tables import ItemRow
from producer.private_run import broker_program
from tests.support.paths import EXAMPLES
from tests.support.programs import QSIT, SLOW_MODEL, family, make_photos, run, started, until

PHOTO_COUNT = 64


class Server:
    """A Valkey that can be hurt."""

    def __init__(self) -> None:
        self.folder = Path("/tmp") / f"qsit-vk-{uuid.uuid4().hex[:8]}"
        self.folder.mkdir(mode=0o700)
        self.socket = self.folder / "s"
        self.url = f"redis+socket://{self.socket}?virtual_host=0"
        self.client = redis.Redis(unix_socket_path=str(self.socket))
        self.start()

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        command = [broker_program(), "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)]
        self.process = subprocess.Popen([*command, "--save", ""], stdout=subprocess.DEVNULL)
        until(self.socket.exists)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.kill()
    server.client.close()
    for left in server.folder.iterdir():
        left.unlink()
    server.folder.rmdir()


@dataclass
class Fleet:
    """One worker, and its log."""

    server: Server
    database_url: str
    variables: dict[str, str]
    top: Path
    log: Path
    process: "subprocess.Popen[bytes]"


@pytest.fixture(scope="module")
def fleet(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
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
    """A job that a fleet is in the middle of."""

    fleet: Fleet
    folder: Path
    number: str
    before: int  # length of the log

    def log(self) -> str:
        return self.fleet.log.read_text()[self.before :]

    def status(self) -> str:
        return run("status", database_url=self.fleet.database_url).stdout

    def says(self, words: str) -> None:
        """The worker says so, in its log once, and in `qsit status`."""
        until(lambda: words in self.log())
        until(lambda: words in self.status())
        lines = [line for line in self.log().splitlines() if words in line and "MainProcess" not in line]
        assert len(lines) == 1, lines

    def finishes(self) -> None:
        """Every photo has been scored once, and the worker has nothing more to say."""
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
        assert len(troubles) == len(set(troubles)), "each is said once"


@pytest.fixture
def night(fleet: Fleet) -> Night:
    folder = make_photos(fleet.top / uuid.uuid4().hex, PHOTO_COUNT)
    before = len(fleet.log.read_text())
    number = run("submit", str(folder), database_url=fleet.database_url, **fleet.variables).stdout.strip()
    night = Night(fleet, folder, number, before)
    until(lambda: "received" in night.log())
    return night


def test_a_restart(night: Night, server: Server) -> None:
    server.kill()
    server.start()

    night.finishes()


def test_an_absence(night: Night, server: Server) -> None:
    server.kill()
    night.says("does not answer")

    server.start()

    night.finishes()


def test_being_emptied(night: Night, server: Server) -> None:
    server.client.flushall()

    night.finishes()


def test_being_full(night: Night, fleet: Fleet, server: Server) -> None:
    server.client.config_set("maxmemory", 1)
    night.says("is full")
    submitted = run(
        "submit", str(night.folder), "--rescore", database_url=fleet.database_url, **fleet.variables
    )  # fmt: skip
    [warning] = submitted.stderr.splitlines()
    assert "is full" in warning
    assert "nothing is lost" in warning

    server.client.config_set("maxmemory", 0)

    night.finishes()
    assert f"{PHOTO_COUNT} scored" in run("wait", submitted.stdout.strip(), database_url=fleet.database_url).stderr


def test_hanging(night: Night, server: Server) -> None:
    server.signal(signal.SIGSTOP)
    night.says("does not answer")

    server.signal(signal.SIGCONT)

    night.finishes()


def test_becoming_a_replica(night: Night, server: Server) -> None:
    server.client.replicaof("127.0.0.1", "1")
    night.says("takes no messages")
    until(lambda: "ReadOnlyError" in night.log())

    server.client.replicaof("NO", "ONE")

    night.finishes()


def test_two_complaints_stand_side_by_side(night: Night, fleet: Fleet, server: Server) -> None:
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


def test_what_is_no_message_is_dropped(night: Night, server: Server) -> None:
    [name] = [name for name in server.client.scan_iter() if name.startswith(b"qsit.")]
    for garbage in (b"no json", b"[]", b"{}", b'{"body": 1}', b'{"properties": 3, "body": "x"}', b"\xff"):
        server.client.rpush(name, garbage)

    night.finishes()


def test_a_worker_ends_in_order_while_redis_is_away(night: Night, fleet: Fleet, server: Server) -> None:
    server.kill()
    night.says("does not answer")

    fleet.process.terminate()
    ended = fleet.process.wait(90)
    server.start()

    assert ended == 0
    assert "Traceback" not in night.log()
    until(lambda: family(fleet.database_url) == [], timeout_s=10)  # its helpers end once they see that it has


def test_a_kill_in_the_middle_of_a_listing_leaves_the_listing_whole(server: Server, tmp_path: Path) -> None:
    database_url = f"sqlite:///{tmp_path}/qsit.db"
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20_000):
        (folder / f"{number}.jpg").touch()
    run("db", "upgrade", database_url=database_url)
    engine = db.connect(database_url)

    def listed() -> int:
        with db.reading(engine) as connection:
            return connection.execute(select(func.count()).select_from(ItemRow)).scalar_one()

    log = tmp_path / "log"
    variables = {"QSIT_BROKER_URL": server.url}
    with started(
        QSIT, "submit", str(folder), "--model", "demo", database_url=database_url, log=log, **variables
    ) as one:
        while not listed() and one.poll() is None:
            time.sleep(0.001)
        server.kill()
        assert one.wait(120) == 0
    server.start()

    assert listed() == 20_000
    [warning, job] = log.read_text().splitlines()
    assert "does not answer" in warning
    assert job == "1"
    status = json.loads(run("status", "--format", "json", database_url=database_url).stdout)
    assert (status["listing_complete"], status["queued"]) == (True, 20_000)
    engine.dispose()


def test_two_ledgers_share_one_redis(server: Server, tmp_path: Path) -> None:
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
        assert log.read_text().count("received") == chunks, "each fleet has had its own messages"
