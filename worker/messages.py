"""Messages as Redis holds them. A worker takes the chunk's id from a message, and obeys nothing else in it."""

import base64
import json

from celery import Celery
from kombu.utils.uuid import uuid

from worker.dispatch import TASK

MAX_BYTES = 1024 * 1024


def read_chunk_id(message: bytes) -> int:
    """
    Return the chunk id in a message.

    Raises:
        ValueError: when the message is not one that `dispatch` sends.
    """
    if len(message) > MAX_BYTES:
        raise ValueError(f"it has {len(message)} bytes")
    try:
        envelope = json.loads(message)
        task = envelope["headers"]["task"]
        [chunk_id, *_] = json.loads(base64.b64decode(envelope["body"]))[0]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"it cannot be read ({type(error).__name__})") from error
    if task != TASK:
        raise ValueError("it is for another task")
    if type(chunk_id) is not int or not 0 < chunk_id < 2**63:
        raise ValueError("it has no chunk id")
    return chunk_id


def write_message(app: Celery, chunk_id: int) -> str:
    """Return the message that calls the task with a chunk id, with Celery's defaults for all else."""
    task_id = uuid()
    headers, properties, body, _ = app.amqp.as_task_v2(task_id, TASK, args=[chunk_id])
    return json.dumps(
        {
            "body": json.dumps(body),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": headers,
            "properties": {**properties, "delivery_tag": task_id, "delivery_info": {}},
        }
    )
