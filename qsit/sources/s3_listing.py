"""The photos in a bucket, listed page by page."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qsit.errors import QsitError, SourceError
from qsit.sources.filters import ListedPhoto, ListingFilter
from qsit.sources.s3_client import Client, version_of
from qsit.sources.uris import S3_SCHEME, split_s3_uri
from qsit.states import UNKNOWN_VERSION


def check(client: Client, source: str) -> None:
    """
    Passes when a source can be listed.

    Raises:
        SourceError: when not; tells what to do.
    """
    bucket, key = split_s3_uri(source)
    with _translate_errors(client, bucket):
        client.connected().list_objects_v2(Bucket=bucket, Prefix=key.removesuffix("*"), MaxKeys=1)


def walk(client: Client, choice: ListingFilter, source: str, *, of_list: bool = False) -> Iterator[ListedPhoto]:
    """
    The photos of `s3://bucket/key`, an object or what lies below it as in a folder, in the order of keys. A `*`
    at the end takes every key that begins so. An object `of_list` is found without asking S3, its version
    unknown.

    Raises:
        SourceError: when the bucket cannot be listed.
    """
    bucket, key = split_s3_uri(source)
    if of_list and key and not key.endswith(("/", "*")):
        yield ListedPhoto(source, UNKNOWN_VERSION)
    elif key.endswith("*"):
        yield from _below(client, choice, bucket, key[:-1])
    elif not key or key.endswith("/"):
        yield from _below(client, choice, bucket, key)
    else:
        for entry in _entries(client, bucket, key, MaxKeys=1):
            if entry["Key"] == key:
                yield ListedPhoto(source, version_of(entry))
            break  # of the keys that begin so, it is the first
        yield from _below(client, choice, bucket, key + "/")


def _below(client: Client, choice: ListingFilter, bucket: str, prefix: str) -> Iterator[ListedPhoto]:
    """The photos whose keys begin with `prefix`; names are looked at below its last folder."""
    start = prefix.rfind("/") + 1
    folder, left_out = "", False
    for entry in _entries(client, bucket, prefix):
        key: str = entry["Key"]
        inner, _, name = key[start:].rpartition("/")
        if inner != folder:
            folder, left_out = inner, _left_out(choice, f"{S3_SCHEME}{bucket}/{key[:start]}", inner)
        if not name or left_out:
            continue  # what S3 browsers make to show a folder, or what lies in one that is passed over
        uri = f"{S3_SCHEME}{bucket}/{key}"
        if choice.passes_over(name, uri) or not choice.takes(name):
            continue
        try:
            split_s3_uri(uri)
        except SourceError as error:
            choice.unreadable.append(str(error))
        else:
            yield ListedPhoto(uri, version_of(entry))


def _left_out(choice: ListingFilter, start: str, inner: str) -> bool:
    """Whether one of the folders that `inner` is made of is passed over."""
    path = start
    for name in inner.split("/") if inner else ():
        path += name
        if choice.passes_over(name, path):
            return True
        path += "/"
    return False


def _entries(client: Client, bucket: str, prefix: str, **options: int) -> Iterator[dict[str, Any]]:
    with _translate_errors(client, bucket):
        pages = client.connected().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **options)
        for page in pages:
            yield from page.get("Contents", ())
            if page.get("IsTruncated") and not page.get("NextContinuationToken"):
                raise ValueError("it does not say how its listing goes on; it must speak ListObjectsV2")


@contextmanager
def _translate_errors(client: Client, bucket: str) -> Iterator[None]:
    """What goes wrong meanwhile is told to who named the source."""
    try:
        yield
    except QsitError:
        raise
    except Exception as error:  # boto3 has no base for what its settings, its plugins and the network raise
        from qsit.sources.s3_errors import classify_error

        _, words = classify_error(error, f"{S3_SCHEME}{bucket}", "s3:ListBucket", client.endpoint_url)
        raise SourceError(words) from error
