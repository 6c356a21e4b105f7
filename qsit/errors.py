"""Every error of qsit that has a meaning to a caller.

QsitError                   one line to the user, exit status 1
|-- UsageError              the command contradicts itself or the ledger, exit status 2
|-- SourceError             a source that cannot be listed
|-- DatabaseError
|   |-- DatabaseUnavailable the server or file does not answer; may pass
|   `-- SchemaMismatch      the schema is older or newer than this program
|-- BrokerUnavailable       Redis does not answer; may pass
|-- CheckpointError         a model that cannot be found, read or trusted
|-- JobNotFound
|-- JobCancelled            somebody has cancelled the job that is listed
|-- LeaseLost               the chunk is no longer ours: write nothing
|-- WorkerFault             the worker, not the photo, is at fault: the chunk goes back
|   `-- ProcessSpent        the process is of no more use, and is replaced
`-- ImageError              one photo cannot be scored, with its reason
"""

from qsit.states import Reason


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, or its type's name when it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class QsitError(Exception):
    """Base of all errors that end in one line; the message says what to do."""


class UsageError(QsitError):
    """Raised when what the user asks for contradicts itself or an earlier job."""


class SourceError(QsitError):
    """Raised when a source does not exist or cannot be listed."""


class DatabaseError(QsitError):
    """Raised when the database cannot be used."""


class DatabaseUnavailable(DatabaseError):
    """Raised when the database does not answer; trying again later may help."""


class SchemaMismatch(DatabaseError):
    """Raised when the database has no qsit schema, an older one, or a newer one."""


class BrokerUnavailable(QsitError):
    """Raised when Redis does not answer."""


class CheckpointError(QsitError):
    """Raised when a model cannot be found, read or trusted."""


class JobNotFound(QsitError):
    """Raised when no job has the name or number asked for."""


class JobCancelled(QsitError):
    """Raised when a job is cancelled under the hands of who lists it."""


class LeaseLost(QsitError):
    """Raised when a chunk's lease is no longer held by the token that writes."""


class WorkerFault(QsitError):
    """Raised when a worker cannot read what others may: its chunk goes back, no photo fails."""


class ProcessUnusable(WorkerFault):
    """Raised when a process must be replaced: its model fails on a good image, or a decoder does not come back."""


class ImageError(QsitError):
    """Raised when one photo cannot be scored."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
