"""From sources to a job in the ledger; the same command again goes on where it was."""

import csv
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from sqlalchemy import Engine

from models import jobs
from models.errors import SourceError, UsageError
from models.jobs import JobSpec, OpenedJob
from worker import checkpoint
from worker.procedure import AS_STORED, UPRIGHT
from worker.sources import Found, Listing, local_path

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
    model: str = checkpoint.DEFAULT
    revision: str | None = None
    rescore: bool = False
    as_stored: bool = False
    priority: int = 0
    max_failed: str = "0"


@contextmanager
def opened(engine: Engine, request: Request, *, private: bool = False) -> Iterator["Lister"]:
    """
    Open the job of a request: a new one, or the unfinished one that the same command made.

    Raises:
        UsageError: when nothing is named, or the job's name is taken.
        SourceError: when a source does not exist.
        CheckpointError: when the model cannot be found.
    """
    if not request.sources and request.files_from is None:
        raise UsageError("name a folder, a file, or --files-from a list of them")
    for source in request.sources:
        if not local_path(source).exists():
            raise SourceError(f"there is no {source}")
    with _list_file(request) as list_file:
        model = checkpoint.full_name(request.model)
        spec = JobSpec(
            key=_key(request, model, list_file),
            name=request.name,
            model=model,
            revision=checkpoint.resolve(model, request.revision),
            procedure=AS_STORED if request.as_stored else UPRIGHT,
            rescore=request.rescore,
            priority=request.priority,
            max_failed=request.max_failed,
            private=private,
        )
        yield Lister(engine, request, jobs.open_job(engine, spec), list_file)


class Lister:
    """Writes the images of a request's sources into its job."""

    def __init__(self, engine: Engine, request: Request, job: OpenedJob, list_file: Path | None) -> None:
        self.job = job
        self.listing = Listing(request.exclude)
        self._engine = engine
        self._request = request
        self._list_file = list_file

    def roots(self) -> list[Path]:
        """The folders that a worker of this job must be allowed to read: one for the whole list of --files-from."""
        roots: set[Path] = set()
        for source in self._request.sources:
            roots |= _folders_of(source)
        if self._list_file is not None:
            listed: set[Path] = set()
            for source in _read_list(self._list_file, self._request):
                listed |= _folders_of(source)
            roots |= {Path(os.path.commonpath(listed))} if listed else set()
        return sorted(roots)

    def list(self, after_batch: Callable[[int], None]) -> bool:
        """
        List the sources into the ledger; `after_batch` gets the number of images queued by each transaction. False
        when the job is listed already, or another process is at it.

        Raises:
            SourceError: when there is nothing to score, or a source is gone. The listing can be taken up again.
        """
        if self.job.is_listed or not jobs.begin_listing(self._engine, self.job.id):
            return False
        listed = 0
        try:
            found = self._found()
            while batch := list(islice(found, BATCH)):
                added = jobs.add_images(self._engine, self.job.id, batch)
                listed += len(batch)
                after_batch(added.queued)
            if not listed:
                jobs.drop_empty(self._engine, self.job.id)
                raise SourceError(f"no photos found in {_shortened(self._request)}{self._hint()}")
        except BaseException:
            jobs.give_up_listing(self._engine, self.job.id)
            raise
        jobs.end_listing(self._engine, self.job.id)
        return True

    def _found(self) -> Iterator[Found]:
        for source in self._request.sources:
            yield from self.listing.walk(source)
        if self._list_file is not None:
            for source in _read_list(self._list_file, self._request):
                yield from self.listing.walk(source, of_list=True)

    def _hint(self) -> str:
        if not self.listing.ignored:
            return ""
        kinds = ", ".join(f"{count} {ending}" for ending, count in self.listing.ignored.most_common(3))
        return f"; passed over {kinds} (name such a file itself, or list it with --files-from, to score it anyway)"


def _folders_of(source: str) -> set[Path]:
    path = local_path(source)
    return {path} if path.is_dir() else {path.parent, path.resolve().parent}


def _shortened(request: Request) -> str:
    names = [*request.sources, *([request.files_from] if request.files_from else [])]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@contextmanager
def _list_file(request: Request) -> Iterator[Path | None]:
    """The list of --files-from as a file that can be read twice."""
    if request.files_from is None:
        yield None
    elif request.files_from == "-":
        with tempfile.NamedTemporaryFile(prefix="qsit-list-") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.flush()
            yield Path(copy.name)
    else:
        path = Path(request.files_from).expanduser()
        if not path.is_file():
            raise SourceError(f"there is no file {path} to read --files-from")
        yield path


def _read_list(path: Path, request: Request) -> Iterator[str]:
    try:
        with path.open("r", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if request.column is not None:
                yield from _column(file, request.column)
            elif request.null_separated:
                yield from _null_separated(file)
            else:
                yield from (line.rstrip("\r\n") for line in file if line.strip())
    except (OSError, csv.Error) as error:
        raise SourceError(f"cannot read the list {request.files_from}: {error}") from error


def _column(file: IO[str], column: str) -> Iterator[str]:
    header = file.readline()
    dialect = csv.excel_tab if "\t" in header else csv.excel
    names = next(csv.reader([header], dialect), [])
    if column not in names:
        raise UsageError(f"--column {column}: the list has {', '.join(names) or 'no header line'}")
    for row in csv.DictReader(file, fieldnames=names, dialect=dialect):
        if row[column]:
            yield row[column]


def _null_separated(file: IO[str]) -> Iterator[str]:
    rest = ""
    while block := file.read(1 << 20):
        *complete, rest = (rest + block).split("\0")
        yield from filter(None, complete)
    if rest:
        yield rest


def _key(request: Request, model: str, list_file: Path | None) -> str:
    """The digest by which the same command finds its job again."""
    content = ""
    if list_file is not None:
        with list_file.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    asked: dict[str, str | bool | Sequence[str] | None] = {
        "sources": [str(local_path(source)) for source in request.sources],
        "list": content,
        "column": request.column,
        "exclude": request.exclude,
        "model": model,
        "revision": request.revision,
        "as_stored": request.as_stored,
        "rescore": request.rescore,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode(errors="surrogateescape")).hexdigest()
