"""What goes through Redis, with a real server."""

import json
import subprocess
import sys
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
from worker import consumer, dispatch
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


def test_a_few_chunks_are_in_redis_as_json(engine: Engine, app: Celery, queue: redis.Redis) -> None:
    listed(engine, photos(5000))

    dispatch.top_up(engine, app, QUEUE, 60)
    dispatch.top_up(engine, app, QUEUE, 60)

    name = dispatch.queue_name(engine, QUEUE)
    assert queue.llen(name) == dispatch.CHUNKS_AHEAD
    message = json.loads(queue.lindex(name, -1))
    assert message["content-type"] == "application/json"
    chunk_id = consumer.read_chunk_id(queue.lindex(name, -1))
    assert leases.claim(engine, chunk_id, QUEUE, "me:1:1.00", 60) is not None


def test_what_redis_does_not_accept_is_queued_again(engine: Engine, tmp_path: Path) -> None:
    listed(engine, photos(3))
    away = Celery("test")
    away.conf.update(
        configuration()
        | {"broker_url": f"redis+socket://{tmp_path}/nobody?virtual_host=0", "task_publish_retry": False}
    )

    with pytest.raises(BrokerUnavailable, match="does not answer"):
        dispatch.top_up(engine, away, QUEUE, 60)

    assert len(scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)) == 1


def test_what_redis_lost_is_sent_again_after_a_while(engine: Engine, app: Celery, queue: redis.Redis) -> None:
    listed(engine, photos(5000))
    dispatch.top_up(engine, app, QUEUE, 60)
    name = dispatch.queue_name(engine, QUEUE)

    queue.delete(name)
    dispatch.top_up(engine, app, QUEUE, 60)
    assert queue.llen(name) == 0, "the messages may be on their way to a worker"
    pass_time(engine, rescue.DELIVERY_S + 1)
    dispatch.top_up(engine, app, QUEUE, 60)

    assert queue.llen(name) == dispatch.CHUNKS_AHEAD


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), "is full"),
        (("REPLICAOF", "127.0.0.1", "1"), "takes no messages"),
        (("SET", "{queue}", "x"), "takes no messages"),
        (("CONFIG", "SET", "requirepass", "secret"), "does not answer"),
    ],
)
def test_whatever_redis_refuses_is_queued_again_and_reported_once(
    engine: Engine, app: Celery, queue: redis.Redis, harm: tuple[str, ...], words: str
) -> None:
    listed(engine, photos(3))
    name = dispatch.queue_name(engine, QUEUE)
    queue.execute_command(*(word.format(queue=name) for word in harm))
    reported: list[str] = []
    top_up = dispatch.BestEffortTopUp(engine, app, QUEUE, 60, reported.append)

    for _ in range(3):
        top_up()

    [line] = reported
    assert words in line
    assert "nothing is lost" in line
    assert len(scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)) == 1


def test_each_ledger_has_its_own_queues(engine: Engine, tmp_path: Path) -> None:
    upgrade(f"sqlite:///{tmp_path}/other.db")
    other = db.connect(f"sqlite:///{tmp_path}/other.db")

    assert dispatch.queue_name(engine, QUEUE) != dispatch.queue_name(other, QUEUE)
    other.dispose()


def test_a_broker_that_does_not_answer_is_refused(app: Celery, tmp_path: Path) -> None:
    dispatch.check_broker(app)

    away = Celery("test")
    away.conf.update(configuration() | {"broker_url": f"redis+socket://{tmp_path}/nobody?virtual_host=0"})
    with pytest.raises(BrokerUnavailable, match="set QSIT_BROKER_URL"):
        dispatch.check_broker(away)


def test_only_json_is_accepted() -> None:
    chosen = configuration()

    assert chosen["accept_content"] == ["json"]
    assert chosen["task_serializer"] == "json"


def test_importing_the_app_reads_no_settings_and_loads_nothing_of_the_worker() -> None:
    code = (
        "import os, sys; os.environ['QSIT_LEASE_S'] = 'wrong'; import worker.app; "
        "assert not {'worker.tasks', 'worker.lifecycle', 'worker.process'} & sys.modules.keys()"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_starting_worker_has_the_task() -> None:
    code = (
        "from worker.app import app; app.loader.import_default_modules(); "
        f"assert '{dispatch.TASK}' in app.tasks, sorted(app.tasks)"
    )

    subprocess.run([sys.executable, "-c", code], check=True)
