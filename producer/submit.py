"""From sources to a job in the ledger. The same command again continues its job."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from sqlalchemy import Engine

from models.ledger import jobs
from models.ledger.jobs import JobSpec
from models.retry import OnOutage
from producer.listing.file_lists import ListFile, opened_list
from producer.listing.lister import Lister
from qsit import checkpoints
from qsit.errors import UsageError
from qsit.questions import Question
from qsit.rating import AS_STORED, UPRIGHT
from qsit.sources.listing import Listing
from qsit.sources.source import Source


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
    engine: Engine, request: Request, on_outage: OnOutage, *, private: bool = False, endpoint_url: str | None = None
) -> Iterator[Lister]:
    """
    Open the job of a request: a new one, or the unfinished one of the same command.

    on_outage: is called when the database is away while the sources are listed.
    endpoint_url: of the S3-compatible server with the sources; AWS if None.
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
        yield Lister(engine, jobs.open_job(engine, spec), request.sources, list_file, listing, on_outage)


def _make_key(request: Request, model: str, list_file: ListFile | None) -> str:
    """Return the digest by which the same command finds its job again."""
    content = ""
    if list_file is not None:
        with list_file.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    asked = {field: getattr(request, field) for field in ("column", "exclude", "revision", "as_stored", "rescore")}
    asked |= {"sources": [source.name for source in request.sources], "list": content, "model": model}
    if request.questions:  # without questions, the key is the one of earlier versions
        asked["questions"] = [asdict(question) for question in sorted(request.questions, key=lambda each: each.name)]
        asked["ask_below"] = request.ask_below
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode(errors="surrogateescape")).hexdigest()
