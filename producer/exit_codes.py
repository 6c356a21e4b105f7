"""The exit statuses of qsit."""

from models.queries.progress import Progress
from qsit.states import JobState

OK, COULD_NOT_RUN, WRONG_USAGE, HAS_FAILURES = 0, 1, 2, 3


def exit_status(progress: Progress) -> int:
    """Of a command that waited for a job: a cancelled one could not run, and one with too many failures tells so."""
    if progress.state == JobState.CANCELLED:
        return COULD_NOT_RUN
    return OK if progress.tolerated else HAS_FAILURES
