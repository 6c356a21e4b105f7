"""The one task: a turn of work on one chunk."""

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from functools import partial

from models.claims import Claim
from models.ledger import leases
from qsit.errors import LeaseLost, ProcessUnusable, QsitError
from worker import process
from worker.app import app
from worker.dispatch import TASK

log = logging.getLogger("qsit")

FAULT_DELAY_S = 10.0
"""How long a chunk rests after a worker could not read it."""


@app.task(name=TASK)
def score_chunk(chunk_id: int, uris: list[str]) -> None:
    """
    Claim a chunk, score it for a turn, hand the rest back.

    The ledger says what is opened; `uris` are for the eyes of whoever watches the queue.
    """
    if not isinstance(chunk_id, int) or not 0 < chunk_id < 2**63:
        log.warning("a message was dropped that names no chunk: %.100r", chunk_id)
        return
    here = process.here()
    if here.stopping:
        os._exit(0)  # told to end by itself; the pool starts another process, and the ledger sends the chunk again
    try:
        with _sigterm_stops(here):
            claim = here.insist(
                lambda: leases.claim(here.engine, chunk_id, here.lane, here.owner, here.settings.lease_s)
            )
            here.top_up()
            if claim is not None:
                _turn(here, claim)
                here.top_up()
    except LeaseLost as lost:
        log.warning("%s; another worker may have it", lost)
    except QsitError as error:
        log.error("%s", error)


@contextlib.contextmanager
def _sigterm_stops(here: process.Process) -> Iterator[None]:
    """
    SIGTERM lets the batch in hand be recorded; a second one ends the process at once. Celery tells its processes by
    another signal, but systemd, for one, signals every process of a service.
    """

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        here.stop()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _turn(here: process.Process, claim: Claim) -> None:
    delay_s, is_spent = 0.0, False
    batches = here.pipeline.run(
        claim.items,
        lambda item, decoding: here.prepare(item, claim, decoding),
        lambda image_ids, alone: here.insist(lambda: leases.mark_in_flight(here.engine, claim, image_ids, alone=alone)),
        turn_s=here.settings.turn_s,
        stopping=here.interrupted,
        claim=claim,
    )
    with here.holding(claim):
        try:
            for results in batches:
                if not here.insist(partial(leases.record, here.engine, claim, results, here.settings.lease_s)):
                    here.let_go()
                here.say(None)
        except LeaseLost:
            raise
        except Exception as fault:
            if not isinstance(fault, QsitError):
                log.exception("this should not happen; please report it")
            here.say(str(fault) or type(fault).__name__)
            is_spent = isinstance(fault, ProcessUnusable)
            delay_s = 0.0 if is_spent else FAULT_DELAY_S
        here.insist(lambda: leases.release(here.engine, claim, delay_s=delay_s))
    if is_spent:
        os._exit(1)  # the pool starts another process, which loads the model anew
