"""Opening, finding and finishing jobs."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, and_, bindparam, exists, func, insert, select, update

from models.db import advisory_lock, reading, sanitize_text, writing
from models.ledger.answers import keep_questions
from models.tables import ChunkRow, JobRow, ScorerRow
from qsit.errors import JobNotFound, UsageError
from qsit.questions import Question
from qsit.states import ChunkState, JobState


@dataclass(frozen=True)
class JobSpec:
    """What a job does. It asks about all of its photos, or about those whose score is under `ask_below`."""

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


def open_job(engine: Engine, spec: JobSpec) -> OpenedJob:
    """
    Return the job of that name; else the unfinished job of the same key and scorer; else a new one.

    Raises UsageError when the name belongs to a job of other sources or options, or to one that was cancelled; when a
    question is too long.
    """
    with writing(engine) as connection:
        advisory_lock(connection, "jobs")
        scorer = _scorer_id(connection, spec)
        query = select(JobRow.id, JobRow.key, JobRow.state)
        if spec.name is not None:
            query = query.where(JobRow.name == spec.name)
        else:
            open_states = (JobState.ACTIVE, JobState.PAUSED)
            query = query.where(JobRow.key == spec.key, JobRow.scorer_id == scorer, JobRow.state.in_(open_states))
            query = query.where(JobRow.name.is_(None))
        found = connection.execute(query.order_by(JobRow.id.desc()).limit(1)).one_or_none()
        if found is not None and found.key != spec.key:
            raise UsageError(f"the job {spec.name} exists with other sources or options; choose another --name")
        if found is not None and found.state == JobState.CANCELLED:
            raise UsageError(f"the job {spec.name} was cancelled; choose another --name")
        if found is not None:
            job_id = found.id
            private = JobRow.private if spec.private else False  # a job of the fleet stays with the fleet
            changed = {"private": private, "priority": spec.priority, "max_failed": spec.max_failed}
            connection.execute(update(JobRow).where(JobRow.id == job_id).values(changed))
        else:
            job_id = _insert_job(connection, spec, scorer)
            keep_questions(connection, job_id, spec.questions)
        return _opened(connection, job_id, is_new=found is None)


def _insert_job(connection: Connection, spec: JobSpec, scorer: int) -> int:
    columns = ("name", "key", "private", "rescore", "priority", "max_failed", "ask_below")
    row = {column: getattr(spec, column) for column in columns}
    row |= {"scorer_id": scorer, "state": JobState.ACTIVE, "created_at": datetime.now(UTC)}
    row |= {"skipped": 0, "skipped_failed": 0, "last_dispatched_at": 0.0}
    return connection.execute(insert(JobRow).values(row).returning(JobRow.id)).scalar_one()


def _opened(connection: Connection, job_id: int, *, is_new: bool) -> OpenedJob:
    row = connection.execute(
        select(JobRow.state, JobRow.listed_at, ScorerRow.model, ScorerRow.revision, ScorerRow.procedure)
        .join(ScorerRow, ScorerRow.id == JobRow.scorer_id)
        .where(JobRow.id == job_id)
    ).one()
    return OpenedJob(
        job_id, row.model, row.revision, row.procedure, is_new, row.listed_at is not None, JobState(row.state)
    )


def _scorer_id(connection: Connection, spec: JobSpec) -> int:
    same = and_(
        ScorerRow.model == spec.model, ScorerRow.revision == spec.revision, ScorerRow.procedure == spec.procedure
    )
    found = connection.execute(select(ScorerRow.id).where(same)).scalar_one_or_none()
    if found is not None:
        return found
    row = {"model": spec.model, "revision": spec.revision, "procedure": spec.procedure}
    return connection.execute(insert(ScorerRow).values(row).returning(ScorerRow.id)).scalar_one()


def find_job(engine: Engine, name_or_id: str | None) -> int:
    """Return the id of the job of that name or number, or of the latest job. Raises JobNotFound when there is none."""
    with reading(engine) as connection:
        if name_or_id is None:
            latest = connection.execute(select(func.max(JobRow.id))).scalar()
            if latest is None:
                raise JobNotFound("there is no job yet; `qsit score FOLDER` makes one")
            return int(latest)
        is_number = name_or_id.isdecimal() and len(name_or_id) < 19
        wanted = JobRow.id == int(name_or_id) if is_number else JobRow.name == sanitize_text(name_or_id)
        found = connection.execute(select(JobRow.id).where(wanted)).scalar()
    if found is None:
        raise JobNotFound(f"there is no job {sanitize_text(name_or_id)}; `qsit status` shows the latest")
    return found


_LEFT = (ChunkState.QUEUED, ChunkState.SENT, ChunkState.LEASED)  # not "all but DONE": the index could not be used
_UNFINISHED = exists().where(ChunkRow.job_id == JobRow.id, ChunkRow.state.in_(_LEFT))
_DONE = and_(JobRow.state == JobState.ACTIVE, JobRow.listed_at.is_not(None), ~_UNFINISHED)
_IS_DONE = select(JobRow.id).where(JobRow.id == bindparam("job"), _DONE)


def finish_if_done(engine: Engine, job_id: int) -> bool:
    """Finish the job if its listing is complete and nothing of it is left. Opens its own transaction."""
    with reading(engine) as connection:
        if connection.execute(_IS_DONE, {"job": job_id}).scalar() is None:
            return False
    with writing(engine) as connection:
        # lock first, then look: a retry that was running has queued its chunks by then
        connection.execute(select(JobRow.id).where(JobRow.id == job_id).with_for_update())
        finished = {"state": JobState.FINISHED, "finished_at": datetime.now(UTC)}
        return connection.execute(update(JobRow).where(JobRow.id == job_id, _DONE).values(finished)).rowcount == 1


def finish_done_jobs(engine: Engine) -> None:
    """Finish every job that is done. Workers' timers call it, in case the last worker ended before it could."""
    with reading(engine) as connection:
        job_ids = connection.execute(select(JobRow.id).where(_DONE)).scalars().all()
    for job_id in job_ids:
        finish_if_done(engine, job_id)
