"""What the sources of one listing share: the filter, the S3 client, and what was passed over."""

from collections import Counter
from collections.abc import Sequence

from qsit.sources.filters import ListingFilter, ending_of, has_photo_ending
from qsit.sources.s3_client import S3Client


class Listing:
    """
    The state of one listing.

    filter: excludes files and folders.
    s3: lists buckets.
    ignored: files that do not end like photos, counted by ending.
    unreadable: what could not be listed, and why.
    """

    def __init__(self, exclude: Sequence[str] = (), *, endpoint_url: str | None = None) -> None:
        self.filter = ListingFilter(exclude)
        self.s3 = S3Client(endpoint_url)
        self.ignored: Counter[str] = Counter()
        self.unreadable: list[str] = []

    def accepts(self, name: str) -> bool:
        """Return whether a file is a photo by its name, and count it if it is not."""
        if has_photo_ending(name):
            return True
        self.ignored[ending_of(name) or "no ending"] += 1
        return False
