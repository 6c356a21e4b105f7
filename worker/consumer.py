"""Celery's consumer, which outlives any trouble of Redis, logs it once, and drops what is not a message of ours."""

import base64
import json
import logging
import time
import warnings
from typing import Any

from celery import Celery
from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.utils.uuid import uuid

from worker.dispatch import TASK

log = logging.getLogger("qsit")

RECONNECT_DELAY_S = 2.0
"""A Redis that answers but refuses would otherwise be asked without a pause."""
STABLE_S = 60.0
"""After a connection has held for this long, errors that were logged before are logged again."""
MAX_REMEMBERED_LINES = 1000


class Consumer(CeleryConsumer):
    """The part of a worker's parent that takes messages from Redis."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # nobody reads their events, and while Redis is away, sending one would delay the end of the worker
        quiet = dict.fromkeys(("without_heartbeat", "without_gossip", "without_mingle"), True)
        super().__init__(*args, **options | quiet)
        self._once = _Once()
        self._failed_at = 0.0
        for name in ("consumer", "connection"):
            logging.getLogger(f"celery.worker.consumer.{name}").addFilter(self._once)
        logging.getLogger("celery.worker").addFilter(self._without_traceback)

    def connect(self) -> Any:
        """Connect as Celery does, and read each message before Celery does."""
        connection = super().connect()
        connection.default_channel.client.set_response_callback("BRPOP", self._read)
        return connection

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Log the error once, as Celery does, and pause."""
        if time.monotonic() - self._failed_at > STABLE_S:
            self._once.lines.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CPendingDeprecationWarning)  # about a default of Celery 6 that we set
            super().on_connection_error_after_connected(exc)
        time.sleep(RECONNECT_DELAY_S)
        self._failed_at = time.monotonic()

    def _read(self, response: list[bytes] | None, **_: Any) -> tuple[bytes, str] | None:
        """Replace a message by one with only its chunk id. Without such an id, return None, as if no message came."""
        if not response:
            return None
        queue, message = response
        try:
            return queue, write_message(self.app, read_chunk_id(message))
        except ValueError as error:
            log.warning("dropped a message from the queue: %s", error)
            return None

    def _without_traceback(self, record: logging.LogRecord) -> bool:
        """Remove the traceback of an error of Redis, whose message says enough. That of a bug stays."""
        if record.exc_info and isinstance(record.exc_info[1], self.connection_errors + self.channel_errors):
            record.exc_info = None
        return True


class _Once(logging.Filter):
    """Lets a line through that was not logged before."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Compare the first line only: in the second, Celery counts its attempts."""
        line = record.getMessage().partition("\n")[0]
        is_new = line not in self.lines
        if len(self.lines) > MAX_REMEMBERED_LINES:
            self.lines.clear()
        self.lines.add(line)
        return is_new


MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""A message holds up to 512 URIs of 2,500 bytes, whose characters take up to 7,500 bytes in JSON, all in base64."""


def read_chunk_id(message: bytes) -> int:
    """Return the chunk id in a message. Raises ValueError when it is not one that `dispatch` sends."""
    if len(message) > MAX_MESSAGE_BYTES:
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
    properties |= {"delivery_tag": task_id, "delivery_info": {}}
    message = {"body": json.dumps(body), "content-type": "application/json", "content-encoding": "utf-8"}
    return json.dumps(message | {"headers": headers, "properties": properties})
