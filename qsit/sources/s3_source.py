"""The photos of a place in S3, listed page by page."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qsit.errors import QsitError, SourceError
from qsit.sources.listing import Listing
from qsit.sources.photo import ListedPhoto
from qsit.sources.s3_client import S3Client, object_version
from qsit.sources.uris import s3_uri, split_s3_uri
from qsit.states import UNKNOWN_VERSION


@dataclass(frozen=True)
class S3Source:
    """An object, or a folder with all below it; with a `*` at the end of the key, every key that begins so."""

    bucket: str
    key: str

    @property
    def name(self) -> str:
        """The s3:// URI."""
        return s3_uri(self.bucket, self.key)

    def uris(self) -> tuple[str, ...]:
        """Return the URI of the object."""
        return (self.name,)

    def roots(self) -> set[str]:
        """Return what a worker must be allowed to read."""
        return {s3_uri(self.bucket) if self.key.endswith("*") else self.name}

    def check(self, listing: Listing) -> None:
        """Check that the source can be listed. Raises SourceError when it cannot; says what to do."""
        with _translate_errors(listing.s3, self.bucket):
            listing.s3.connect().list_objects_v2(Bucket=self.bucket, Prefix=self.key.removesuffix("*"), MaxKeys=1)

    def walk(self, listing: Listing, *, of_list: bool = False) -> Iterator[ListedPhoto]:
        """
        Yield the photos in the order of keys.

        of_list: whether the source is an entry of a list. An object is then yielded without a request to S3, with an
        unknown version.

        Raises SourceError when the bucket cannot be listed.
        """
        if self.key.endswith("*"):
            yield from _walk_prefix(listing, self.bucket, self.key[:-1])
        elif not self.key or self.key.endswith("/"):
            yield from _walk_prefix(listing, self.bucket, self.key)
        elif of_list:
            yield ListedPhoto(self.name, UNKNOWN_VERSION)
        else:
            first = next(_list_entries(listing.s3, self.bucket, self.key, MaxKeys=1), None)
            if first is not None and first["Key"] == self.key:
                yield ListedPhoto(self.name, object_version(first))
            yield from _walk_prefix(listing, self.bucket, self.key + "/")


def _walk_prefix(listing: Listing, bucket: str, prefix: str) -> Iterator[ListedPhoto]:
    """Yield the photos whose keys begin with `prefix`. The filter sees names below the last folder of the prefix."""
    start = prefix.rfind("/") + 1
    folder, is_excluded = "", False
    for entry in _list_entries(listing.s3, bucket, prefix):
        key: str = entry["Key"]
        inner, _, name = key[start:].rpartition("/")
        if inner != folder:
            folder, is_excluded = inner, _excludes_folder(listing, f"{s3_uri(bucket)}/{key[:start]}", inner)
        if not name or is_excluded:  # S3 browsers make a key without a name to show an empty folder
            continue
        uri = s3_uri(bucket, key)
        if listing.filter.excludes(name, uri) or not listing.accepts(name):
            continue
        try:
            split_s3_uri(uri)
        except SourceError as error:
            listing.unreadable.append(str(error))
        else:
            yield ListedPhoto(uri, object_version(entry))


def _excludes_folder(listing: Listing, start: str, inner: str) -> bool:
    """Return whether one of the folders in the path `inner` is excluded."""
    path = start
    for name in inner.split("/") if inner else ():
        path += name
        if listing.filter.excludes(name, path):
            return True
        path += "/"
    return False


def _list_entries(client: S3Client, bucket: str, prefix: str, **options: int) -> Iterator[dict[str, Any]]:
    with _translate_errors(client, bucket):
        pages = client.connect().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **options)
        for page in pages:
            yield from page.get("Contents", ())
            if page.get("IsTruncated") and not page.get("NextContinuationToken"):
                raise ValueError("it does not say how its listing goes on; it must speak ListObjectsV2")


@contextmanager
def _translate_errors(client: S3Client, bucket: str) -> Iterator[None]:
    """Turn errors of boto3 into SourceError."""
    try:
        yield
    except QsitError:
        raise
    except Exception as error:  # boto3 has no base class for errors of its settings, its plugins and the network
        from qsit.sources.s3_errors import classify_error

        _, message = classify_error(error, s3_uri(bucket), "s3:ListBucket", client.endpoint_url)
        raise SourceError(message) from error
