"""
What listing and reading S3 have in common: URIs, versions, and one client for all threads.

A URI is s3://bucket/key with the key as it is, not percent-encoded. A version is the ETag and the size, which a
listing and a GET both tell; the same content put again keeps them.
"""

import threading
from typing import Any

CONNECT_S, SILENCE_S = 5, 20
"""Patience with a connection, and with an answer that does not go on."""
ATTEMPTS = 4
"""Of a request, by botocore's standard retries; of reading a body, by ours."""


def version_of(said: dict[str, Any]) -> str:
    """
    Of an entry of a listing, or of the answer to a GET.

    Raises:
        ValueError: when the answer is not one of S3.
    """
    size = said.get("Size", said.get("ContentLength"))
    etag = said.get("ETag", "").removeprefix("W/").strip('"')
    if size is None or not (etag or "LastModified" in said):
        raise ValueError("it answered without a size, or without ETag and date; is it an S3 server?")
    return f"{etag or '@' + str(int(said['LastModified'].timestamp()))}-{size}"


def etag_of(version: str) -> str:
    """The ETag in a version, if it has one."""
    etag = version.rpartition("-")[0]
    return "" if etag.startswith("@") else etag


class Client:
    """
    boto3's client, made when it is first needed: boto3 is loaded for S3 only.

    endpoint_url: of an S3-compatible server; AWS, or what boto3's own settings say, if None.
    connections: how many threads use it at once.
    """

    def __init__(self, endpoint_url: str | None = None, connections: int = 1) -> None:
        self.endpoint_url = endpoint_url
        self._connections = connections
        self._lock = threading.Lock()
        self._client: Any = None

    def connected(self) -> Any:
        """The client; whatever boto3 cannot make of the user's settings is raised as it comes."""
        with self._lock:
            if self._client is None:
                import boto3
                from botocore.config import Config

                self._client = boto3.session.Session().client(
                    "s3",
                    endpoint_url=self.endpoint_url,
                    config=Config(
                        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                        max_pool_connections=self._connections,
                        connect_timeout=CONNECT_S,
                        read_timeout=SILENCE_S,
                        s3={"addressing_style": "path"} if self.endpoint_url else None,
                    ),
                )
            return self._client

    def forget(self) -> None:
        """Make it anew when it is next needed, so that renewed credentials are found."""
        with self._lock:
            self._client = None
