"""Every error of qsit that has a meaning to a caller.

QsitError                   printed in one line, exit status 1
|-- UsageError              the command contradicts itself or the ledger, exit status 2
|-- SourceError             a source cannot be listed
|-- DatabaseError           the database cannot be used
|   |-- DatabaseUnavailable the server or file does not answer; may pass
|   `-- SchemaMismatch      the schema is missing, or older or newer than this program
|-- BrokerUnavailable       Redis does not answer; may pass
|-- CheckpointError         a model cannot be found, read or trusted
|-- JobNotFound             no job has the name or number
|-- JobCancelled            the job was cancelled while it was listed
|-- LeaseLost               another process holds the chunk or the listing: write nothing
|-- WorkerFault             the worker, not the photo, is at fault: the chunk is released
|   `-- ProcessUnusable     the process must be replaced
`-- ImageError              one photo cannot be scored, with its reason
"""

from qsit.states import Reason


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, or its type's name when it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class QsitError(Exception):
    """Base of all errors that end in one line. The message says what to do."""


class UsageError(QsitError):
    """Raised when a command contradicts itself or an earlier job."""


class SourceError(QsitError):
    """Raised when a source does not exist or cannot be listed."""


class DatabaseError(QsitError):
    """Raised when the database cannot be used."""


class DatabaseUnavailable(DatabaseError):
    """Raised when the database does not answer. Trying again later may help."""


class SchemaMismatch(DatabaseError):
    """Raised when the database has no qsit schema, an older one, or a newer one."""


class BrokerUnavailable(QsitError):
    """Raised when Redis does not answer."""


class CheckpointError(QsitError):
    """Raised when a model cannot be found, read or trusted."""


class JobNotFound(QsitError):
    """Raised when no job has the name or number asked for."""


class JobCancelled(QsitError):
    """Raised when a job is cancelled while it is listed."""


class LeaseLost(QsitError):
    """Raised when another process holds the chunk or the listing. Nothing more may be written."""


class WorkerFault(QsitError):
    """Raised when a worker cannot read what other workers may. Its chunk is released, and no photo fails."""


class ProcessUnusable(WorkerFault):
    """Raised when a process must be replaced: its model fails on a good image, or a decoder does not return."""


class ImageError(QsitError):
    """Raised when one photo cannot be scored."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
