"""Photos in S3, opened under the places that a worker may read; what goes wrong is laid to the photo or the worker."""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qsit.errors import ImageError, QsitError, WorkerFault
from qsit.sources.filters import OpenPhoto, check_bytes
from qsit.sources.s3_client import ATTEMPTS, Client, etag_of, version_of
from qsit.sources.uris import S3_SCHEME, split_s3_uri
from qsit.states import UNKNOWN_VERSION, Reason

if TYPE_CHECKING:
    from qsit.sources.s3_errors import S3ErrorKind

READ_S, SLOWEST = 120, 50_000
"""Seconds that one photo may take, and bytes a second that it may take beyond them."""
REST_S = 10.0
"""How long a bucket out of reach is left alone: others of a chunk are not tried one by one meanwhile."""
ROUNDS = 3
"""So often an object is tried that S3 fails to give while it gives others of its bucket."""
NEIGHBOURS = 3
"""Objects that are tried to see whether a bucket can be read at all."""
BLOCK = 1 << 16


def covers(root: str, uri: str) -> bool:
    """Whether an s3:// URI is `root` or below it."""
    return uri == root or uri.startswith(root.rstrip("/") + "/")


class S3Reader:
    """
    Serves many threads at once.

    roots: the s3:// places that may be opened.
    """

    def __init__(self, roots: Sequence[str], client: Client) -> None:
        self._roots = tuple(roots)
        self._client = client
        self._resting: dict[str, tuple[float, str]] = {}  # bucket -> until when, and why
        self._good: dict[str, str] = {}  # bucket -> the key that was read last
        self._rounds: Counter[str] = Counter()  # URI -> how often S3 failed to give it, but gave others

    @contextmanager
    def opened(self, uri: str, version: str) -> Iterator[OpenPhoto]:
        """
        A photo at `version`, or at the one it has now if that is UNKNOWN_VERSION.

        Raises:
            ImageError: when it is gone, changed, archived, too large, or cannot be had though others of its bucket can.
            WorkerFault: when it is outside the roots, or S3, its credentials or the network are at fault.
        """
        if not self._may_open(uri):
            raise WorkerFault(f"{uri} is under none of this worker's roots; start it with --root, or set QSIT_ROOTS")
        bucket, key = split_s3_uri(uri)
        with self._laid(bucket, key):
            response = self._get(bucket, key, version)
            found = version_of(response)
        with response["Body"]:
            if version not in (UNKNOWN_VERSION, found):
                raise _changed()  # by a server that does not heed IfMatch

            def read() -> bytes:
                with self._laid(bucket, key):
                    data = self._body(bucket, key, response)
                self._good[bucket] = key
                return data

            yield OpenPhoto(found, read)

    def _may_open(self, uri: str) -> bool:
        return any(covers(root, uri) for root in self._roots)

    def _get(self, bucket: str, key: str, version: str = UNKNOWN_VERSION) -> dict[str, Any]:
        etag = etag_of(version)
        condition = {"IfMatch": f'"{etag}"'} if etag else {}
        response: dict[str, Any] = self._client.connected().get_object(Bucket=bucket, Key=key, **condition)
        return response

    def _body(self, bucket: str, key: str, response: dict[str, Any]) -> bytes:
        """The bytes behind a response; a body that breaks off is asked for again, at the same version."""
        from botocore.exceptions import FlexibleChecksumError, HTTPClientError, IncompleteReadError

        version = version_of(response)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _bounded(response)
            except (FlexibleChecksumError, HTTPClientError, IncompleteReadError):
                if attempt == ATTEMPTS:
                    raise
            time.sleep(random.uniform(0, 2.0 ** (attempt - 1)))  # noqa: S311 -- jitter
            response["Body"].close()
            response = self._get(bucket, key, version)
            if version_of(response) != version:
                raise _changed()
        raise AssertionError("unreachable")

    @contextmanager
    def _laid(self, bucket: str, key: str) -> Iterator[None]:
        """What goes wrong meanwhile is laid to the photo or to the worker; a bucket out of reach is left alone."""
        until, why = self._resting.get(bucket, (0.0, ""))
        if time.monotonic() < until:
            raise WorkerFault(why)
        try:
            yield
        except QsitError:
            raise
        except Exception as error:  # boto3 has no base for what its settings, its plugins and the network raise
            from qsit.sources.s3_errors import classify_error

            trouble, words = classify_error(
                error, f"{S3_SCHEME}{bucket}/{key}", "s3:GetObject", self._client.endpoint_url
            )
            raise self._verdict(trouble, words, bucket, key) from error

    def _verdict(self, trouble: "S3ErrorKind", words: str, bucket: str, key: str) -> ImageError | WorkerFault:
        from qsit.sources.s3_errors import S3ErrorKind

        reasons = {
            S3ErrorKind.MISSING: Reason.MISSING,
            S3ErrorKind.CHANGED: Reason.CHANGED,
            S3ErrorKind.UNREADABLE: Reason.UNREADABLE,
        }
        if trouble in reasons:
            return ImageError(reasons[trouble], words)
        of_one = trouble in (S3ErrorKind.REFUSED, S3ErrorKind.FAILED)
        if of_one and self._gives_others(bucket, key):
            uri = f"{S3_SCHEME}{bucket}/{key}"
            self._rounds[uri] += 1
            if trouble is S3ErrorKind.FAILED and self._rounds[uri] < ROUNDS:
                return WorkerFault(words)
            del self._rounds[uri]
            return ImageError(Reason.UNREADABLE, words)
        if trouble is S3ErrorKind.CREDENTIALS:
            self._client.forget()
        self._resting[bucket] = (time.monotonic() + REST_S, words)
        return WorkerFault(words)

    def _gives_others(self, bucket: str, key: str) -> bool:
        """Whether an object can be had that was read before, or else one of those beside this one."""
        try:
            others = [self._good[bucket]] if self._good.get(bucket, key) != key else []
            if not others:
                folder = key[: key.rfind("/") + 1]
                page = self._client.connected().list_objects_v2(Bucket=bucket, Prefix=folder, MaxKeys=NEIGHBOURS + 1)
                others = [entry["Key"] for entry in page.get("Contents", ()) if entry["Key"] != key]
        except Exception:  # noqa: BLE001 -- what fails here is no proof of anything
            return False
        for other in others:
            if not self._may_open(f"{S3_SCHEME}{bucket}/{other}"):
                continue
            try:
                self._get(bucket, other)["Body"].close()
            except Exception:  # noqa: BLE001, S112 -- nor here
                continue
            return True
        return False


def _changed() -> ImageError:
    return ImageError(Reason.CHANGED, "the object changed after it was listed; run the same command again")


def _bounded(response: dict[str, Any]) -> bytes:
    """The body, within the limits of bytes and time."""
    size = response["ContentLength"]
    check_bytes(size)
    patience_s = READ_S + size / SLOWEST
    deadline = time.monotonic() + patience_s
    data = bytearray()
    while block := response["Body"].read(BLOCK):
        data += block
        if time.monotonic() > deadline:
            raise WorkerFault(f"S3 is slow: {len(data):,} of {size:,} bytes in {patience_s:.0f} s")
    return bytes(data)
