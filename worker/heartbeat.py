"""The threads that run beside the scoring: heartbeat, watchdog, and the timer for recovery and topping up."""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

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
        start_thread(self._beat_until_ended)
        start_thread(self._watch)

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
                    if self._claim is claim:  # by now, the process may hold another one
                        self.is_lost = True

    def _watch(self) -> None:
        """End a process that is frozen or stalled; the pool replaces it. This needs no database."""
        while True:
            faulthandler.dump_traceback_later(FROZEN_S, exit=True, file=2)  # each call postpones it
            progress_at = max(self._claimed_at, self._notices.progress_at)
            if self._claim is not None and time.monotonic() - progress_at > STALLED_S:
                log.error("no batch came to an end for %.0f s; the process is replaced", STALLED_S)
                os._exit(1)
            time.sleep(_interval_s(self._lease_s))


def run_timer(
    engine: Engine, app: Celery, queue_key: QueueKey, lease_s: float, notices: Notices, woken: threading.Event
) -> None:
    """Top up Redis, recover lost chunks and finish jobs, for ever: at an interval, and soon after `woken` is set."""
    while True:
        woken.clear()
        with notices.logging_errors("topping up"):
            try:
                dispatch.top_up(engine, app, queue_key, lease_s)
            except BrokerUnavailable as error:
                notices.show(str(error), about="Redis")
            else:
                notices.show(None, about="Redis")
        with notices.logging_errors("recovery"):
            rescue.requeue_of_dead(engine)
            control.settle_cancelled(engine)
            finish_done_jobs(engine)
        woken.wait(_interval_s(lease_s))


def _interval_s(lease_s: float) -> float:
    return min(BEAT_S, lease_s / 6)


def start_thread(target: Callable[..., None], *args: Any) -> None:
    """Start a thread that ends with the process."""
    threading.Thread(target=target, args=args, name=target.__name__, daemon=True).start()
