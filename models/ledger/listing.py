"""Listing the images of a job into the ledger, batch by batch; one process at a time."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, and_, bindparam, delete, exists, func, or_, select, update

from models.db import advisory_lock, analyse, writing
from models.dialects import now_s
from models.ledger.ingest import JobCriteria, insert_items, upsert_images
from models.ledger.jobs import finish_if_done
from models.tables import ChunkRow, JobQuestionRow, JobRow
from qsit.errors import JobCancelled, LeaseLost
from qsit.process_id import identity, is_dead
from qsit.states import UNKNOWN_VERSION, JobState

LISTER_S = 60.0
"""A lister that has not written for so long counts as dead."""
LARGE = 10_000
"""A listing of so many images makes PostgreSQL's statistics wrong."""
MAX_URI_BYTES = 2500
"""Longer URIs are left out: an entry of a PostgreSQL index holds URI and version in 2,704 bytes."""


class Listed(Protocol):
    """An image as a source lists it."""

    @property
    def uri(self) -> str: ...

    @property
    def version(self) -> str: ...


@dataclass(frozen=True)
class Added:
    """What became of a batch of listed images. queued: those that are new to the job and need work."""

    queued: int
    skipped: int
    skipped_failed: int
    too_long: int


def begin_listing(engine: Engine, job_id: int) -> bool:
    """Become the lister of a job and reset its counts. Return False when it is listed, or another process lists it."""
    me = identity()
    with writing(engine) as connection:
        lister = connection.execute(select(JobRow.lister).where(JobRow.id == job_id)).scalar_one()
        clock_set_back = JobRow.lister_until > now_s() + 2 * LISTER_S
        free = or_(JobRow.lister.is_(None), JobRow.lister_until < now_s(), clock_set_back)
        if lister is not None and is_dead(lister):
            free = or_(free, JobRow.lister == lister)
        taken = connection.execute(
            update(JobRow)
            .where(
                JobRow.id == job_id,
                JobRow.listed_at.is_(None),
                JobRow.state.in_((JobState.ACTIVE, JobState.PAUSED)),
                free,
            )
            .values(lister=me, lister_until=now_s() + LISTER_S, skipped=0, skipped_failed=0)
        )
        return taken.rowcount == 1


_RENEW = (
    update(JobRow)
    .where(JobRow.id == bindparam("job"), JobRow.lister == bindparam("me"), JobRow.listed_at.is_(None))
    .values(lister_until=now_s() + LISTER_S)
    .returning(
        JobRow.scorer_id,
        JobRow.rescore,
        JobRow.ask_below,
        JobRow.state,
        exists().where(JobQuestionRow.job_id == JobRow.id).correlate(JobRow).label("asks"),
    )
)


def renew_listing(engine: Engine, job_id: int) -> None:
    """
    Say that this process still lists a job. Call it more often than every LISTER_S seconds.

    Raises LeaseLost when another process lists the job now.
    """
    with writing(engine) as connection:
        _renew(connection, job_id)


def _renew(connection: Connection, job_id: int) -> Any:
    job = connection.execute(_RENEW, {"job": job_id, "me": identity()}).one_or_none()
    if job is None:
        raise LeaseLost(f"another process lists job {job_id} now")
    return job


def add_images(
    engine: Engine, job_id: int, images: Iterable[Listed], *, skipped: int = 0, skipped_failed: int = 0
) -> Added:
    """
    Write a batch of listed images, a few thousand at most, into a job.

    Each becomes the current version of its URI. It becomes an item in a chunk, too, unless it is in the job already,
    has its score and all answers that the job asks for, or failed before by its own fault. An image of unknown version
    never becomes current, and becomes an item unless its URI is in the job already. The call may be repeated: a commit
    whose reply was lost changes nothing the second time.

    skipped, skipped_failed: what earlier batches of this listing skipped.

    Raises LeaseLost when another process lists this job now. Raises JobCancelled when the job was cancelled.
    """
    versions: dict[str, str] = {}
    too_long = 0
    for image in images:
        if len(image.uri.encode()) > MAX_URI_BYTES:
            too_long += 1
        else:
            versions[image.uri] = image.version or versions.get(image.uri, UNKNOWN_VERSION)
    with writing(engine) as connection:
        advisory_lock(connection, "jobs")
        job = _renew(connection, job_id)
        if job.state == JobState.CANCELLED:
            raise JobCancelled(f"job {job_id} was cancelled while it was listed")
        criteria = JobCriteria(job_id, job.scorer_id, job.rescore, job.asks, job.ask_below)
        waiting, more_skipped, more_skipped_failed = upsert_images(connection, versions, criteria)
        insert_items(connection, job_id, waiting)
        totals = {"skipped": skipped + more_skipped, "skipped_failed": skipped_failed + more_skipped_failed}
        connection.execute(update(JobRow).where(JobRow.id == job_id).values(totals))
    return Added(len(waiting), more_skipped, more_skipped_failed, too_long)


def end_listing(engine: Engine, job_id: int) -> None:
    """Note that the listing is complete. With nothing left to do, the job is finished."""
    with writing(engine) as connection:
        connection.execute(
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.lister == identity(), JobRow.listed_at.is_(None))
            .values(listed_at=datetime.now(UTC), lister=None, lister_until=None)
        )
        size = select(func.coalesce(func.sum(ChunkRow.size), 0)).where(ChunkRow.job_id == job_id)
        is_large = connection.execute(size).scalar_one() >= LARGE
    finish_if_done(engine, job_id)
    if is_large:
        analyse(engine, "images", "chunks", "items")


def give_up_listing(engine: Engine, job_id: int) -> None:
    """Let the next process take over the listing."""
    with writing(engine) as connection:
        connection.execute(
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.lister == identity())
            .values(lister=None, lister_until=None)
        )


def drop_empty(engine: Engine, job_id: int) -> None:
    """Remove a job into which nothing was listed."""
    with writing(engine) as connection:
        has_chunks = exists().where(ChunkRow.job_id == JobRow.id)
        unlisted = and_(JobRow.skipped == 0, JobRow.skipped_failed == 0, ~has_chunks)
        empty = and_(JobRow.id == job_id, JobRow.lister == identity(), JobRow.state != JobState.CANCELLED, unlisted)
        connection.execute(delete(JobRow).where(empty))
