"""
One S3 client for all threads, and the versions of objects.

A version is the ETag and the size, which both a listing and a GET return. An object with the same content again has
the same version.
"""

import threading
from typing import Any

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 20
MAX_ATTEMPTS = 4
"""Attempts per request by botocore's standard retries, and per body by ours."""


def object_version(response: dict[str, Any]) -> str:
    """
    Return the version in an entry of a listing or in the response to a GET.

    Raises ValueError when the response is not from an S3 server.
    """
    size = response.get("Size", response.get("ContentLength"))
    etag = response.get("ETag", "").removeprefix("W/").strip('"')
    if size is None or not (etag or "LastModified" in response):
        raise ValueError("it answered without a size, or without ETag and date; is it an S3 server?")
    return f"{etag or '@' + str(int(response['LastModified'].timestamp()))}-{size}"


def etag_of(version: str) -> str:
    """Return the ETag in a version, or an empty text when it has none."""
    etag = version.rpartition("-")[0]
    return "" if etag.startswith("@") else etag


class S3Client:
    """
    The client of boto3, made on first use: boto3 is loaded for S3 only.

    endpoint_url: of an S3-compatible server; None for AWS, or for what boto3's own settings say.
    connections: how many threads use the client at once.
    """

    def __init__(self, endpoint_url: str | None = None, connections: int = 1) -> None:
        self.endpoint_url = endpoint_url
        self._connections = connections
        self._lock = threading.Lock()
        self._client: Any = None

    def connect(self) -> Any:
        """Return boto3's client. Errors in boto3's settings are raised as they are."""
        with self._lock:
            if self._client is None:
                import boto3
                from botocore.config import Config

                self._client = boto3.session.Session().client(
                    "s3",
                    endpoint_url=self.endpoint_url,
                    config=Config(
                        retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
                        max_pool_connections=self._connections,
                        connect_timeout=CONNECT_TIMEOUT_S,
                        read_timeout=READ_TIMEOUT_S,
                        s3={"addressing_style": "path"} if self.endpoint_url else None,
                    ),
                )
            return self._client

    def reset(self) -> None:
        """Make a new client on next use, which finds renewed credentials."""
        with self._lock:
            self._client = None
