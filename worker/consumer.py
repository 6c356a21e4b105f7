"""Celery's consumer, made patient and quiet when Redis is in trouble."""

import logging
import time
import traceback
import warnings
from typing import Any

from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer as CeleryConsumer

log = logging.getLogger("qsit")

PAUSE_S = 2.0
"""Before it connects again; a Redis that answers but refuses would be asked without end."""

LASTING_S = 60.0
"""A connection that held for so long has ended the trouble before it; the next is told anew."""

MANY = 1000
"""So many different lines are remembered."""

GARBLED = (ValueError, TypeError, AttributeError, LookupError)
"""What kombu raises for something in the queue that is no message."""


class Consumer(CeleryConsumer):
    """The part of a worker's parent that takes messages from Redis: whatever Redis does, it tries again."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # their events are for nobody, and while Redis is away, sending one would hold up even the end of the worker
        quiet = dict.fromkeys(("without_heartbeat", "without_gossip", "without_mingle"), True)
        super().__init__(*args, **options | quiet)
        self.connection_errors: tuple[type[BaseException], ...] = (*self.conninfo.connection_errors, *GARBLED)
        self._told = _Once()
        self._failed_at = 0.0
        for name in ("consumer", "connection"):
            logging.getLogger(f"celery.worker.consumer.{name}").addFilter(self._told)
        logging.getLogger("celery.worker").addFilter(_in_one_line)

    def on_connection_error_after_connected(self, exc: BaseException) -> None:
        """Celery's, told once, and a pause."""
        if time.monotonic() - self._failed_at > LASTING_S:
            self._told.lines.clear()
        if isinstance(exc, GARBLED):
            log.warning("something was dropped from the queue that is no message (%s)", type(exc).__name__)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CPendingDeprecationWarning)  # of another default in Celery 6; ours is set
            super().on_connection_error_after_connected(exc)
        time.sleep(PAUSE_S)
        self._failed_at = time.monotonic()


class _Once(logging.Filter):
    """Lets a line through that was not logged before."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """By its first line: in the second, Celery counts how often it has tried."""
        line = record.getMessage().partition("\n")[0]
        is_new = line not in self.lines
        if len(self.lines) > MANY:
            self.lines.clear()
        self.lines.add(line)
        return is_new


def _in_one_line(record: logging.LogRecord) -> bool:
    """Instead of a traceback, where it was; what Celery does not survive is logged so before the worker ends."""
    if record.exc_info and record.exc_info[2] is not None:
        place = traceback.extract_tb(record.exc_info[2])[-1]
        record.msg = f"{record.msg} (at {place.filename}:{place.lineno})"
        record.exc_info = None
    return True
