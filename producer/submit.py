"""From sources to a job in the ledger; the same command again goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice

from sqlalchemy import Engine

from models.ledger import jobs, listing
from models.ledger.jobs import JobSpec, OpenedJob
from models.retry import OnOutage, retry_while_unavailable
from producer.file_lists import ListFile, opened_list
from producer.formatting import count
from qsit import checkpoints
from qsit.errors import DatabaseUnavailable, SourceError, UsageError
from qsit.questions import Question
from qsit.rating import AS_STORED, UPRIGHT
from qsit.sources.filters import ListedPhoto
from qsit.sources.source import Listing
from qsit.sources.uris import common_roots, full_name, roots_of

BATCH = 4000
"""Images written to the ledger in one transaction."""


@dataclass(frozen=True)
class Request:
    """What the user asks for, as the command line has it."""

    sources: tuple[str, ...] = ()
    files_from: str | None = None  # a file of sources, or "-" for standard input
    column: str | None = None  # of a CSV or TSV file_from
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
    ask_below: float | None = None  # asks about photos that score less, or about all


@contextmanager
def opened(
    engine: Engine,
    request: Request,
    away: OnOutage,
    *,
    private: bool = False,
    endpoint_url: str | None = None,
) -> Iterator["Lister"]:
    """
    Open the job of a request: a new one, or the unfinished one that the same command made.

    away: is told when the database goes away while the sources are listed, and is waited for.
    endpoint_url: of the S3-compatible server that has the sources, AWS if None.

    Raises:
        UsageError: when nothing is named, or the job's name is taken.
        SourceError: when a source does not exist.
        CheckpointError: when the model cannot be found.
    """
    if not request.sources and request.files_from is None:
        raise UsageError("name a folder, a file, an s3:// place, or --files-from a list of them")
    listing = Listing(request.exclude, endpoint_url=endpoint_url)
    for source in request.sources:
        listing.check(source)
    with opened_list(request.files_from, request.column, null_separated=request.null_separated) as list_file:
        model = checkpoints.full_name(request.model)
        spec = JobSpec(
            key=_key(request, model, list_file),
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
        yield Lister(engine, request, jobs.open_job(engine, spec), listing, list_file, away)


class Lister:
    """Writes the images of a request's sources into its job."""

    def __init__(
        self,
        engine: Engine,
        request: Request,
        job: OpenedJob,
        listing: Listing,
        list_file: ListFile | None,
        away: OnOutage,
    ) -> None:
        self.job = job
        self.listing = listing
        self._engine = engine
        self._request = request
        self._list_file = list_file
        self._away = away

    def roots(self) -> list[str]:
        """What a worker of this job must be allowed to read."""
        roots: set[str] = set().union(*map(roots_of, self._request.sources))
        if self._list_file is not None:
            roots |= common_roots(self._list_file.sources())
        return sorted(roots)

    def list(self, after_batch: Callable[[int], None]) -> bool:
        """
        List the sources into the ledger; `after_batch` gets the number of images queued by each transaction. False
        when the job is listed already, or another process is at it.

        Raises:
            SourceError: when there is nothing to score, or a source is gone. The listing can be taken up again.
        """
        if self.job.is_listed or not listing.begin_listing(self._engine, self.job.id):
            return False
        listed = 0
        try:
            found = self._found()
            while batch := list(islice(found, BATCH)):
                added = retry_while_unavailable(
                    partial(listing.add_images, self._engine, self.job.id, batch), self._away
                )
                listed += len(batch)
                if added.too_long:
                    words = f"{count(added.too_long, 'photo')}: the URI is longer than {listing.MAX_URI_BYTES:,} bytes"
                    self.listing.unreadable.append(words)
                retry_while_unavailable(partial(after_batch, added.queued), self._away)
            if not listed:
                raise SourceError(f"no photos found in {_shortened(self._request)}{self._hint()}")
        except BaseException:
            with suppress(DatabaseUnavailable):  # then it is given up by ending
                listing.drop_empty(self._engine, self.job.id)
                listing.give_up_listing(self._engine, self.job.id)
            raise
        retry_while_unavailable(lambda: listing.end_listing(self._engine, self.job.id), self._away)
        return True

    def _found(self) -> Iterator[ListedPhoto]:
        for source in self._request.sources:
            yield from self.listing.walk(source)
        if self._list_file is not None:
            for source in self._list_file.sources():
                yield from self.listing.walk(source, of_list=True)

    def _hint(self) -> str:
        if not self.listing.ignored:
            return ""
        kinds = ", ".join(f"{count} {ending}" for ending, count in self.listing.ignored.most_common(3))
        return f"; passed over {kinds} (name such a file itself, or list it with --files-from, to score it anyway)"


def _shortened(request: Request) -> str:
    names = [*request.sources, *([request.files_from] if request.files_from else [])]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _key(request: Request, model: str, list_file: ListFile | None) -> str:
    """The digest by which the same command finds its job again."""
    content = ""
    if list_file is not None:
        with list_file.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    asked: dict[str, object] = {
        "sources": [full_name(source) for source in request.sources],
        "list": content,
        "column": request.column,
        "exclude": request.exclude,
        "model": model,
        "revision": request.revision,
        "as_stored": request.as_stored,
        "rescore": request.rescore,
    }
    if request.questions:  # without any, the key is the one that earlier versions made
        asked["questions"] = [asdict(question) for question in sorted(request.questions, key=lambda each: each.name)]
        asked["ask_below"] = request.ask_below
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode(errors="surrogateescape")).hexdigest()
