"""The exit statuses of qsit."""

from enum import IntEnum

from models.queries.progress import Progress
from qsit.states import JobState


class ExitCode(IntEnum):
    """How a command ended; 128 plus the signal's number when a signal ended it."""

    OK = 0  #: Everything is done, or no more photos failed than allowed.
    COULD_NOT_RUN = 1  #: One line on stderr says why; also a cancelled job.
    WRONG_USAGE = 2  #: The arguments or settings are wrong.
    HAS_FAILURES = 3  #: The job is finished, but more photos failed than allowed.


def exit_status(progress: Progress) -> ExitCode:
    """Return the status of a command that waited for a job."""
    if progress.state == JobState.CANCELLED:
        return ExitCode.COULD_NOT_RUN
    return ExitCode.OK if progress.tolerated else ExitCode.HAS_FAILURES
