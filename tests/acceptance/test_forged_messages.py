"""Whoever can write to Redis, or even to the ledger, cannot make a worker do anything but its work."""

import http.server
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from celery import Celery
from sqlalchemy import Engine, func, select, update

from migrations.upgrade import upgrade
from models import db
from models.claims import QueueKey
from models.ledger import jobs, listing
from models.ledger.jobs import JobSpec
from models.tables import ChunkRow, ImageRow, ItemRow, JobRow
from qsit import checkpoints
from qsit.rating import UPRIGHT
from qsit.sources.photo import ListedPhoto
from qsit.states import ItemState, JobState
from tests.support.programs import QSIT, make_photos, run, started, until
from tests.support.servers import valkey
from worker import dispatch

SECRET = Path("/etc/passwd")


@dataclass
class Fleet:
    """One worker, and what an attacker needs."""

    engine: Engine
    database_url: str
    broker_url: str
    folder: Path
    log: Path
    revision: str
    numbers: Iterator[int]

    def send(self, *arguments: object, queue: str | None = None, **options: object) -> None:
        """Send a message that no program of ours would send."""
        app = Celery("stranger", broker=self.broker_url)
        with app.connection_for_write() as connection:
            own = dispatch.queue_name(self.engine, QueueKey("demo", self.revision))
            app.send_task(dispatch.TASK, args=list(arguments), queue=queue or own, connection=connection, **options)

    def job(
        self,
        uri: str,
        *,
        version: str = "1-1",
        model: str = "demo",
        private: bool = False,
        state: JobState = JobState.ACTIVE,
    ) -> int:
        """Add a job with this URI to the ledger, and return the id of its only chunk."""
        spec = JobSpec(f"job {next(self.numbers)}", None, model, self.revision, UPRIGHT, private=private)
        opened = jobs.open_job(self.engine, spec)
        listing.begin_listing(self.engine, opened.id)
        if state is not JobState.ACTIVE:
            self._set(opened.id, JobState.PAUSED)  # before the worker claims it
        listing.add_images(self.engine, opened.id, [ListedPhoto(uri, version)])
        listing.end_listing(self.engine, opened.id)
        if state is not JobState.ACTIVE:
            self._set(opened.id, state)
        with db.reading(self.engine) as connection:
            return connection.execute(select(ChunkRow.id).where(ChunkRow.job_id == opened.id)).scalar_one()

    def _set(self, job_id: int, state: JobState) -> None:
        with db.writing(self.engine) as connection:
            connection.execute(update(JobRow).where(JobRow.id == job_id).values(state=state))

    def untouched(self, chunk_id: int) -> bool:
        """Whether no item of a chunk is scored or failed."""
        with db.reading(self.engine) as connection:
            states = connection.execute(select(ItemRow.state).where(ItemRow.chunk_id == chunk_id)).scalars().all()
        return set(states) <= {ItemState.QUEUED, ItemState.CANCELLED}

    def does_honest_work(self) -> None:
        """Check that the worker lives, and has processed every message before this one."""
        photo = self.folder / f"{next(self.numbers)}.png"
        next(make_photos(self.folder / "new", 1).iterdir()).rename(photo)
        options = {"QSIT_BROKER_URL": self.broker_url, "QSIT_MODEL": "demo"}
        done = run("submit", str(photo), "--wait", database_url=self.database_url, **options)
        assert "1 photo: 1 scored" in done.stderr


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    top = tmp_path_factory.mktemp("fleet")
    database_url, log, folder = f"sqlite:///{top}/qsit.db", top / "log", top / "photos"
    folder.mkdir()
    upgrade(database_url)
    revision = checkpoints.resolve("demo")
    with valkey() as broker_url:
        variables = {"QSIT_BROKER_URL": broker_url, "QSIT_MODEL": "demo", "QSIT_ROOTS": str(folder)}
        with started(QSIT, "worker", database_url=database_url, log=log, **variables):
            until(lambda: "loaded on cpu" in log.read_text())
            engine = db.connect(database_url)
            yield Fleet(engine, database_url, broker_url, folder, log, revision, itertools.count(1))
            engine.dispose()


def test_a_chunk_of_another_model_is_not_taken(fleet: Fleet) -> None:
    chunk_id = fleet.job((fleet.folder / "a.png").as_uri(), model="other/model")

    fleet.send(chunk_id, [])
    fleet.does_honest_work()

    assert fleet.untouched(chunk_id)


def test_a_chunk_of_a_private_job_is_not_taken(fleet: Fleet) -> None:
    chunk_id = fleet.job((fleet.folder / "a.png").as_uri(), private=True)

    fleet.send(chunk_id, [])
    fleet.does_honest_work()

    assert fleet.untouched(chunk_id)


@pytest.mark.parametrize("state", [JobState.PAUSED, JobState.CANCELLED])
def test_a_chunk_of_a_job_that_is_not_active_is_not_taken(fleet: Fleet, state: JobState) -> None:
    chunk_id = fleet.job((fleet.folder / "a.png").as_uri(), state=state)

    fleet.send(chunk_id, [])
    fleet.does_honest_work()

    assert fleet.untouched(chunk_id)


def test_the_uris_of_a_message_are_not_opened(fleet: Fleet) -> None:
    photo = next(make_photos(fleet.folder / "honest", 1).iterdir())
    chunk_id = fleet.job(photo.as_uri(), version=f"{photo.stat().st_size}-{photo.stat().st_mtime_ns}")

    fleet.send(chunk_id, [SECRET.as_uri(), "http://127.0.0.1:1/x.jpg"])
    fleet.does_honest_work()

    until(lambda: not fleet.untouched(chunk_id))
    with db.reading(fleet.engine) as connection:
        query = (
            select(ImageRow.uri, ItemRow.state)
            .join(ItemRow, ItemRow.image_id == ImageRow.id)
            .where(ItemRow.chunk_id == chunk_id)
        )
        assert connection.execute(query).all() == [(photo.as_uri(), ItemState.SCORED)]
        strange = select(func.count()).select_from(ImageRow).where(ImageRow.uri == SECRET.as_uri())
        assert connection.execute(strange).scalar_one() == 0


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/passwd",
        "file://{folder}/../../../../../../etc/passwd",
        "file://{folder}/%2E%2E/%2e%2e/etc/passwd",
        "file:/etc/passwd",
        "/etc/passwd",
        "http://{listener}/a.jpg",
        "s3://bucket/a.jpg",
        "s3://",
        "",
    ],
)
def test_what_is_outside_the_roots_is_not_opened_even_if_the_ledger_names_it(fleet: Fleet, uri: str) -> None:
    asked: list[str] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    with http.server.HTTPServer(("127.0.0.1", 0), Listener) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        chunk_id = fleet.job(uri.format(folder=fleet.folder, listener=f"127.0.0.1:{listener.server_port}"))
        fleet.send(chunk_id, [])
        fleet.does_honest_work()
        listener.shutdown()

    assert asked == []
    assert fleet.untouched(chunk_id)
    with db.writing(fleet.engine) as connection:
        job = select(ChunkRow.job_id).where(ChunkRow.id == chunk_id).scalar_subquery()
        connection.execute(update(JobRow).where(JobRow.id == job).values(state=JobState.CANCELLED))


@pytest.mark.parametrize(
    "arguments",
    [(), (1,), (1, 2, 3), ("x", []), (None, []), (2**80, []), (-1, []), ({"$ne": 0}, []), ("1; DROP TABLE jobs", [])],
)
def test_a_message_with_other_arguments_does_no_harm(fleet: Fleet, arguments: tuple[object, ...]) -> None:
    fleet.send(*arguments)
    fleet.does_honest_work()


def test_a_message_cannot_make_a_worker_send_another_one(fleet: Fleet) -> None:
    forged = Celery("stranger").signature(dispatch.TASK, args=[1], queue="trap")

    fleet.send(1, link=forged)
    fleet.does_honest_work()

    path = fleet.broker_url.removeprefix("redis+socket://").split("?")[0]
    with redis.Redis(unix_socket_path=path) as client:
        assert client.llen("trap") == 0


def test_a_pickle_is_not_loaded(fleet: Fleet, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    app = Celery("stranger", broker=fleet.broker_url, task_serializer="pickle")
    app.conf.accept_content = ["pickle", "json"]
    app.send_task(
        dispatch.TASK, args=[Trap(), []], queue=dispatch.queue_name(fleet.engine, QueueKey("demo", fleet.revision))
    )
    fleet.does_honest_work()

    assert not (tmp_path / "sprung").exists()
