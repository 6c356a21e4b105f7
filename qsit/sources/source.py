"""What a user names and the ledger names: folders, files, and places in S3."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from qsit.errors import SourceError, WorkerFault
from qsit.sources import local, s3_listing
from qsit.sources.filters import ListedPhoto, ListingFilter, OpenPhoto
from qsit.sources.local import LocalReader
from qsit.sources.s3_client import Client
from qsit.sources.s3_reader import S3Reader
from qsit.sources.uris import S3_SCHEME, full_name, local_path


@dataclass
class Listing(ListingFilter):
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
        if source.startswith(S3_SCHEME):
            s3_listing.check(self._client, source)
        elif not local_path(source).exists():
            raise SourceError(f"there is no {source}")

    def walk(self, source: str, *, of_list: bool = False) -> Iterator[ListedPhoto]:
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
        if source.startswith(S3_SCHEME):
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
        self._folders = LocalReader([Path(root) for root in roots if not root.startswith(S3_SCHEME)], mounted=mounted)
        places = [root for root in roots if root.startswith(S3_SCHEME)]
        self._buckets = S3Reader(places, Client(endpoint_url, connections))

    def opened(self, uri: str, version: str) -> AbstractContextManager[OpenPhoto]:
        """
        A photo, if it is still at the version that was listed.

        Raises:
            ImageError: when it is not, or cannot be had by the fault of the photo.
            WorkerFault: when no root of this worker covers it, or the worker cannot read what others may.
        """
        if uri.startswith(S3_SCHEME):
            return self._buckets.opened(uri, version)
        if uri.startswith("file://"):
            return self._folders.opened(uri, version)
        raise WorkerFault(f"this worker reads no {uri.split(':', 1)[0]} URIs")
