"""What a worker reads in a message, and what it passes on to Celery."""

import base64
import json

import pytest
from celery import Celery

from models.ledger.ingest import CHUNK_SIZE
from models.ledger.listing import MAX_URI_BYTES
from worker.consumer import MAX_MESSAGE_BYTES, read_chunk_id, write_message
from worker.dispatch import TASK


def message(body: object, task: str = TASK) -> bytes:
    encoded = base64.b64encode(json.dumps(body).encode()).decode()
    return json.dumps({"body": encoded, "headers": {"task": task}}).encode()


def test_the_chunk_id_is_the_first_argument() -> None:
    assert read_chunk_id(message([[7], {}, {}])) == 7
    assert read_chunk_id(message([[7, "more"], {"even": "more"}, {"callbacks": []}])) == 7


def test_the_largest_chunk_fits_into_a_message() -> None:
    app = Celery()
    uri = "s3://bucket/" + "\U0001f4f7" * ((MAX_URI_BYTES - 12) // 4)
    headers, properties, body, _ = app.amqp.as_task_v2("id", TASK, args=[7, [uri] * CHUNK_SIZE])
    encoded = base64.b64encode(json.dumps(body).encode()).decode()
    largest = json.dumps({"body": encoded, "headers": headers, "properties": properties}).encode()

    assert read_chunk_id(largest) == 7


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff",
        b"not JSON",
        b"[]",
        b"3",
        b"{}",
        b'{"body": 1}',
        b'{"headers": 3, "body": "x"}',
        b'{"headers": {"task": ["qsit.score_chunk"]}, "body": "W1sxXV0="}',
        b'{"headers": {"task": "qsit.score_chunk"}, "body": "not base64"}',
        b'{"headers": {"task": "qsit.score_chunk"}, "body": "////"}',
        b"[" * 100_000,
        b"9" * 10_000,
        message([[7], {}, {}]) + b" " * MAX_MESSAGE_BYTES,
        message([[7], {}, {}], task="celery.backend_cleanup"),
        message([]),
        message([[]]),
        message({"0": [7]}),
        message([["7"]]),
        message([[7.0]]),
        message([[True]]),
        message([[None]]),
        message([[0]]),
        message([[-1]]),
        message([[2**63]]),
    ],
)
def test_what_is_not_a_message_of_ours_is_refused(garbage: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it "):
        read_chunk_id(garbage)


def test_celery_reads_what_is_passed_on() -> None:
    app = Celery("test")

    with app.connection_for_read("memory://") as connection:
        passed_on = connection.default_channel.Message(json.loads(write_message(app, 7)), connection.default_channel)

    assert passed_on.headers["task"] == TASK
    assert passed_on.headers["eta"] is None
    arguments, keywords, embedded = passed_on.decode()
    assert (arguments, keywords) == ([7], {})
    assert not any(embedded.values())
