"""Repeat a call while the database is unavailable."""

import time
from collections.abc import Callable
from typing import TypeVar

from qsit.errors import DatabaseUnavailable

PAUSE_S = 1.0

T = TypeVar("T")

OnOutage = Callable[[DatabaseUnavailable | None], None]
"""Called with the error each time that the database is unavailable, and with None when it is back. What it raises ends
the waiting."""


def retry_while_unavailable(call: Callable[[], T], on_outage: OnOutage) -> T:
    """
    Return what a call returns, and repeat it every second while the database does not answer.

    The call must be idempotent: the reply to a commit may be lost.
    """
    is_out = False
    while True:
        try:
            result = call()
        except DatabaseUnavailable as error:
            on_outage(error)
            is_out = True
        else:
            if is_out:
                on_outage(None)
            return result
        time.sleep(PAUSE_S)
