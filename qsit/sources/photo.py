"""A photo as listed and as opened, and the version that connects the two."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from qsit.errors import ImageError
from qsit.states import Reason

GONE = "gone"
"""The version of a file that did not exist when it was listed."""

MAX_BYTES = 512 * 1024 * 1024
"""The largest file that is read into memory."""


@dataclass(frozen=True)
class ListedPhoto:
    """A photo as listed: its URI, and its version or UNKNOWN_VERSION."""

    uri: str
    version: str


@dataclass(frozen=True)
class OpenPhoto:
    """
    A photo that is open for reading.

    version: the version it has now.
    read: returns its bytes; raises ImageError or WorkerFault.
    """

    version: str
    read: Callable[[], bytes]


def file_version(status: os.stat_result) -> str:
    """Return the version of a file: its size and modification time."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def check_bytes(size: int) -> None:
    """Check that a file of this size may be read into memory. Raises ImageError when it is too large."""
    if size > MAX_BYTES:
        raise ImageError(Reason.TOO_LARGE, f"the file has {size:,} bytes, more than the limit of {MAX_BYTES:,}")
