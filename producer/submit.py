"""From sources to a job in the ledger. The same command again continues its job."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial

from sqlalchemy import Engine

from models.ledger import jobs, listing
from models.ledger.jobs import JobSpec, OpenedJob
from models.retry import OnOutage, retry_while_unavailable
from producer.batches import batch_within
from producer.file_lists import ListFile, opened_list
from producer.formatting import count
from producer.lister_lease import renewed_lease
from qsit import checkpoints
from qsit.errors import DatabaseUnavailable, SourceError, UsageError
from qsit.questions import Question
from qsit.rating import AS_STORED, UPRIGHT
from qsit.sources.listing import Listing
from qsit.sources.photo import ListedPhoto
from qsit.sources.roots import collect_roots
from qsit.sources.source import Source, parse_source

BATCH = 4000
"""The most images that are written to the ledger in one transaction."""
FLUSH_S = 2.0
"""Seconds that listed images wait for others of their batch."""


@dataclass(frozen=True)
class Request:
    """What a command asks for."""

    sources: tuple[Source, ...] = ()
    files_from: str | None = None  # a file with sources, or "-" for standard input
    column: str | None = None  # of a CSV file
    null_separated: bool = False
    exclude: tuple[str, ...] = ()
    name: str | None = None
    model: str = checkpoints.DEFAULT
    revision: str | None = None
    rescore: bool = False
    as_stored: bool = False
    priority: int = 0
    max_failed: str = "0"
    questions: tuple[Question, ...] = ()
    ask_below: float | None = None  # asks only about photos with a lower score; about all if None


@contextmanager
def opened(
    engine: Engine,
    request: Request,
    on_outage: OnOutage,
    *,
    private: bool = False,
    endpoint_url: str | None = None,
) -> Iterator["Lister"]:
    """
    Open the job of a request: a new one, or the unfinished one of the same command.

    on_outage: is called when the database is away while the sources are listed.
    endpoint_url: of the S3-compatible server with the sources; AWS if None.

    Raises:
        UsageError: when the request has no source, or another job has the name.
        SourceError: when a source does not exist.
        CheckpointError: when the model cannot be found.
    """
    if not request.sources and request.files_from is None:
        raise UsageError("name a folder, a file, an s3:// place, or --files-from a list of them")
    listing = Listing(request.exclude, endpoint_url=endpoint_url)
    for source in request.sources:
        source.check(listing)
    with opened_list(request.files_from, request.column, null_separated=request.null_separated) as list_file:
        model = checkpoints.full_name(request.model)
        spec = JobSpec(
            key=_make_key(request, model, list_file),
            name=request.name,
            model=model,
            revision=checkpoints.resolve(model, request.revision),
            procedure=AS_STORED if request.as_stored else UPRIGHT,
            rescore=request.rescore,
            priority=request.priority,
            max_failed=request.max_failed,
            private=private,
            questions=request.questions,
            ask_below=request.ask_below,
        )
        yield Lister(engine, request, jobs.open_job(engine, spec), listing, list_file, on_outage)


class Lister:
    """Writes the images of a request's sources into its job."""

    def __init__(
        self,
        engine: Engine,
        request: Request,
        job: OpenedJob,
        listing: Listing,
        list_file: ListFile | None,
        on_outage: OnOutage,
    ) -> None:
        self.job = job
        self.listing = listing
        self._engine = engine
        self._request = request
        self._list_file = list_file
        self._on_outage = on_outage
        self._skipped = self._skipped_failed = 0

    def roots(self) -> list[str]:
        """Return what a worker of this job must be allowed to read."""
        roots: set[str] = set().union(*(source.roots() for source in self._request.sources))
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
        self._skipped = self._skipped_failed = 0
        try:
            with renewed_lease(self._engine, self.job.id) as check_lease:
                with closing(batch_within(self._walk(), BATCH, FLUSH_S)) as batches:
                    for batch in batches:
                        self._write(batch, after_batch)
                        listed += len(batch)
                check_lease()
            if not listed:
                raise SourceError(f"no photos found in {_shorten(self._request)}{self._hint()}")
        except BaseException:
            with suppress(DatabaseUnavailable):  # otherwise the lease expires
                listing.drop_empty(self._engine, self.job.id)
                listing.give_up_listing(self._engine, self.job.id)
            raise
        retry_while_unavailable(lambda: listing.end_listing(self._engine, self.job.id), self._on_outage)
        return True

    def _write(self, batch: Sequence[ListedPhoto], after_batch: Callable[[int], None]) -> None:
        totals = {"skipped": self._skipped, "skipped_failed": self._skipped_failed}
        add = partial(listing.add_images, self._engine, self.job.id, batch, **totals)
        added = retry_while_unavailable(add, self._on_outage)
        self._skipped += added.skipped
        self._skipped_failed += added.skipped_failed
        if added.too_long:
            self.listing.unreadable.append(
                f"{count(added.too_long, 'photo')}: the URI is longer than {listing.MAX_URI_BYTES:,} bytes"
            )
        retry_while_unavailable(partial(after_batch, added.queued), self._on_outage)

    def _walk(self) -> Iterator[ListedPhoto]:
        for source in self._request.sources:
            yield from source.walk(self.listing)
        if self._list_file is not None:
            for entry in self._list_file.entries():
                try:
                    source = parse_source(entry)
                except SourceError as error:
                    self.listing.unreadable.append(str(error))
                else:
                    yield from source.walk(self.listing, of_list=True)

    def _hint(self) -> str:
        if not self.listing.ignored:
            return ""
        kinds = ", ".join(f"{count} {ending}" for ending, count in self.listing.ignored.most_common(3))
        return f"; passed over {kinds} (to score such a file, name it, or list it with --files-from)"


def _shorten(request: Request) -> str:
    names = [source.name for source in request.sources]
    if request.files_from is not None:
        names.append(request.files_from)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _make_key(request: Request, model: str, list_file: ListFile | None) -> str:
    """Return the digest by which the same command finds its job again."""
    content = ""
    if list_file is not None:
        with list_file.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    asked: dict[str, object] = {
        "sources": [source.name for source in request.sources],
        "list": content,
        "column": request.column,
        "exclude": request.exclude,
        "model": model,
        "revision": request.revision,
        "as_stored": request.as_stored,
        "rescore": request.rescore,
    }
    if request.questions:  # without questions, the key is the one of earlier versions
        asked["questions"] = [asdict(question) for question in sorted(request.questions, key=lambda each: each.name)]
        asked["ask_below"] = request.ask_below
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode(errors="surrogateescape")).hexdigest()
