"""The photos of a local folder or file."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qsit.errors import SourceError
from qsit.sources.listing import Listing, has_photo_ending
from qsit.sources.photo import GONE, ListedPhoto, file_version
from qsit.sources.uris import uri_of


@dataclass(frozen=True)
class LocalSource:
    """A folder or file. The path is absolute, with links not resolved."""

    path: Path

    @property
    def name(self) -> str:
        """The absolute path."""
        return str(self.path)

    def uris(self) -> tuple[str, ...]:
        """Return the URIs that the file can have: as named, and with links resolved."""
        return uri_of(self.path), uri_of(os.path.realpath(self.path))

    def roots(self) -> set[str]:
        """Return what a worker must be allowed to read; for a file also the folder that a link leads to."""
        if os.path.isdir(self.path):
            return {self.name}
        return {str(self.path.parent), os.path.dirname(os.path.realpath(self.path))}

    def check(self, _: Listing) -> None:
        """Check that the source exists. Raises SourceError when it does not."""
        try:
            self.path.stat()
        except OSError as error:
            raise SourceError(f"cannot read {self.name}: {error.strerror}") from error

    def walk(self, listing: Listing, *, of_list: bool = False) -> Iterator[ListedPhoto]:
        """
        Yield the photos in the order of names, each folder's files before its folders. Links to folders are followed,
        each folder once.

        of_list: whether the source is an entry of a list. If it does not exist, it is still yielded: its photo fails as
        missing, not the list.

        Raises SourceError when the source does not exist or cannot be listed.
        """
        try:
            status = self.path.stat()
        except OSError as error:
            if not of_list:
                raise SourceError(f"cannot read {self.name}: {error.strerror}") from error
            yield ListedPhoto(uri_of(self.path), GONE)
            return
        if stat.S_ISDIR(status.st_mode):
            _check_listable(self.path)
            yield from _walk_folder(listing, self.name, status)
        else:
            yield ListedPhoto(uri_of(self.path), file_version(status))


def _check_listable(path: Path) -> None:
    try:
        os.scandir(path).close()
    except OSError as error:
        raise SourceError(f"cannot list {path}: {error.strerror}") from error


def _walk_folder(listing: Listing, top: str, status: os.stat_result) -> Iterator[ListedPhoto]:
    seen = {(status.st_dev, status.st_ino)}
    waiting = [top]
    while waiting:
        folders = []
        for entry in _scan_folder(listing, waiting.pop()):
            try:
                status = entry.stat()
            except OSError as error:  # a broken link, a deleted file, or one without permission
                if has_photo_ending(entry.name):
                    yield ListedPhoto(uri_of(entry.path), GONE)  # the worker finds the reason
                elif not isinstance(error, FileNotFoundError):
                    listing.unreadable.append(f"{entry.path}: {error.strerror}")
                continue
            if stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    folders.append(entry.path)
            elif listing.accepts(entry.name):
                yield ListedPhoto(uri_of(entry.path), file_version(status))
        waiting += reversed(folders)


def _scan_folder(listing: Listing, folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if not listing.filter.excludes(entry.name, entry.path)]
    except OSError as error:
        listing.unreadable.append(f"{folder}: {error.strerror}")
        return []
    return sorted(kept, key=lambda entry: os.fsencode(entry.name))
