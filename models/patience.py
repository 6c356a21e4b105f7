"""A database that is away for a while: whoever needs it asks again until it answers."""

import time
from collections.abc import Callable
from typing import TypeVar

from models.errors import DatabaseUnavailable

PAUSE_S = 1.0

T = TypeVar("T")


def insist(call: Callable[[], T], away: Callable[[DatabaseUnavailable], None]) -> T:
    """
    What a call returns, called again every second while the database does not answer. The call must change nothing
    when it is made twice.

    away: is told each time; what it raises ends it.
    """
    while True:
        try:
            return call()
        except DatabaseUnavailable as error:
            away(error)
        time.sleep(PAUSE_S)
