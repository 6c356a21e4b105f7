"""How commands end: their exit statuses, and the signals that interrupt them."""

import signal
from enum import IntEnum
from typing import TYPE_CHECKING

from qsit.states import JobState

if TYPE_CHECKING:
    from models.queries.progress import Progress  # its import takes too long for an early Ctrl-C to be quiet


class ExitCode(IntEnum):
    """How a command ended; 128 plus the signal's number when a signal ended it."""

    OK = 0  #: Everything is done, or no more photos failed than allowed.
    COULD_NOT_RUN = 1  #: One line on stderr says why; also a cancelled job.
    WRONG_USAGE = 2  #: The arguments or settings are wrong.
    HAS_FAILURES = 3  #: The job is finished, but more photos failed than allowed.


def exit_status(progress: "Progress") -> ExitCode:
    """Return the status of a command that waited for a job."""
    if progress.state == JobState.CANCELLED:
        return ExitCode.COULD_NOT_RUN
    return ExitCode.OK if progress.tolerated else ExitCode.HAS_FAILURES


class Interrupted(BaseException):
    """Raised in the main thread by SIGINT, SIGTERM and SIGHUP. Not a KeyboardInterrupt, which click would catch."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_status = 128 + signum


def raise_on_signals() -> None:
    """Make the three signals raise Interrupted. A signal that the caller ignores, as nohup does, stays ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


def _raise(signum: int, _: object) -> None:
    raise Interrupted(signum)
