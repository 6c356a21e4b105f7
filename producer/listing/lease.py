"""The lease of the process that lists a job, renewed while it waits for its sources."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from models.ledger import listing
from qsit.errors import DatabaseUnavailable, LeaseLost

RENEW_S = listing.LISTER_S / 4
"""Seconds between renewals of the lister's lease."""


@contextmanager
def renewed_lease(engine: Engine, job_id: int) -> Iterator[Callable[[], None]]:
    """Keep renewing the lister's lease. Yield a function that raises LeaseLost if another process has taken it."""
    is_done = threading.Event()
    lost: list[LeaseLost] = []

    def renew() -> None:
        while not lost and not is_done.wait(RENEW_S):
            try:
                listing.renew_listing(engine, job_id)
            except LeaseLost as error:
                lost.append(error)
            except DatabaseUnavailable:
                pass  # the next renewal may succeed

    def check() -> None:
        if lost:
            raise lost[0]

    thread = threading.Thread(target=renew, name="renew lister's lease", daemon=True)
    thread.start()
    try:
        yield check
    finally:
        is_done.set()
        thread.join()
