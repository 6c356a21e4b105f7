"""The one task: a turn of work on one chunk."""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial

from celery import shared_task

from models.claims import Claim
from models.ledger import leases
from qsit.errors import LeaseLost, ProcessUnusable, QsitError, one_line
from worker.dispatch import TASK
from worker.process import Process, current_process

log = logging.getLogger("qsit")

FAULT_DELAY_S = 10.0
"""How long a chunk waits after a worker could not read it."""


@shared_task(name=TASK)
def score_chunk(chunk_id: int) -> None:
    """Claim a chunk, score it for a turn, and release the rest."""
    process = current_process()
    if process.stopping.is_set():
        os._exit(0)  # the pool starts another process, and the ledger sends the chunk again
    try:
        with _stopping_at_sigterm(process):
            claim = process.notices.retry(
                lambda: leases.claim(process.engine, chunk_id, process.queue_key, process.owner, process.lease_s)
            )
            process.timer_woken.set()  # not here: a Redis that hangs delays no work
            if claim is not None:
                _score_for_a_turn(process, claim)
                process.timer_woken.set()
    except LeaseLost as lost:
        log.warning("%s; another worker may have it", lost)
    except QsitError as error:
        log.error("%s", error)


@contextmanager
def _stopping_at_sigterm(process: Process) -> Iterator[None]:
    """
    Stop after the batch in hand at SIGTERM, and at once at a second one. Celery's parent uses another signal, but
    systemd, for one, signals every process of a service.
    """

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        process.stopping.set()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _score_for_a_turn(process: Process, claim: Claim) -> None:
    engine, notices = process.engine, process.notices

    def mark_in_flight(image_ids: Sequence[int], alone: bool) -> None:
        notices.retry(lambda: leases.mark_in_flight(engine, claim, image_ids, alone=alone))

    delay_s, is_unusable = 0.0, False
    batches = process.pipeline.run(claim, mark_in_flight, turn_s=process.turn_s, stopping=process.is_interrupted)
    with process.heartbeat.holding(claim):
        try:
            with closing(batches):  # so that its threads end now, also when the lease is lost
                for results in batches:
                    if not notices.retry(partial(leases.record, engine, claim, results, process.lease_s)):
                        process.heartbeat.is_lost = True  # the job was paused or cancelled
                    notices.show(None)
        except LeaseLost:
            raise
        except Exception as fault:
            if not isinstance(fault, QsitError):
                log.exception("unexpected error; please report it")
            notices.show(one_line(fault))
            is_unusable = isinstance(fault, ProcessUnusable)
            delay_s = 0.0 if is_unusable else FAULT_DELAY_S
        notices.retry(lambda: leases.release(engine, claim, delay_s=delay_s))
    if is_unusable:
        os._exit(1)  # the pool starts another process, which loads the model again
