"""A photo as listed and as opened; what of a folder or bucket is taken for one."""

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from qsit.errors import ImageError
from qsit.states import Reason

PHOTO_ENDINGS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".jp2", ".j2k", ".avif", ".heic", ".heif"),
    )
)
"""Which files of a folder are taken for photos; a file that is named itself is always taken."""

PASSED_OVER = (".*", "@eaDir", "#recycle", "*.lrdata", "Thumbs.db", "System Volume Information", "$RECYCLE.BIN")
"""What NAS boxes, systems and photo programs leave in photo folders: skipped, files and folders alike."""


MAX_BYTES = 512 * 1024 * 1024
"""The largest file that is read into memory."""


@dataclass(frozen=True)
class ListedPhoto:
    """An image as listed: its URI, and its version or UNKNOWN_VERSION."""

    uri: str
    version: str


@dataclass(frozen=True)
class OpenPhoto:
    """
    An image that is open for reading, at the version it has now.

    read: gives its bytes; raises ImageError or WorkerFault.
    """

    version: str
    read: Callable[[], bytes]


def check_bytes(size: int) -> None:
    """
    Passes when a file of so many bytes may be read into memory.

    Raises:
        ImageError: when it is too large.
    """
    if size > MAX_BYTES:
        raise ImageError(Reason.TOO_LARGE, f"{size:,} bytes are more than the limit of {MAX_BYTES:,}")


@dataclass
class ListingFilter:
    """Chooses what is listed, and counts what it passes over."""

    exclude: Sequence[str] = ()
    ignored: Counter[str] = field(default_factory=Counter)  # files that are no photos by their names, by ending
    unreadable: list[str] = field(default_factory=list)  # what could not be listed, and why

    def __post_init__(self) -> None:
        self._names = _any_of((*PASSED_OVER, *self.exclude))
        self._paths = _any_of(self.exclude) if self.exclude else None

    def passes_over(self, name: str, path: str) -> bool:
        """Whether a file or folder is left out, with all below it; `path` is absolute, or a URI."""
        return bool(self._names.match(name)) or (self._paths is not None and bool(self._paths.match(path)))

    def takes(self, name: str) -> bool:
        """Whether a file is a photo by its name; counts those that are not."""
        if named_as_photo(name):
            return True
        self.ignored[_ending(name) or "no ending"] += 1
        return False


def named_as_photo(name: str) -> bool:
    """Whether the ending of a name is a photo's."""
    return _ending(name) in PHOTO_ENDINGS


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _any_of(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, globs)))
