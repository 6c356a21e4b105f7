"""The threads that run beside the scoring: heartbeat, watchdog, and the timer for recovery and topping up."""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from celery import Celery
from sqlalchemy import Engine

from models import db
from models.claims import Claim, QueueKey
from models.ledger import control, leases, rescue, workers
from models.ledger.jobs import finish_done_jobs
from qsit.errors import BrokerUnavailable, QsitError
from qsit.states import WorkerState
from worker import dispatch
from worker.notices import Notices

log = logging.getLogger("qsit")

BEAT_S = 5.0
FROZEN_S = 300.0
"""A process in which no thread runs for this long is in a decoder that does not release the interpreter."""
STALLED_S = 3600.0
"""A process that holds a chunk without progress for this long waits for a device that does not answer."""


class Heartbeat:
    """
    Tells the ledger that this process lives, renews the lease of the chunk in hand, and ends a process that hangs.

    is_lost: the chunk in hand must be dropped; its lease is lost, or its job is paused or cancelled.
    """

    def __init__(self, engine: Engine, owner: str, lease_s: float, notices: Notices, stopping: threading.Event) -> None:
        self.is_lost = False
        self._engine, self._owner, self._lease_s = engine, owner, lease_s
        self._notices, self._stopping = notices, stopping
        self._claim: Claim | None = None
        self._claimed_at = 0.0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the threads that beat and watch."""
        _start_thread(self._beat_until_ended)
        _start_thread(self._watch)

    @contextmanager
    def holding(self, claim: Claim) -> Iterator[None]:
        """Renew the lease of a claim meanwhile."""
        with self._lock:
            self._claimed_at = time.monotonic()
            self._claim, self.is_lost = claim, False
        try:
            yield
        finally:
            with self._lock:
                self._claim = None

    def drop_chunk(self) -> None:
        """Have the chunk in hand dropped, because its job was paused or cancelled."""
        with self._lock:
            self.is_lost = True

    def end(self) -> None:
        """Tell the ledger that this worker has stopped."""
        with suppress(QsitError):
            workers.set_notice(self._engine, self._owner, state=WorkerState.STOPPED)

    def _beat_until_ended(self) -> None:
        while not self._stopping.wait(_interval_s(self._lease_s)):
            with self._notices.logging_errors("heartbeat"):
                self._beat()
        while True:
            self.end()  # at once: if the process is killed while it stops, no photo becomes suspect
            with self._notices.logging_errors("heartbeat"):
                self._beat()
            time.sleep(_interval_s(self._lease_s))

    def _beat(self) -> None:
        with self._lock:
            claim = self._claim
        with db.writing(self._engine) as connection:
            workers.heartbeat(connection, self._owner)
            if claim is not None and not leases.renew(connection, claim, self._lease_s):
                with self._lock:
                    self.is_lost |= self._claim is claim  # by now, the process may hold another one

    def _watch(self) -> None:
        """End a process that is frozen or stalled; the pool replaces it. This needs no database."""
        while True:
            faulthandler.dump_traceback_later(FROZEN_S, exit=True, file=2)  # each call postpones it
            progress_at = max(self._claimed_at, self._notices.progress_at)
            if self._claim is not None and time.monotonic() - progress_at > STALLED_S:
                log.error("no batch came to an end for %.0f s; the process is replaced", STALLED_S)
                os._exit(1)
            time.sleep(_interval_s(self._lease_s))


class Timer:
    """Tops up Redis, recovers lost chunks and finishes jobs, at an interval and when it is woken."""

    def __init__(self, engine: Engine, app: Celery, queue_key: QueueKey, lease_s: float, notices: Notices) -> None:
        self._engine, self._app, self._queue_key, self._lease_s = engine, app, queue_key, lease_s
        self._notices = notices
        self._woken = threading.Event()

    def start(self) -> None:
        """Start the timer's thread."""
        _start_thread(self._run)

    def wake(self) -> None:
        """Have Redis topped up soon. The caller does not wait, so that a Redis that hangs delays no work."""
        self._woken.set()

    def _run(self) -> None:
        while True:
            self._woken.clear()
            with self._notices.logging_errors("topping up"):
                self._top_up()
            with self._notices.logging_errors("recovery"):
                rescue.requeue_of_dead(self._engine)
                control.settle_cancelled(self._engine)
                finish_done_jobs(self._engine)
            self._woken.wait(_interval_s(self._lease_s))

    def _top_up(self) -> None:
        try:
            dispatch.top_up(self._engine, self._app, self._queue_key, self._lease_s)
        except BrokerUnavailable as error:
            self._notices.show(str(error), about="Redis")
        else:
            self._notices.show(None, about="Redis")


def _interval_s(lease_s: float) -> float:
    return min(BEAT_S, lease_s / 6)


def _start_thread(target: Callable[[], None]) -> None:
    threading.Thread(target=target, name=target.__name__, daemon=True).start()
