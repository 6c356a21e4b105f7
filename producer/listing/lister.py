"""From sources to images in the ledger."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Engine

from models.ledger import listing
from models.ledger.jobs import OpenedJob
from models.retry import OnOutage, retry_while_unavailable
from producer.formatting import count
from producer.listing.batches import batch_within
from producer.listing.file_lists import ListFile
from producer.listing.lease import renewed_lease
from qsit.errors import DatabaseUnavailable, SourceError
from qsit.sources.listing import Listing
from qsit.sources.photo import ListedPhoto
from qsit.sources.roots import collect_roots
from qsit.sources.source import Source, parse_source

BATCH = 4000
"""The most images that are written to the ledger in one transaction."""
FLUSH_S = 2.0
"""Seconds that listed images wait for others of their batch."""


@dataclass
class Lister:
    """Writes the images of sources, and of the sources in a list, into a job."""

    engine: Engine
    job: OpenedJob
    sources: Sequence[Source]
    list_file: ListFile | None
    listing: Listing
    on_outage: OnOutage

    def roots(self) -> list[str]:
        """Return what a worker of this job must be allowed to read."""
        roots: set[str] = set().union(*(source.roots() for source in self.sources))
        if self.list_file is not None:
            roots |= collect_roots(self.list_file.entries())
        return sorted(roots)

    def list(self, after_batch: Callable[[int], None]) -> bool:
        """
        List the sources into the ledger. Return False when the job is already listed, or another process lists it.

        after_batch: is called after each transaction with the number of images that it queued.
        """
        if self.job.is_listed or not listing.begin_listing(self.engine, self.job.id):
            return False
        listed = 0
        self._skipped = self._skipped_failed = 0
        try:
            with renewed_lease(self.engine, self.job.id) as check_lease:
                with closing(batch_within(self._walk(), BATCH, FLUSH_S)) as batches:
                    for batch in batches:
                        self._write(batch, after_batch)
                        listed += len(batch)
                check_lease()
            if not listed:
                raise SourceError(f"no photos found in {self._describe_sources()}")
        except BaseException:
            with suppress(DatabaseUnavailable):  # otherwise the lease expires
                listing.drop_empty(self.engine, self.job.id)
                listing.give_up_listing(self.engine, self.job.id)
            raise
        retry_while_unavailable(lambda: listing.end_listing(self.engine, self.job.id), self.on_outage)
        return True

    def _write(self, batch: Sequence[ListedPhoto], after_batch: Callable[[int], None]) -> None:
        totals = {"skipped": self._skipped, "skipped_failed": self._skipped_failed}
        add = partial(listing.add_images, self.engine, self.job.id, batch, **totals)
        added = retry_while_unavailable(add, self.on_outage)
        self._skipped += added.skipped
        self._skipped_failed += added.skipped_failed
        if added.too_long:
            self.listing.unreadable.append(
                f"{count(added.too_long, 'photo')}: the URI is longer than {listing.MAX_URI_BYTES:,} bytes"
            )
        retry_while_unavailable(partial(after_batch, added.queued), self.on_outage)

    def _walk(self) -> Iterator[ListedPhoto]:
        for source in self.sources:
            yield from source.walk(self.listing)
        if self.list_file is not None:
            for entry in self.list_file.entries():
                try:
                    source = parse_source(entry)
                except SourceError as error:
                    self.listing.unreadable.append(str(error))
                else:
                    yield from source.walk(self.listing, of_list=True)

    def _describe_sources(self) -> str:
        names = [source.name for source in self.sources]
        if self.list_file is not None:
            names.append(self.list_file.name)
        found = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        if kinds := ", ".join(f"{number} {ending}" for ending, number in self.listing.ignored.most_common(3)):
            found += f"; passed over {kinds} (to score such a file, name it, or list it with --files-from)"
        return found
