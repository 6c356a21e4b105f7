"""A database that is away for a while: whoever needs it asks again until it answers."""

import time
from collections.abc import Callable
from typing import TypeVar

from qsit.errors import DatabaseUnavailable

PAUSE_S = 1.0

T = TypeVar("T")


OnOutage = Callable[[DatabaseUnavailable | None], None]
"""Is told each time that the database is away, and None when it is back; what it raises ends the waiting."""


def retry_while_unavailable(call: Callable[[], T], away: OnOutage) -> T:
    """
    What a call returns, called again every second while the database does not answer. The call must change nothing
    when it is made twice.
    """
    is_away = False
    while True:
        try:
            result = call()
        except DatabaseUnavailable as error:
            away(error)
            is_away = True
        else:
            if is_away:
                away(None)
            return result
        time.sleep(PAUSE_S)
