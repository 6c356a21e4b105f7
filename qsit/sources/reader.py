"""Photos by URI, opened under the roots of a worker."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from qsit.errors import WorkerFault
from qsit.sources.local_reader import LocalReader
from qsit.sources.local_source import LocalSource
from qsit.sources.photo import OpenPhoto
from qsit.sources.s3_client import S3Client
from qsit.sources.s3_reader import S3Reader
from qsit.sources.s3_source import S3Source
from qsit.sources.source import parse_source
from qsit.sources.uris import S3_SCHEME, is_local


class Reader:
    """
    Opens photos under a worker's roots, and nothing else. Serves many threads at once.

    mounted: see LocalReader. endpoint_url, connections: see S3Client.
    """

    def __init__(
        self, roots: Sequence[str], *, mounted: bool = False, endpoint_url: str | None = None, connections: int = 1
    ) -> None:
        sources = list(map(parse_source, roots))
        folders = [source.path for source in sources if isinstance(source, LocalSource)]
        places = [source.name for source in sources if isinstance(source, S3Source)]
        self._local = LocalReader(folders, mounted=mounted)
        self._s3 = S3Reader(places, S3Client(endpoint_url, connections))

    def opened(self, uri: str, version: str) -> AbstractContextManager[OpenPhoto]:
        """
        Open a photo if it still has the version that was listed.

        Raises ImageError when it has another version, or cannot be read through a fault of the photo. Raises
        WorkerFault when no root of this worker covers it, or the worker cannot read what others may.
        """
        if uri.startswith(S3_SCHEME):
            return self._s3.opened(uri, version)
        if is_local(uri):
            return self._local.opened(uri, version)
        raise WorkerFault(f"this worker reads no {uri.split(':', 1)[0]} URIs")
