"""Photos on this machine, opened under the roots that a worker may read."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from qsit.errors import ImageError, WorkerFault
from qsit.sources.photo import GONE, OpenPhoto, check_bytes, file_version
from qsit.sources.uris import path_name
from qsit.states import Reason

WORKER_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN)
"""Errors on opening a file that come from the worker's limits or mounts."""


class LocalReader:
    """
    The folders that a worker may read, with all below them. Serves many threads at once.

    mounted: the roots are known to be mounted now, even an empty one.
    """

    def __init__(self, roots: Sequence[Path], *, mounted: bool = False) -> None:
        self._roots = sorted(map(str, roots), key=len, reverse=True)  # of nested roots, the inner one has the mount
        self._devices: dict[str, int] = {}  # by root, from a time when it was mounted
        for root in self._roots:
            with contextlib.suppress(OSError):  # opening a photo below the root reports it
                self._note_device(root, mounted=mounted)

    @contextlib.contextmanager
    def opened(self, uri: str, version: str) -> Iterator[OpenPhoto]:
        """
        Open a photo if it still has the version that was listed.

        Raises ImageError when the file is gone, changed, unreadable, too large, not a file, or outside the roots.
        Raises WorkerFault when no root of this worker covers it, or its root is not mounted.
        """
        path = path_name(uri)
        descriptor = self._open(path, version)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)

            def read() -> bytes:
                check_bytes(status.st_size)
                try:
                    return file.read(status.st_size)
                except OSError as error:
                    raise _unreadable(path, error) from error

            if file_version(status) != version:
                raise ImageError(Reason.CHANGED, "the file changed after it was listed; run the same command again")
            yield OpenPhoto(version, read)

    def _open(self, path: str, version: str) -> int:
        """Return the descriptor of a regular file."""
        root = next((root for root in self._roots if _is_under(path, root)), None)
        if root is None or ".." in path.split("/"):
            raise WorkerFault(f"{path} is under none of this worker's roots; start it with --root, or set QSIT_ROOTS")
        resolved = os.path.realpath(path)
        self._check_inside(path, resolved)  # before opening: to open a device can have effects
        try:
            # O_NONBLOCK: opening a named pipe would wait forever
            descriptor = os.open(resolved, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if not (isinstance(error, FileNotFoundError) and version == GONE):
                self._check_root(root, error)
            if isinstance(error, FileNotFoundError):
                raise ImageError(Reason.MISSING, "the file is gone") from error
            raise _unreadable(path, error) from error
        try:
            self._check_inside(path, _path_of_descriptor(descriptor, path))  # a folder may have become a link
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ImageError(Reason.NOT_AN_IMAGE, "it is a folder or device, not a file")
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _check_inside(self, path: str, real_path: str) -> None:
        """Check that no link leads out of the roots. Raises ImageError when one does."""
        if real_path != path and not any(_is_under(real_path, os.path.realpath(root)) for root in self._roots):
            raise ImageError(Reason.OUTSIDE, f"it is a link to {real_path}, outside the roots that may be read")

    def _check_root(self, root: str, because: OSError) -> None:
        """Raise WorkerFault when a file could not be opened because its root is not mounted."""
        try:
            os.stat(root)
        except OSError as error:
            raise WorkerFault(f"the root {root} cannot be read ({error.strerror}); is it mounted?") from error
        if isinstance(because, FileNotFoundError) and not self._note_device(root):
            raise WorkerFault(f"the root {root} is empty; is it mounted?") from because

    def _note_device(self, root: str, *, mounted: bool = False) -> bool:
        """Return whether a root is mounted. A mount point without its mount is empty, and on another device."""
        device = os.stat(root).st_dev
        with os.scandir(root) as entries:
            if mounted or next(entries, None) is not None:
                self._devices[root] = device
        return self._devices.get(root) == device


def _path_of_descriptor(descriptor: int, path: str) -> str:
    """Return the real path of an open file, which was opened by `path`."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:  # a system without /proc, or a path that is too long for it
        real_path = os.path.realpath(path)
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(real_path), os.fstat(descriptor)):
            return real_path
    raise ImageError(Reason.CHANGED, "the file was replaced while it was opened; run the same command again")


def _is_under(path: str, folder: str) -> bool:
    """Return whether a path is a folder or below it, by their names."""
    return path == folder or path.startswith(folder if folder.endswith("/") else folder + "/")


def _unreadable(path: str, error: OSError) -> ImageError | WorkerFault:
    if error.errno in WORKER_ERRORS:
        return WorkerFault(f"{path} cannot be read by this worker: {error.strerror}")
    return ImageError(Reason.UNREADABLE, f"the file cannot be read: {error.strerror}")
