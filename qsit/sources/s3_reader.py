"""Photos in S3, opened under the places that a worker may read. Each error is either the photo's or the worker's."""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qsit.errors import ImageError, QsitError, WorkerFault
from qsit.sources.photo import OpenPhoto, check_bytes
from qsit.sources.s3_client import MAX_ATTEMPTS, S3Client, etag_of, object_version
from qsit.sources.uris import s3_uri, split_s3_uri
from qsit.states import UNKNOWN_VERSION, Reason

if TYPE_CHECKING:
    from qsit.sources.s3_errors import S3ErrorKind

READ_LIMIT_S = 120
"""Seconds that a photo may take to arrive, in addition to its size at MIN_BYTES_PER_S."""
MIN_BYTES_PER_S = 50_000
BUCKET_BACKOFF_S = 10.0
"""Seconds without requests to a bucket that cannot be reached. Opening its photos fails at once in this time."""
MAX_OBJECT_ATTEMPTS = 3
"""Failures after which an object is unreadable, if S3 returns other objects of its bucket."""
PROBE_OBJECTS = 3
"""Other objects that are tried to find out whether a bucket can be read."""
BLOCK_BYTES = 1 << 16


class S3Reader:
    """Opens objects under the roots, which are s3:// URIs. Serves many threads at once."""

    def __init__(self, roots: Sequence[str], client: S3Client) -> None:
        self._roots = tuple(roots)
        self._client = client
        self._unreachable: dict[str, tuple[float, str]] = {}  # bucket -> until when, and why
        self._last_read: dict[str, str] = {}  # bucket -> key
        self._failures: Counter[str] = Counter()  # by URI, while S3 returned other objects

    @contextmanager
    def opened(self, uri: str, version: str) -> Iterator[OpenPhoto]:
        """
        Open a photo at `version`, or at its current version if that is UNKNOWN_VERSION.

        Raises ImageError when it is gone, changed, archived or too large, or S3 returns others of its bucket but not
        it. Raises WorkerFault when it is outside the roots, or S3, its credentials or the network are at fault.
        """
        if not self._may_open(uri):
            raise WorkerFault(f"{uri} is under none of this worker's roots; start it with --root, or set QSIT_ROOTS")
        bucket, key = split_s3_uri(uri)
        with self._translate_errors(bucket, key):
            response = self._get(bucket, key, version)
            found = object_version(response)
        with response["Body"]:
            if version not in (UNKNOWN_VERSION, found):
                raise _changed()  # some servers ignore IfMatch

            def read() -> bytes:
                with self._translate_errors(bucket, key):
                    data = self._read_body(bucket, key, response)
                self._last_read[bucket] = key
                self._failures.pop(uri, None)
                return data

            yield OpenPhoto(found, read)

    def _may_open(self, uri: str) -> bool:
        return any(uri == root or uri.startswith(root.rstrip("/") + "/") for root in self._roots)

    def _get(self, bucket: str, key: str, version: str = UNKNOWN_VERSION) -> dict[str, Any]:
        etag = etag_of(version)
        condition = {"IfMatch": f'"{etag}"'} if etag else {}
        response: dict[str, Any] = self._client.connect().get_object(Bucket=bucket, Key=key, **condition)
        return response

    def _read_body(self, bucket: str, key: str, response: dict[str, Any]) -> bytes:
        """Return the body of a response. A body that breaks off is requested again, at the same version."""
        from botocore.exceptions import FlexibleChecksumError, HTTPClientError, IncompleteReadError

        version = object_version(response)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return _read_bounded(response)
            except (FlexibleChecksumError, HTTPClientError, IncompleteReadError):
                if attempt == MAX_ATTEMPTS:
                    raise
            time.sleep(random.uniform(0, 2.0 ** (attempt - 1)))  # noqa: S311 -- jitter
            response["Body"].close()
            response = self._get(bucket, key, version)
            if object_version(response) != version:
                raise _changed()
        raise AssertionError("unreachable")

    @contextmanager
    def _translate_errors(self, bucket: str, key: str) -> Iterator[None]:
        """Turn errors of boto3 into ImageError or WorkerFault; raise WorkerFault at once for an unreachable bucket."""
        until, why = self._unreachable.get(bucket, (0.0, ""))
        if time.monotonic() < until:
            raise WorkerFault(why)
        try:
            yield
        except QsitError:
            raise
        except Exception as error:  # boto3 has no base class for errors of its settings, its plugins and the network
            from qsit.sources.s3_errors import classify_error

            kind, message = classify_error(error, s3_uri(bucket, key), "s3:GetObject", self._client.endpoint_url)
            raise self._attribute(kind, message, bucket, key) from error

    def _attribute(self, kind: "S3ErrorKind", message: str, bucket: str, key: str) -> ImageError | WorkerFault:
        """Return an error as the photo's or the worker's."""
        from qsit.sources.s3_errors import S3ErrorKind

        reasons = {
            S3ErrorKind.MISSING: Reason.MISSING,
            S3ErrorKind.CHANGED: Reason.CHANGED,
            S3ErrorKind.UNREADABLE: Reason.UNREADABLE,
        }
        if kind in reasons:
            return ImageError(reasons[kind], message)
        if kind in (S3ErrorKind.REFUSED, S3ErrorKind.FAILED) and self._can_read_others(bucket, key):
            uri = s3_uri(bucket, key)
            self._failures[uri] += 1
            if kind is S3ErrorKind.FAILED and self._failures[uri] < MAX_OBJECT_ATTEMPTS:
                return WorkerFault(message)
            del self._failures[uri]
            return ImageError(Reason.UNREADABLE, message)
        if kind is S3ErrorKind.CREDENTIALS:
            self._client.reset()
        self._unreachable[bucket] = (time.monotonic() + BUCKET_BACKOFF_S, message)
        return WorkerFault(message)

    def _can_read_others(self, bucket: str, key: str) -> bool:
        """Return whether S3 returns another object: the one that was read last, or one in the same folder."""
        try:
            others = [self._last_read[bucket]] if self._last_read.get(bucket, key) != key else []
            if not others:
                folder = key[: key.rfind("/") + 1]
                page = self._client.connect().list_objects_v2(Bucket=bucket, Prefix=folder, MaxKeys=PROBE_OBJECTS + 1)
                others = [entry["Key"] for entry in page.get("Contents", ()) if entry["Key"] != key]
        except Exception:  # noqa: BLE001 -- a failed probe proves nothing
            return False
        for other in others:
            if not self._may_open(s3_uri(bucket, other)):
                continue
            try:
                self._get(bucket, other)["Body"].close()
            except Exception:  # noqa: BLE001, S112 -- a failed probe proves nothing
                continue
            return True
        return False


def _changed() -> ImageError:
    return ImageError(Reason.CHANGED, "the object changed after it was listed; run the same command again")


def _read_bounded(response: dict[str, Any]) -> bytes:
    """Return the body, within the limits on bytes and time."""
    size = response["ContentLength"]
    check_bytes(size)
    limit_s = READ_LIMIT_S + size / MIN_BYTES_PER_S
    deadline = time.monotonic() + limit_s
    data = bytearray()
    while block := response["Body"].read(BLOCK_BYTES):
        data += block
        if time.monotonic() > deadline:
            raise WorkerFault(f"S3 is slow: {len(data):,} of {size:,} bytes arrived in {limit_s:.0f} s")
    return bytes(data)
