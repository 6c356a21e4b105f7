"""Listing what a user names, and opening what the ledger names."""

import errno
import fnmatch
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from models.errors import ImageError, SourceError, WorkerFault
from models.states import Reason
from worker.images import MAX_BYTES

PHOTO_ENDINGS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".avif",
        ".tif",
        ".tiff",
        ".gif",
        ".bmp",
        ".jp2",
        ".j2k",
        ".mpo",
        ".heic",
        ".heif",
    ]
)
"""Which files of a folder are taken for photos; a file that is named itself is always taken."""

LEFT_BEHIND = (".*", "@eaDir", "#recycle", "*.lrdata", "Thumbs.db", "System Volume Information", "$RECYCLE.BIN")
"""What NAS boxes, systems and photo programs leave in photo folders: skipped, files and folders alike."""


WORKERS_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN)
"""What opening a file says when the worker's limits or mounts are at fault."""

GONE = "gone"
"""The version of a file that was not there when it was listed."""


@dataclass(frozen=True)
class Found:
    """An image as listed: its URI, and its version (size and mtime in nanoseconds)."""

    uri: str
    version: str


@dataclass
class Listing:
    """Lists sources, and counts what it passes over."""

    exclude: Sequence[str] = ()
    ignored: Counter[str] = field(default_factory=Counter)  # files that are no photos by their names, by ending
    unreadable: list[str] = field(default_factory=list)  # folders that could not be listed

    def walk(self, source: str, *, of_list: bool = False) -> Iterator[Found]:
        """
        The photos of a file or folder, streaming, in the order of names, each folder's files before its folders.
        Linked folders are followed, each folder once. A file `of_list` that is not there is found nevertheless, and
        fails as missing: it costs one photo, not the list.

        Raises:
            SourceError: when the source does not exist or cannot be listed.
        """
        path = local_path(source)
        try:
            status = path.stat()
        except (OSError, ValueError) as error:
            if of_list and isinstance(error, OSError):
                yield Found(uri_of(path), GONE)
                return
            raise SourceError(f"cannot read {source!r}: {getattr(error, 'strerror', error)}") from error
        if stat.S_ISDIR(status.st_mode):
            self._check_listable(path)
            yield from self._folders(str(path), status)
        else:
            yield _found(str(path), status)

    def _check_listable(self, path: Path) -> None:
        try:
            os.scandir(path).close()
        except OSError as error:
            raise SourceError(f"cannot list {path}: {error.strerror}") from error

    def _folders(self, top: str, status: os.stat_result) -> Iterator[Found]:
        seen = {(status.st_dev, status.st_ino)}
        waiting = [top]
        while waiting:
            inner = []
            for entry in self._entries(waiting.pop()):
                try:
                    status = entry.stat()
                except OSError as error:  # a link to nothing, gone since, or out of reach
                    if _named_as_photo(entry.name):
                        yield Found(uri_of(entry.path), GONE)  # the worker says what is wrong
                    elif not isinstance(error, FileNotFoundError):
                        self.unreadable.append(f"{entry.path}: {error.strerror}")
                    continue
                if stat.S_ISDIR(status.st_mode):
                    if (status.st_dev, status.st_ino) not in seen:
                        seen.add((status.st_dev, status.st_ino))
                        inner.append(entry.path)
                elif _named_as_photo(entry.name):
                    yield _found(entry.path, status)
                else:
                    self.ignored[os.path.splitext(entry.name)[1].lower() or "no ending"] += 1
            waiting += reversed(inner)

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                kept = [entry for entry in entries if not self._passed_over(entry)]
        except OSError as error:
            self.unreadable.append(f"{folder}: {error.strerror}")
            return []
        return sorted(kept, key=lambda entry: os.fsencode(entry.name))

    def _passed_over(self, entry: os.DirEntry[str]) -> bool:
        return any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in LEFT_BEHIND) or any(
            fnmatch.fnmatchcase(entry.name, pattern) or fnmatch.fnmatchcase(entry.path, pattern)
            for pattern in self.exclude
        )


def local_path(source: str) -> Path:
    """
    The absolute path of a source, links not resolved.

    Raises:
        SourceError: when it is a URL of another kind than file:// .
    """
    if source.startswith("file:///"):
        return Path(os.path.abspath(path_of(source)))
    if "://" in source:
        kind = source.split("://", 1)[0]
        raise SourceError(f"{kind}:// sources are not supported by this version; name a folder or a file")
    return Path(os.path.abspath(os.path.expanduser(source)))


def _named_as_photo(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in PHOTO_ENDINGS


def uri_of(path: str | os.PathLike[str]) -> str:
    """The file:// URI of an absolute path, whatever bytes its name has."""
    return "file://" + quote(os.fsencode(path))


def prefix_of(place: str) -> str:
    """What the URIs of photos begin with that are in a folder, or whose path or URI begins with `place`."""
    if "://" in place:
        return place
    path = local_path(place)
    return uri_of(path) + ("/" if place.endswith("/") or path.is_dir() else "")


def path_of(uri: str) -> Path:
    """The path of a file:// URI."""
    return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))


def _found(path: str, status: os.stat_result) -> Found:
    return Found(uri_of(path), _version(status))


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def read(uri: str, version: str, roots: Sequence[Path]) -> bytes:
    """
    The bytes of a photo, if they are still those that were listed.

    Raises:
        ImageError: when the file is gone, changed, unreadable, no file, too large, or leads out of the roots.
        WorkerFault: when no root of this worker covers it, or that root is not there.
    """
    if not uri.startswith("file://"):
        raise WorkerFault(f"this worker reads no {uri.split(':', 1)[0]} URIs")
    path = path_of(uri)
    root = next((root for root in roots if path.is_relative_to(root)), None)
    if root is None or ".." in path.parts:
        raise WorkerFault(f"{path} is under none of this worker's roots; start it with --root, or set QSIT_ROOTS")
    try:
        root.stat()
    except OSError as error:
        raise WorkerFault(f"the root {root} cannot be read ({error.strerror}); is it mounted?") from error
    resolved = os.path.realpath(path)
    if not any(Path(resolved).is_relative_to(os.path.realpath(allowed)) for allowed in roots):
        raise ImageError(Reason.OUTSIDE, f"it is a link to {resolved}, outside the roots that may be read")
    try:
        # O_NONBLOCK: a named pipe would wait for a writer for ever
        descriptor = os.open(resolved, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise ImageError(Reason.MISSING, "the file is gone") from error
    except OSError as error:
        if error.errno in WORKERS_ERRORS:
            raise WorkerFault(f"{path} cannot be opened by this worker: {error.strerror}") from error
        raise ImageError(Reason.UNREADABLE, f"the file cannot be opened: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ImageError(Reason.NOT_AN_IMAGE, "it is a folder or device, not a file")
    with os.fdopen(descriptor, "rb") as file:
        if _version(status) != version:
            raise ImageError(Reason.CHANGED, "the file changed after it was listed; run the same command again")
        if status.st_size > MAX_BYTES:
            raise ImageError(Reason.TOO_LARGE, f"{status.st_size:,} bytes are more than the limit of {MAX_BYTES:,}")
        try:
            return file.read(status.st_size)
        except OSError as error:
            raise ImageError(Reason.UNREADABLE, f"the file cannot be read: {error.strerror}") from error
