"""The URIs of photos and of places with photos: file:///... and s3://bucket/key."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from qsit.errors import SourceError

S3_SCHEME = "s3://"
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def local_path(source: str) -> Path:
    """
    The absolute path of a source, links not resolved.

    Raises:
        SourceError: when it is a URL of another kind than file:// .
    """
    if source.startswith("file:///"):
        return Path(os.path.abspath(path_of(source)))
    if "://" in source:
        kind = source.split("://", 1)[0]
        raise SourceError(f"{kind}:// sources are not read; name a folder, a file or s3://bucket/key")
    return Path(os.path.abspath(os.path.expanduser(source)))


def uri_of(path: str | os.PathLike[str]) -> str:
    """The file:// URI of an absolute path, whatever bytes its name has."""
    return "file://" + quote(os.fsencode(path))


def path_of(uri: str) -> Path:
    """The path of a file:// URI."""
    return Path(path_name(uri))


def path_name(uri: str) -> str:
    """The path of a file:// URI, as text."""
    return os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))


def full_name(source: str) -> str:
    """
    A source whatever the folder where it is named: an absolute path, links not resolved, or an s3:// URI.

    Raises:
        SourceError: when it is of another kind.
    """
    if source.startswith(S3_SCHEME):
        split_s3_uri(source)
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
    if source.startswith(S3_SCHEME):
        return {S3_SCHEME + split_s3_uri(source)[0]} if source.endswith("*") else {source}
    path = local_path(source)
    return {str(path)} if path.is_dir() else {str(path.parent), str(path.resolve().parent)}


def common_roots(sources: Iterable[str]) -> set[str]:
    """The same for a long list of sources: one folder for all that are local, and the buckets of the others."""
    folders: set[str] = set()
    buckets: set[str] = set()
    for source in sources:
        with suppress(SourceError):  # which is told when it is listed
            if source.startswith(S3_SCHEME):
                buckets.add(S3_SCHEME + split_s3_uri(source)[0])
            else:
                folders |= roots_of(source)
    return buckets | ({os.path.commonpath(folders)} if folders else set())


def split_s3_uri(uri: str) -> tuple[str, str]:
    """
    Bucket and key of an s3:// URI; the key may be empty.

    Raises:
        SourceError: when it names no bucket, or its key can be none.
    """
    bucket, _, key = uri.removeprefix(S3_SCHEME).partition("/")
    if not uri.startswith(S3_SCHEME) or not BUCKET.fullmatch(bucket):
        raise SourceError(f"{uri!r} names no bucket; write s3://bucket/key, or s3://bucket/folder for all below it")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{uri!r} can be no key of S3: it is not UTF-8") from error
    if "\0" in key:
        raise SourceError(f"{uri!r} is a key that no database takes: it has a NUL")
    return bucket, key
