"""
Photos in S3 and whatever speaks its protocol: listed, and opened under the places that a worker may read.

A URI is s3://bucket/key with the key as it is, not percent-encoded. A version is the ETag and the size, which a
listing and a GET both tell; the same content put again keeps them.
"""

import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from models.errors import ImageError, SourceError, WorkerFault
from models.states import UNKNOWN_VERSION, Reason
from worker.photos import Choice, Found, Photo, check_bytes

if TYPE_CHECKING:
    from worker.s3_errors import Trouble

SCHEME = "s3://"
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")

CONNECT_S, SILENCE_S, READ_S = 5, 20, 120
"""Patience with a connection, with an answer that does not go on, and with one photo."""
ATTEMPTS = 4
"""Of a request, by botocore's standard retries; of reading a body, by ours."""
REST_S = 10.0
"""How long a bucket out of reach is left alone: others of a chunk are not tried one by one meanwhile."""
BLOCK = 1 << 16


def split(uri: str) -> tuple[str, str]:
    """
    Bucket and key of an s3:// URI; the key may be empty.

    Raises:
        SourceError: when it names no bucket, or its key can be none.
    """
    bucket, _, key = uri.removeprefix(SCHEME).partition("/")
    if not uri.startswith(SCHEME) or not BUCKET.fullmatch(bucket):
        raise SourceError(f"{uri!r} names no bucket; write s3://bucket/key, or s3://bucket/folder for all below it")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{uri!r} can be no key of S3: it is not UTF-8") from error
    return bucket, key


def covers(root: str, uri: str) -> bool:
    """Whether an s3:// URI is `root` or below it."""
    return uri == root or uri.startswith(root.rstrip("/") + "/")


class Buckets:
    """
    One client for all threads of a process, made when it is first needed: boto3 is loaded for S3 only.

    roots: the s3:// places that may be opened. endpoint_url: of an S3-compatible server; AWS if None.
    connections: how many threads read at once.
    """

    def __init__(self, roots: Sequence[str] = (), *, endpoint_url: str | None = None, connections: int = 1) -> None:
        self._roots = tuple(roots)
        self._endpoint_url = endpoint_url
        self._connections = connections
        self._lock = threading.Lock()
        self._client: Any = None
        self._resting: dict[str, tuple[float, str]] = {}  # bucket -> until when, and why
        self._read_from: set[str] = set()  # buckets of which something could be read

    def check(self, source: str) -> None:
        """
        Passes when a source can be listed.

        Raises:
            SourceError: when not; tells what to do.
        """
        bucket, key = split(source)
        with self._listing(bucket):
            self._connected().list_objects_v2(Bucket=bucket, Prefix=key.removesuffix("*"), MaxKeys=1)

    def walk(self, choice: Choice, source: str, *, of_list: bool = False) -> Iterator[Found]:
        """
        The photos of `s3://bucket/key`, an object or what lies below it as in a folder, in the order of keys. A `*`
        at the end takes every key that begins so. An object `of_list` is found without asking S3, its version
        unknown.

        Raises:
            SourceError: when the bucket cannot be listed.
        """
        bucket, key = split(source)
        if of_list and key and not key.endswith(("/", "*")):
            yield Found(source, UNKNOWN_VERSION)
        elif key.endswith("*"):
            yield from self._below(choice, bucket, key[:-1])
        elif not key or key.endswith("/"):
            yield from self._below(choice, bucket, key)
        else:
            for entry in self._entries(bucket, key, MaxKeys=1):
                if entry["Key"] == key:
                    yield Found(source, _version(entry))
                break  # of the keys that begin so, it is the first
            yield from self._below(choice, bucket, key + "/")

    def _below(self, choice: Choice, bucket: str, prefix: str) -> Iterator[Found]:
        """The photos whose keys begin with `prefix`; names are looked at below its last folder."""
        start = prefix.rfind("/") + 1
        folder, left_out = "", False
        for entry in self._entries(bucket, prefix):
            key: str = entry["Key"]
            inner, _, name = key[start:].rpartition("/")
            if inner != folder:
                folder, left_out = inner, _left_out(choice, f"{SCHEME}{bucket}/{key[:start]}", inner)
            if not name or left_out:
                continue  # what S3 browsers make to show a folder, or what lies in one that is passed over
            uri = f"{SCHEME}{bucket}/{key}"
            if "\0" in key:
                choice.unreadable.append(f"{uri!r}: no database takes this key")
            elif not choice.passes_over(name, uri) and choice.takes(name):
                yield Found(uri, _version(entry))

    def _entries(self, bucket: str, prefix: str, **options: int) -> Iterator[dict[str, Any]]:
        with self._listing(bucket):
            pages = self._connected().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **options)
            for page in pages:
                yield from page.get("Contents", ())

    @contextmanager
    def opened(self, uri: str, version: str) -> Iterator[Photo]:
        """
        A photo at `version`, or at the one it has now if that is UNKNOWN_VERSION.

        Raises:
            ImageError: when it is gone, changed, archived, denied though others of its bucket are not, or too large.
            WorkerFault: when it is outside the roots, or S3, its credentials or the network are at fault.
        """
        if not any(covers(root, uri) for root in self._roots):
            raise WorkerFault(f"{uri} is under none of this worker's roots; start it with --root, or set QSIT_ROOTS")
        bucket, key = split(uri)
        with self._reading(bucket, key):
            response = self._get(bucket, key, version)
        with response["Body"]:
            found = _version(response)
            if version not in (UNKNOWN_VERSION, found):
                raise _changed()  # by a server that does not heed IfMatch
            self._read_from.add(bucket)

            def read() -> bytes:
                with self._reading(bucket, key):
                    return self._body(bucket, key, response)

            yield Photo(found, read)

    def _get(self, bucket: str, key: str, version: str) -> dict[str, Any]:
        etag = version.rpartition("-")[0]
        condition = {"IfMatch": f'"{etag}"'} if etag and not etag.startswith("@") else {}
        response: dict[str, Any] = self._connected().get_object(Bucket=bucket, Key=key, **condition)
        return response

    def _body(self, bucket: str, key: str, response: dict[str, Any]) -> bytes:
        """The bytes behind a response; a body that breaks off is asked for again, at the same version."""
        from botocore.exceptions import FlexibleChecksumError, HTTPClientError, IncompleteReadError

        version = _version(response)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _bounded(response)
            except (FlexibleChecksumError, HTTPClientError, IncompleteReadError):
                if attempt == ATTEMPTS:
                    raise
            time.sleep(random.uniform(0, 2.0 ** (attempt - 1)))  # noqa: S311 -- jitter
            response["Body"].close()
            response = self._get(bucket, key, version)
            if _version(response) != version:
                raise _changed()
        raise AssertionError("unreachable")

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                import boto3
                from botocore.config import Config

                self._client = boto3.session.Session().client(
                    "s3",
                    endpoint_url=self._endpoint_url,
                    config=Config(
                        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                        max_pool_connections=self._connections,
                        connect_timeout=CONNECT_S,
                        read_timeout=SILENCE_S,
                        s3={"addressing_style": "path"} if self._endpoint_url else None,
                    ),
                )
            return self._client

    @contextmanager
    def _listing(self, bucket: str) -> Iterator[None]:
        """What goes wrong meanwhile is told to who named the source."""
        from botocore.exceptions import BotoCoreError, ClientError

        from worker.s3_errors import told_apart

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            _, words = told_apart(error, f"{SCHEME}{bucket}", "s3:ListBucket", self._endpoint_url)
            raise SourceError(words) from error

    @contextmanager
    def _reading(self, bucket: str, key: str) -> Iterator[None]:
        """What goes wrong meanwhile is laid to the photo or to the worker; a bucket out of reach is left alone."""
        from botocore.exceptions import BotoCoreError, ClientError

        from worker.s3_errors import told_apart

        until, why = self._resting.get(bucket, (0.0, ""))
        if time.monotonic() < until:
            raise WorkerFault(why)
        try:
            yield
        except (BotoCoreError, ClientError) as error:
            trouble, words = told_apart(error, f"{SCHEME}{bucket}/{key}", "s3:GetObject", self._endpoint_url)
            raise self._laid(trouble, words, bucket) from error

    def _laid(self, trouble: "Trouble", words: str, bucket: str) -> ImageError | WorkerFault:
        from worker.s3_errors import Trouble

        reasons = {
            Trouble.MISSING: Reason.MISSING,
            Trouble.CHANGED: Reason.CHANGED,
            Trouble.UNREADABLE: Reason.UNREADABLE,
        }
        if trouble is Trouble.DENIED and bucket in self._read_from:
            return ImageError(Reason.UNREADABLE, words)  # others of its bucket are not denied
        if trouble in reasons:
            return ImageError(reasons[trouble], words)
        if trouble is Trouble.CREDENTIALS:
            with self._lock:
                self._client = None  # so that renewed ones are found
        if trouble is not Trouble.DENIED:
            self._resting[bucket] = (time.monotonic() + REST_S, words)
        return WorkerFault(words)


def _changed() -> ImageError:
    return ImageError(Reason.CHANGED, "the object changed after it was listed; run the same command again")


def _left_out(choice: Choice, start: str, inner: str) -> bool:
    """Whether one of the folders that `inner` is made of is passed over."""
    path = start
    for name in inner.split("/") if inner else ():
        path += name
        if choice.passes_over(name, path):
            return True
        path += "/"
    return False


def _version(said: dict[str, Any]) -> str:
    """Of an entry of a listing, or of the answer to a GET."""
    size = said["Size"] if "Size" in said else said["ContentLength"]
    etag = said.get("ETag", "").removeprefix("W/").strip('"')
    return f"{etag or '@' + str(int(said['LastModified'].timestamp()))}-{size}"


def _bounded(response: dict[str, Any]) -> bytes:
    """The body, within the limits of bytes and time."""
    check_bytes(response["ContentLength"])
    deadline = time.monotonic() + READ_S
    data = bytearray()
    while block := response["Body"].read(BLOCK):
        data += block
        if time.monotonic() > deadline:
            raise WorkerFault(f"S3 is slow: {len(data):,} of {response['ContentLength']:,} bytes in {READ_S} s")
    return bytes(data)
