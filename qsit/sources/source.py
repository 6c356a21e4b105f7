"""What a user names and the ledger names: folders, files, and places in S3."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from qsit.errors import SourceError, WorkerFault
from qsit.sources import local, s3_client, s3_listing
from qsit.sources.filters import Choice, Found, Photo
from qsit.sources.local import Folders, local_path, uri_of
from qsit.sources.s3_client import SCHEME, Client
from qsit.sources.s3_reader import Buckets


@dataclass
class Listing(Choice):
    """Lists sources, and counts what it passes over."""

    endpoint_url: str | None = None  # of an S3-compatible server
    _client: Client = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._client = Client(self.endpoint_url)

    def check(self, source: str) -> None:
        """
        Passes when a source is there.

        Raises:
            SourceError: when not.
        """
        if source.startswith(SCHEME):
            s3_listing.check(self._client, source)
        elif not local_path(source).exists():
            raise SourceError(f"there is no {source}")

    def walk(self, source: str, *, of_list: bool = False) -> Iterator[Found]:
        """
        The photos of a source, streaming. What is `of_list` costs only itself when it is not there.

        Raises:
            SourceError: when the source does not exist or cannot be listed.
        """
        try:
            full_name(source)
        except SourceError as error:
            if not of_list:
                raise
            self.unreadable.append(str(error))
            return
        if source.startswith(SCHEME):
            yield from s3_listing.walk(self._client, self, source, of_list=of_list)
        else:
            yield from local.walk(self, source, of_list=of_list)


class Reader:
    """
    Opens photos under a worker's roots, and nothing else. Serves many threads at once.

    mounted: see Folders; endpoint_url, connections: see Client.
    """

    def __init__(
        self,
        roots: Sequence[str],
        *,
        mounted: bool = False,
        endpoint_url: str | None = None,
        connections: int = 1,
    ) -> None:
        self._folders = Folders([Path(root) for root in roots if not root.startswith(SCHEME)], mounted=mounted)
        places = [root for root in roots if root.startswith(SCHEME)]
        self._buckets = Buckets(places, Client(endpoint_url, connections))

    def opened(self, uri: str, version: str) -> AbstractContextManager[Photo]:
        """
        A photo, if it is still at the version that was listed.

        Raises:
            ImageError: when it is not, or cannot be had by the fault of the photo.
            WorkerFault: when no root of this worker covers it, or the worker cannot read what others may.
        """
        if uri.startswith(SCHEME):
            return self._buckets.opened(uri, version)
        if uri.startswith("file://"):
            return self._folders.opened(uri, version)
        raise WorkerFault(f"this worker reads no {uri.split(':', 1)[0]} URIs")


def full_name(source: str) -> str:
    """
    A source whatever the folder where it is named: an absolute path, links not resolved, or an s3:// URI.

    Raises:
        SourceError: when it is of another kind.
    """
    if source.startswith(SCHEME):
        s3_client.split(source)
        return source
    return str(local_path(source))


def prefix_of(place: str) -> str:
    """What the URIs of photos begin with that are in a folder, or whose path or URI begins with `place`."""
    if "://" in place:
        return place
    path = local_path(place)
    return uri_of(path) + ("/" if place.endswith("/") or path.is_dir() else "")


def roots_of(source: str) -> set[str]:
    """What a worker must be allowed to read for a source."""
    if source.startswith(SCHEME):
        return {SCHEME + s3_client.split(source)[0]} if source.endswith("*") else {source}
    path = local_path(source)
    return {str(path)} if path.is_dir() else {str(path.parent), str(path.resolve().parent)}


def common_roots(sources: Iterable[str]) -> set[str]:
    """The same for a long list of sources: one folder for all that are local, and the buckets of the others."""
    folders: set[str] = set()
    buckets: set[str] = set()
    for source in sources:
        with suppress(SourceError):  # which is told when it is listed
            if source.startswith(SCHEME):
                buckets.add(SCHEME + s3_client.split(source)[0])
            else:
                folders |= roots_of(source)
    return buckets | ({os.path.commonpath(folders)} if folders else set())
