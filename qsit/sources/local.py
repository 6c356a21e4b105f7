"""Photos in folders of this machine: listed, and opened under the roots that a worker may read."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from qsit.errors import ImageError, SourceError, WorkerFault
from qsit.sources.filters import ListedPhoto, ListingFilter, OpenPhoto, check_bytes, named_as_photo
from qsit.sources.uris import local_path, path_name, uri_of
from qsit.states import Reason

GONE = "gone"
"""The version of a file that was not there when it was listed."""

WORKERS_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN)
"""What opening a file says when the worker's limits or mounts are at fault."""


def walk(choice: ListingFilter, source: str, *, of_list: bool = False) -> Iterator[ListedPhoto]:
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
            yield ListedPhoto(uri_of(path), GONE)
            return
        raise SourceError(f"cannot read {source!r}: {getattr(error, 'strerror', error)}") from error
    if stat.S_ISDIR(status.st_mode):
        _check_listable(path)
        yield from _folders(choice, str(path), status)
    else:
        yield ListedPhoto(uri_of(path), _version(status))


def _check_listable(path: Path) -> None:
    try:
        os.scandir(path).close()
    except OSError as error:
        raise SourceError(f"cannot list {path}: {error.strerror}") from error


def _folders(choice: ListingFilter, top: str, status: os.stat_result) -> Iterator[ListedPhoto]:
    seen = {(status.st_dev, status.st_ino)}
    waiting = [top]
    while waiting:
        inner = []
        for entry in _entries(choice, waiting.pop()):
            try:
                status = entry.stat()
            except OSError as error:  # a link to nothing, gone since, or out of reach
                if named_as_photo(entry.name):
                    yield ListedPhoto(uri_of(entry.path), GONE)  # the worker says what is wrong
                elif not isinstance(error, FileNotFoundError):
                    choice.unreadable.append(f"{entry.path}: {error.strerror}")
                continue
            if stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    inner.append(entry.path)
            elif choice.takes(entry.name):
                yield ListedPhoto(uri_of(entry.path), _version(status))
        waiting += reversed(inner)


def _entries(choice: ListingFilter, folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if not choice.passes_over(entry.name, entry.path)]
    except OSError as error:
        choice.unreadable.append(f"{folder}: {error.strerror}")
        return []
    return sorted(kept, key=lambda entry: os.fsencode(entry.name))


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


class LocalReader:
    """
    The folders that a worker may read, with all below them. Serves many threads at once.

    mounted: they are known to be what they should be now, if one of them is empty, too.
    """

    def __init__(self, roots: Sequence[Path], *, mounted: bool = False) -> None:
        self._roots = tuple(roots)
        self._devices: dict[Path, int] = {}  # by root, as it was when it was surely mounted
        for root in self._roots:
            with contextlib.suppress(OSError):  # which is told by what opens a photo below it
                self._note_device(root, mounted=mounted)

    @contextlib.contextmanager
    def opened(self, uri: str, version: str) -> Iterator[OpenPhoto]:
        """
        A photo, if it is still the one that was listed.

        Raises:
            ImageError: when the file is gone, changed, unreadable, no file, too large, or leads out of the roots.
            WorkerFault: when no root of this worker covers it, or that root is not there.
        """
        path = path_name(uri)
        descriptor = self._open(path)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise ImageError(Reason.NOT_AN_IMAGE, "it is a folder or device, not a file")
        with os.fdopen(descriptor, "rb") as file:

            def read() -> bytes:
                check_bytes(status.st_size)
                try:
                    return file.read(status.st_size)
                except OSError as error:
                    raise _unreadable(path, error) from error

            if _version(status) != version:
                raise ImageError(Reason.CHANGED, "the file changed after it was listed; run the same command again")
            yield OpenPhoto(version, read)

    def _open(self, path: str) -> int:
        root = next((root for root in self._roots if _is_under(path, str(root))), None)
        if root is None or ".." in path.split("/"):
            raise WorkerFault(f"{path} is under none of this worker's roots; start it with --root, or set QSIT_ROOTS")
        resolved = os.path.realpath(path)
        if resolved != path and not any(_is_under(resolved, os.path.realpath(allowed)) for allowed in self._roots):
            raise ImageError(Reason.OUTSIDE, f"it is a link to {resolved}, outside the roots that may be read")
        try:
            # O_NONBLOCK: a named pipe would wait for a writer for ever
            return os.open(resolved, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            self._check_root(root, error)
            if isinstance(error, FileNotFoundError):
                raise ImageError(Reason.MISSING, "the file is gone") from error
            raise _unreadable(path, error) from error

    def _check_root(self, root: Path, because: OSError) -> None:
        """Raises WorkerFault when a file could not be opened because its root is not there."""
        try:
            root.stat()
        except OSError as error:
            raise WorkerFault(f"the root {root} cannot be read ({error.strerror}); is it mounted?") from error
        if isinstance(because, FileNotFoundError) and not self._note_device(root):
            raise WorkerFault(f"the root {root} is empty; is it mounted?") from because

    def _note_device(self, root: Path, *, mounted: bool = False) -> bool:
        """Whether a root is mounted: a mount point without its mount is empty, and on another device than with it."""
        device = root.stat().st_dev
        if mounted or next(root.iterdir(), None) is not None:
            self._devices[root] = device
        return self._devices.get(root) == device


def _is_under(path: str, folder: str) -> bool:
    """By their names; a folder is under itself."""
    return path == folder or path.startswith(folder if folder.endswith("/") else folder + "/")


def _unreadable(path: str, error: OSError) -> ImageError | WorkerFault:
    if error.errno in WORKERS_ERRORS:
        return WorkerFault(f"{path} cannot be read by this worker: {error.strerror}")
    return ImageError(Reason.UNREADABLE, f"the file cannot be read: {error.strerror}")
