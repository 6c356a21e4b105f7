"""What goes through Redis, on a real one."""

import base64
import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import redis
from celery import Celery
from sqlalchemy import Engine

from migrations.upgrade import upgrade
from models import db
from models.ledger import leases, rescue, scheduling
from qsit.errors import BrokerUnavailable
from tests.support.ledger import QUEUE, listed, pass_time, photos
from worker import dispatch
from worker.app import configuration


@pytest.fixture
def app(broker_url: str) -> Celery:
    app = Celery("test")
    app.conf.update(configuration() | {"broker_url": broker_url})
    return app


@pytest.fixture
def queue(broker_url: str) -> redis.Redis:
    path = broker_url.removeprefix("redis+socket://").split("?")[0]
    return redis.Redis(unix_socket_path=path)


def test_a_few_chunks_are_in_redis_as_compressed_json_with_their_uris(
    engine: Engine, app: Celery, queue: redis.Redis
) -> None:
    listed(engine, photos(5000))

    dispatch.top_up(engine, app, QUEUE, 60)
    dispatch.top_up(engine, app, QUEUE, 60)

    name = dispatch.queue_name(engine, QUEUE)
    assert queue.llen(name) == dispatch.AHEAD
    message = json.loads(queue.lindex(name, -1))
    assert message["content-type"] == "application/json"
    body = json.loads(zlib.decompress(base64.b64decode(message["body"])))
    chunk_id, uris = body[0]
    assert uris == [photo.uri for photo in photos(len(uris))]
    assert leases.claim(engine, chunk_id, QUEUE, "me:1:1.00", 60) is not None


def test_what_redis_does_not_take_is_queued_again(engine: Engine, tmp_path: Path) -> None:
    listed(engine, photos(3))
    away = Celery("test")
    away.conf.update(
        configuration()
        | {"broker_url": f"redis+socket://{tmp_path}/nobody?virtual_host=0", "task_publish_retry": False}
    )

    with pytest.raises(BrokerUnavailable, match="does not answer"):
        dispatch.top_up(engine, away, QUEUE, 60)

    assert len(scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)) == 1


def test_what_redis_has_lost_is_sent_again_after_a_while(engine: Engine, app: Celery, queue: redis.Redis) -> None:
    listed(engine, photos(5000))
    dispatch.top_up(engine, app, QUEUE, 60)
    name = dispatch.queue_name(engine, QUEUE)

    queue.delete(name)
    dispatch.top_up(engine, app, QUEUE, 60)
    assert queue.llen(name) == 0, "it may be on its way to a worker"
    pass_time(engine, rescue.DELIVERY_S + 1)
    dispatch.top_up(engine, app, QUEUE, 60)

    assert queue.llen(name) == dispatch.AHEAD


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), "is full"),
        (("REPLICAOF", "127.0.0.1", "1"), "takes no messages"),
        (("SET", "{queue}", "x"), "takes no messages"),
        (("CONFIG", "SET", "requirepass", "secret"), "does not answer"),
    ],
)
def test_whatever_redis_refuses_is_queued_again_and_told_once(
    engine: Engine, app: Celery, queue: redis.Redis, harm: tuple[str, ...], words: str
) -> None:
    listed(engine, photos(3))
    name = dispatch.queue_name(engine, QUEUE)
    queue.execute_command(*(word.format(queue=name) for word in harm))
    told: list[str] = []
    top_up = dispatch.topping_up(engine, app, QUEUE, 60, told.append)

    for _ in range(3):
        top_up()

    [line] = told
    assert words in line
    assert "nothing is lost" in line
    assert len(scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)) == 1


def test_each_ledger_has_queues_of_its_own(engine: Engine, tmp_path: Path) -> None:
    upgrade(f"sqlite:///{tmp_path}/other.db")
    other = db.connect(f"sqlite:///{tmp_path}/other.db")

    assert dispatch.queue_name(engine, QUEUE) != dispatch.queue_name(other, QUEUE)
    other.dispose()


def test_a_broker_that_answers_and_one_that_does_not(app: Celery, tmp_path: Path) -> None:
    dispatch.check_broker(app)

    away = Celery("test")
    away.conf.update(configuration() | {"broker_url": f"redis+socket://{tmp_path}/nobody?virtual_host=0"})
    with pytest.raises(BrokerUnavailable, match="set QSIT_BROKER_URL"):
        dispatch.check_broker(away)


def test_only_json_is_accepted() -> None:
    chosen = configuration()

    assert chosen["accept_content"] == ["json"]
    assert chosen["task_serializer"] == "json"


def test_importing_the_app_reads_no_settings_and_touches_no_server() -> None:
    code = "import os; os.environ['QSIT_LEASE_S'] = 'wrong'; import worker.app, worker.tasks"

    subprocess.run([sys.executable, "-c", code], check=True)
