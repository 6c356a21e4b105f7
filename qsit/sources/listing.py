"""What of a folder or bucket is listed as a photo, and what one listing keeps track of."""

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from qsit.sources.s3_client import S3Client

PHOTO_ENDINGS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".jp2", ".j2k", ".avif", ".heic", ".heif"),
    )
)
"""The endings of photos in a folder. qsit takes a file that the user names with any ending."""

EXCLUDED = (".*", "@eaDir", "#recycle", "*.lrdata", "Thumbs.db", "System Volume Information", "$RECYCLE.BIN")
"""Files and folders that NAS boxes, operating systems and photo programs leave behind."""


class ListingFilter:
    """
    Excludes files and folders from a listing.

    exclude: globs for names, paths and URIs, in addition to EXCLUDED.
    """

    def __init__(self, exclude: Sequence[str] = ()) -> None:
        self._names = _compile((*EXCLUDED, *exclude))
        self._paths = _compile(exclude) if exclude else None

    def excludes(self, name: str, path: str) -> bool:
        """Return whether a file, or a folder with all below it, is excluded. `path` is absolute, or a URI."""
        return bool(self._names.match(name)) or (self._paths is not None and bool(self._paths.match(path)))


def has_photo_ending(name: str) -> bool:
    """Return whether a name ends like a photo's."""
    return ending_of(name) in PHOTO_ENDINGS


def ending_of(name: str) -> str:
    """Return the ending of a file name in lower case, with its dot, or an empty text."""
    return os.path.splitext(name)[1].lower()


def _compile(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, globs)))


class Listing:
    """
    The state of one listing.

    filter: excludes files and folders.
    s3: lists buckets.
    ignored: files that do not end like photos, counted by ending.
    unreadable: what could not be listed, and why.
    """

    def __init__(self, exclude: Sequence[str] = (), *, endpoint_url: str | None = None) -> None:
        self.filter = ListingFilter(exclude)
        self.s3 = S3Client(endpoint_url)
        self.ignored: Counter[str] = Counter()
        self.unreadable: list[str] = []

    def accepts(self, name: str) -> bool:
        """Return whether a file is a photo by its name, and count it if it is not."""
        if has_photo_ending(name):
            return True
        self.ignored[ending_of(name) or "no ending"] += 1
        return False
