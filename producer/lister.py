"""List sources into a job, in batches on time, under a lease."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial

from sqlalchemy import Engine

from models.ledger import listing
from models.ledger.jobs import OpenedJob
from models.retry import OnOutage, retry_while_unavailable
from producer.batches import batch_within
from producer.file_lists import ListFile
from producer.formatting import count
from qsit.errors import DatabaseUnavailable, LeaseLost, SourceError
from qsit.sources.listing import Listing
from qsit.sources.photo import ListedPhoto
from qsit.sources.roots import collect_roots
from qsit.sources.source import Source, parse_source

BATCH = 4000
"""The most images that are written to the ledger in one transaction."""
FLUSH_S = 2.0
"""Seconds that listed images wait for others of their batch."""
RENEW_S = listing.LISTER_S / 4
"""Seconds between renewals of the lister's lease."""


@contextmanager
def renewed_lease(engine: Engine, job_id: int) -> Iterator[Callable[[], None]]:
    """Keep renewing the lister's lease. Yield a function that raises LeaseLost if another process has taken it."""
    is_done = threading.Event()
    lost: list[LeaseLost] = []

    def renew() -> None:
        while not lost and not is_done.wait(RENEW_S):
            try:
                listing.renew_listing(engine, job_id)
            except LeaseLost as error:
                lost.append(error)
            except DatabaseUnavailable:
                pass  # the next renewal may succeed

    def check() -> None:
        if lost:
            raise lost[0]

    thread = threading.Thread(target=renew, name="renew lister's lease", daemon=True)
    thread.start()
    try:
        yield check
    finally:
        is_done.set()
        thread.join()


class Lister:
    """Writes the images of some sources, and of a list of sources, into their job."""

    def __init__(
        self,
        engine: Engine,
        job: OpenedJob,
        sources: Sequence[Source],
        listing: Listing,
        list_file: ListFile | None,
        on_outage: OnOutage,
    ) -> None:
        self.job = job
        self.listing = listing
        self._engine = engine
        self._sources = sources
        self._list_file = list_file
        self._on_outage = on_outage
        self._skipped: dict[str, int] = {}

    def roots(self) -> list[str]:
        """Return what a worker of this job must be allowed to read."""
        roots: set[str] = set().union(*(source.roots() for source in self._sources))
        if self._list_file is not None:
            roots |= collect_roots(self._list_file.entries())
        return sorted(roots)

    def list(self, after_batch: Callable[[int], None]) -> bool:
        """
        List the sources into the ledger. Return False when the job is already listed, or another process lists it.

        after_batch: is called after each transaction with the number of images that it queued.

        Raises:
            SourceError: when no photo was found, or a source is gone. The same command continues the listing.
            LeaseLost: when another process lists the job now.
        """
        if self.job.is_listed or not listing.begin_listing(self._engine, self.job.id):
            return False
        listed = 0
        self._skipped = {"skipped": 0, "skipped_failed": 0}
        try:
            with renewed_lease(self._engine, self.job.id) as check_lease:
                with closing(batch_within(self._walk(), BATCH, FLUSH_S)) as batches:
                    for batch in batches:
                        self._write(batch, after_batch)
                        listed += len(batch)
                check_lease()
            if not listed:
                raise SourceError(f"no photos found in {self._names()}{self._hint()}")
        except BaseException:
            with suppress(DatabaseUnavailable):  # otherwise the lease expires
                listing.drop_empty(self._engine, self.job.id)
                listing.give_up_listing(self._engine, self.job.id)
            raise
        retry_while_unavailable(lambda: listing.end_listing(self._engine, self.job.id), self._on_outage)
        return True

    def _write(self, batch: Sequence[ListedPhoto], after_batch: Callable[[int], None]) -> None:
        add = partial(listing.add_images, self._engine, self.job.id, batch, **self._skipped)
        added = retry_while_unavailable(add, self._on_outage)
        self._skipped["skipped"] += added.skipped
        self._skipped["skipped_failed"] += added.skipped_failed
        if added.too_long:
            self.listing.unreadable.append(
                f"{count(added.too_long, 'photo')}: the URI is longer than {listing.MAX_URI_BYTES:,} bytes"
            )
        retry_while_unavailable(partial(after_batch, added.queued), self._on_outage)

    def _walk(self) -> Iterator[ListedPhoto]:
        for source in self._sources:
            yield from source.walk(self.listing)
        if self._list_file is not None:
            for entry in self._list_file.entries():
                try:
                    source = parse_source(entry)
                except SourceError as error:
                    self.listing.unreadable.append(str(error))
                else:
                    yield from source.walk(self.listing, of_list=True)

    def _names(self) -> str:
        names = [source.name for source in self._sources]
        if self._list_file is not None:
            names.append(self._list_file.name)
        return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")

    def _hint(self) -> str:
        if not self.listing.ignored:
            return ""
        kinds = ", ".join(f"{count} {ending}" for ending, count in self.listing.ignored.most_common(3))
        return f"; passed over {kinds} (to score such a file, name it, or list it with --files-from)"
