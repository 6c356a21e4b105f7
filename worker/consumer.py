"""Celery's consumer, which outlives any trouble of Redis, logs it once, and drops what is not a message of ours."""

import logging
import time
import warnings
from typing import Any

from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer as CeleryConsumer

from worker.messages import read_chunk_id, write_message

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
        """Replace a message by one that has its chunk id and no more. None, as when none came, if it has no such id."""
        if not response:
            return None
        queue, message = response
        try:
            return queue, write_message(self.app, read_chunk_id(message))
        except ValueError as error:
            log.warning("dropped a message from the queue: %s", error)
            return None

    def _without_traceback(self, record: logging.LogRecord) -> bool:
        """Of an error of Redis, which its message names; that of a bug stays."""
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
