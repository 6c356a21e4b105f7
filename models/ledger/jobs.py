"""How a job comes into the ledger: opened once, listed in batches, and finished when nothing of it is left."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from sqlalchemy import Connection, Engine, and_, bindparam, delete, exists, func, insert, or_, select, update

from models.db import analyse, in_turn, reading, storable, writing
from models.dialects import now_s
from models.ledger.answers import keep_questions
from models.ledger.ingest import Terms, insert_items, register
from models.ledger.workers import identity, is_dead
from models.tables import Chunk, Job, JobQuestion, Scorer
from qsit.errors import JobCancelled, JobNotFound, LeaseLost, UsageError
from qsit.questions import Question
from qsit.states import UNKNOWN_VERSION, ChunkState, JobState

LISTER_S = 60.0
"""A lister that has written nothing for so long is taken for dead."""
LARGE = 10_000
"""A listing of so many images changes what the database must know of its tables."""
MAX_URI_BYTES = 2500
"""Longer URIs are left out: an entry of a PostgreSQL index holds URI and version in 2,704 bytes."""


class Listed(Protocol):
    """An image as a source lists it."""

    @property
    def uri(self) -> str: ...

    @property
    def version(self) -> str: ...


@dataclass(frozen=True)
class JobSpec:
    """What a job is to be. It asks about all of its photos, or about those whose score is under `ask_below`."""

    key: str  # digest of what the user asked for: sources and options
    name: str | None
    model: str
    revision: str
    procedure: str
    rescore: bool = False
    priority: int = 0
    max_failed: str = "0"
    private: bool = False
    questions: tuple[Question, ...] = ()
    ask_below: float | None = None


@dataclass(frozen=True)
class OpenedJob:
    id: int
    model: str
    revision: str
    procedure: str
    is_new: bool
    is_listed: bool
    state: JobState


@dataclass(frozen=True)
class Added:
    """What became of a batch of listed images: counts; queued counts those that were new to the job."""

    queued: int
    skipped: int
    skipped_failed: int
    too_long: int


def open_job(engine: Engine, spec: JobSpec) -> OpenedJob:
    """
    The job of that name; else the unfinished job of the same key and scorer; else a new one.

    Raises:
        UsageError: when the name belongs to a job of other sources or options, or to one that was cancelled; when a
            question is too long.
    """
    with writing(engine) as connection:
        in_turn(connection, "jobs")
        scorer = _scorer_id(connection, spec)
        query = select(Job.id, Job.key, Job.state)
        if spec.name is not None:
            query = query.where(Job.name == spec.name)
        else:
            open_states = (JobState.ACTIVE, JobState.PAUSED)
            query = query.where(Job.key == spec.key, Job.scorer_id == scorer, Job.state.in_(open_states))
            query = query.where(Job.name.is_(None))
        found = connection.execute(query.order_by(Job.id.desc()).limit(1)).one_or_none()
        if found is not None and found.key != spec.key:
            raise UsageError(f"the job {spec.name} exists with other sources or options; choose another --name")
        if found is not None and found.state == JobState.CANCELLED:
            raise UsageError(f"the job {spec.name} was cancelled; choose another --name")
        if found is not None:
            job_id = found.id
            connection.execute(
                update(Job)
                .where(Job.id == job_id)
                .values(
                    private=Job.private if spec.private else False,  # what the fleet works on stays the fleet's
                    priority=spec.priority,
                    max_failed=spec.max_failed,
                )
            )
        else:
            job_id = _insert_job(connection, spec, scorer)
            keep_questions(connection, job_id, spec.questions)
        return _opened(connection, job_id, is_new=found is None)


def _insert_job(connection: Connection, spec: JobSpec, scorer: int) -> int:
    row = {
        "name": spec.name, "key": spec.key, "scorer_id": scorer, "state": JobState.ACTIVE, "private": spec.private,
        "rescore": spec.rescore, "priority": spec.priority, "max_failed": spec.max_failed,
        "skipped": 0, "skipped_failed": 0, "created_at": datetime.now(UTC), "served_at": 0.0,
        "ask_below": spec.ask_below,
    }  # fmt: skip
    return connection.execute(insert(Job).values(row).returning(Job.id)).scalar_one()


def _opened(connection: Connection, job_id: int, *, is_new: bool) -> OpenedJob:
    row = connection.execute(
        select(Job.state, Job.listed_at, Scorer.model, Scorer.revision, Scorer.procedure)
        .join(Scorer, Scorer.id == Job.scorer_id)
        .where(Job.id == job_id)
    ).one()
    return OpenedJob(
        job_id, row.model, row.revision, row.procedure, is_new, row.listed_at is not None, JobState(row.state)
    )


def _scorer_id(connection: Connection, spec: JobSpec) -> int:
    same = and_(Scorer.model == spec.model, Scorer.revision == spec.revision, Scorer.procedure == spec.procedure)
    found = connection.execute(select(Scorer.id).where(same)).scalar_one_or_none()
    if found is not None:
        return found
    row = {"model": spec.model, "revision": spec.revision, "procedure": spec.procedure}
    return connection.execute(insert(Scorer).values(row).returning(Scorer.id)).scalar_one()


def find_job(engine: Engine, name_or_id: str | None) -> int:
    """
    The id of the job of that name or number, or of the latest job.

    Raises:
        JobNotFound: when there is none.
    """
    with reading(engine) as connection:
        if name_or_id is None:
            latest = connection.execute(select(func.max(Job.id))).scalar()
            if latest is None:
                raise JobNotFound("there is no job yet; `qsit score FOLDER` makes one")
            return int(latest)
        is_number = name_or_id.isdecimal() and len(name_or_id) < 19
        wanted = Job.id == int(name_or_id) if is_number else Job.name == storable(name_or_id)
        found = connection.execute(select(Job.id).where(wanted)).scalar()
    if found is None:
        raise JobNotFound(f"there is no job {storable(name_or_id)}; `qsit status` shows the latest")
    return found


def begin_listing(engine: Engine, job_id: int) -> bool:
    """Become the lister of a job, and count from zero. False when it is listed already or another lists it."""
    me = identity()
    with writing(engine) as connection:
        lister = connection.execute(select(Job.lister).where(Job.id == job_id)).scalar_one()
        clock_set_back = Job.lister_until > now_s() + 2 * LISTER_S
        free = or_(Job.lister.is_(None), Job.lister_until < now_s(), clock_set_back)
        if lister is not None and is_dead(lister):
            free = or_(free, Job.lister == lister)
        taken = connection.execute(
            update(Job)
            .where(Job.id == job_id, Job.listed_at.is_(None), Job.state.in_((JobState.ACTIVE, JobState.PAUSED)), free)
            .values(lister=me, lister_until=now_s() + LISTER_S, skipped=0, skipped_failed=0)
        )
        return taken.rowcount == 1


_ASKS = exists().where(JobQuestion.job_id == Job.id).correlate(Job).label("asks")


def add_images(engine: Engine, job_id: int, images: Iterable[Listed]) -> Added:
    """
    Write a batch of listed images (a few thousand at most) into the job: each becomes the current version of its
    URI, and an item in a chunk unless it is in the job already, has its score and all answers that the job asks for,
    or failed before by its own fault.
    An image of unknown version is no current version, and an item unless its URI is in the job already.

    Raises:
        LeaseLost: when another process lists this job now.
        JobCancelled: when that has happened to it.
    """
    versions: dict[str, str] = {}
    too_long = 0
    for image in images:
        if len(image.uri.encode()) > MAX_URI_BYTES:
            too_long += 1
        else:
            versions[image.uri] = image.version or versions.get(image.uri, UNKNOWN_VERSION)
    with writing(engine) as connection:
        in_turn(connection, "jobs")
        job = connection.execute(
            update(Job)
            .where(Job.id == job_id, Job.lister == identity(), Job.listed_at.is_(None))
            .values(lister_until=now_s() + LISTER_S)
            .returning(Job.scorer_id, Job.rescore, Job.ask_below, Job.state, _ASKS)
        ).one_or_none()
        if job is None:
            raise LeaseLost(f"another process lists job {job_id} now")
        if job.state == JobState.CANCELLED:
            raise JobCancelled(f"job {job_id} was cancelled while it was listed")
        terms = Terms(job_id, job.scorer_id, job.rescore, job.asks, job.ask_below)
        waiting, skipped, skipped_failed = register(connection, versions, terms)
        insert_items(connection, job_id, waiting)
        connection.execute(
            update(Job)
            .where(Job.id == job_id)
            .values(skipped=Job.skipped + skipped, skipped_failed=Job.skipped_failed + skipped_failed)
        )
    return Added(len(waiting), skipped, skipped_failed, too_long)


def end_listing(engine: Engine, job_id: int) -> None:
    """The listing is complete; with nothing left to do the job is finished."""
    with writing(engine) as connection:
        connection.execute(
            update(Job)
            .where(Job.id == job_id, Job.lister == identity(), Job.listed_at.is_(None))
            .values(listed_at=datetime.now(UTC), lister=None, lister_until=None)
        )
        size = select(func.coalesce(func.sum(Chunk.size), 0)).where(Chunk.job_id == job_id)
        is_large = connection.execute(size).scalar_one() >= LARGE
    finish_if_done(engine, job_id)
    if is_large:
        analyse(engine, "images", "chunks", "items")


def give_up_listing(engine: Engine, job_id: int) -> None:
    """Let the next process take the listing up."""
    with writing(engine) as connection:
        connection.execute(
            update(Job).where(Job.id == job_id, Job.lister == identity()).values(lister=None, lister_until=None)
        )


_LEFT = (ChunkState.QUEUED, ChunkState.SENT, ChunkState.LEASED)  # not "all but DONE", which the index cannot find
_UNFINISHED = exists().where(Chunk.job_id == Job.id, Chunk.state.in_(_LEFT))


_DONE = and_(Job.state == JobState.ACTIVE, Job.listed_at.is_not(None), ~_UNFINISHED)
_IS_DONE = select(Job.id).where(Job.id == bindparam("job"), _DONE)


def finish_if_done(engine: Engine, job_id: int) -> bool:
    """Finish the job if its listing is complete and nothing of it is left, in a transaction of its own."""
    with reading(engine) as connection:
        if connection.execute(_IS_DONE, {"job": job_id}).scalar() is None:
            return False
    with writing(engine) as connection:
        # locked first and looked at then: a retry that was under way has its chunks queued by now
        connection.execute(select(Job.id).where(Job.id == job_id).with_for_update())
        done = connection.execute(
            update(Job).where(Job.id == job_id, _DONE).values(state=JobState.FINISHED, finished_at=datetime.now(UTC))
        )
        return done.rowcount == 1


def finish_done_jobs(engine: Engine) -> None:
    """Finish every job that is done; the timer's share, should the last record's have been lost."""
    with reading(engine) as connection:
        job_ids = connection.execute(select(Job.id).where(_DONE)).scalars().all()
    for job_id in job_ids:
        finish_if_done(engine, job_id)


def drop_empty(engine: Engine, job_id: int) -> None:
    """Remove a job into which nothing was listed, so that no name or number stands for nothing."""
    with writing(engine) as connection:
        has_chunks = exists().where(Chunk.job_id == Job.id)
        unlisted = and_(Job.skipped == 0, Job.skipped_failed == 0, ~has_chunks)
        empty = and_(Job.id == job_id, Job.lister == identity(), Job.state != JobState.CANCELLED, unlisted)
        connection.execute(delete(Job).where(empty))
