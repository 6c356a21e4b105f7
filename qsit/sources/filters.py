"""Which files and folders of a listing are photos, by their names."""

import fnmatch
import os
import re
from collections.abc import Iterable, Sequence

PHOTO_ENDINGS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".jp2", ".j2k", ".avif", ".heic", ".heif"),
    )
)
"""The endings of photos in a folder. A file that the user names is taken whatever its ending."""

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
