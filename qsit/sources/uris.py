"""The URIs of photos: file:///... and s3://bucket/key."""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from qsit.errors import SourceError

FILE_SCHEME = "file://"
S3_SCHEME = "s3://"
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def local_path(source: str) -> Path:
    """
    Return the absolute path of a local source, links not resolved.

    Raises SourceError when it is a URL other than file:///, or no file can have the name.
    """
    if "\0" in source:
        raise SourceError(f"cannot read {source!r}: the name contains a NUL byte")
    try:
        os.fsencode(source)
    except UnicodeEncodeError as error:
        raise SourceError(f"cannot read {source!r}: the name contains invalid UTF-8") from error
    if source.startswith(f"{FILE_SCHEME}/"):
        return _absolute(path_name(source))
    if "://" in source:
        scheme = source.split("://", 1)[0]
        raise SourceError(f"{scheme}:// sources are not supported; name a folder, a file or s3://bucket/key")
    return _absolute(os.path.expanduser(source))


def _absolute(path: str) -> Path:
    return Path(re.sub("^/+", "/", os.path.abspath(path)))  # POSIX keeps two slashes at the beginning


def uri_of(path: str | os.PathLike[str]) -> str:
    """Return the file:// URI of an absolute path, whatever bytes its name has."""
    return FILE_SCHEME + quote(os.fsencode(path))


def path_of(uri: str) -> Path:
    """Return the path of a file:// URI."""
    return Path(path_name(uri))


def path_name(uri: str) -> str:
    """Return the path of a file:// URI as text, with its dots as they are."""
    return os.fsdecode(unquote_to_bytes(uri.removeprefix(FILE_SCHEME)))


def is_local(uri: str) -> bool:
    """Return whether the URI of a photo is a file:// URI."""
    return uri.startswith(FILE_SCHEME)


def path_or_uri(uri: str) -> str:
    """Return the path of a local URI, and any other URI unchanged."""
    return str(path_of(uri)) if is_local(uri) else uri


def split_s3_uri(uri: str) -> tuple[str, str]:
    """
    Return bucket and key of an s3:// URI; the key may be empty.

    Raises SourceError when it names no bucket, or no object can have the key.
    """
    bucket, _, key = uri.removeprefix(S3_SCHEME).partition("/")
    if not uri.startswith(S3_SCHEME) or not BUCKET.fullmatch(bucket):
        raise SourceError(f"{uri!r} names no bucket; write s3://bucket/key, or s3://bucket/folder for all below it")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{uri!r} is not a key of S3: it contains invalid UTF-8") from error
    if "\0" in key:
        raise SourceError(f"{uri!r} is not supported: the key contains a NUL byte")
    return bucket, key


def s3_uri(bucket: str, key: str = "") -> str:
    """Return the s3:// URI of an object, or of a bucket."""
    return f"{S3_SCHEME}{bucket}/{key}" if key else f"{S3_SCHEME}{bucket}"
