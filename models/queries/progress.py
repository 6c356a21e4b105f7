"""How far a job is, how fast it goes, and which workers have gone silent."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, exists, false, func, or_, select

from models.db import reading
from models.dialects import now_s
from models.tables import AnswerRow, ChunkRow, JobQuestionRow, JobRow, ScoreRow, ScorerRow, WorkerRow
from qsit.errors import JobNotFound
from qsit.states import ChunkState, JobState

PACE_OVER = timedelta(minutes=5)
PACE_SCORES = 5000
"""The pace is measured over so many of the newest scores at most."""
PACE_LEAST_S = 2.0


@dataclass(frozen=True)
class Progress:
    """How far a job is: counts of images."""

    job: int
    name: str | None
    state: JobState
    model: str
    revision: str
    procedure: str
    is_listed: bool
    skipped: int  # have everything that the job wants
    skipped_failed: int  # failed before, by their own fault
    queued: int  # waiting in the ledger or in Redis
    running: int  # in chunks that a worker holds
    scored: int
    failed: int
    cancelled: int
    max_failed: str
    private: bool
    is_being_listed: bool  # a process lists it, or did lately
    created_at: datetime
    finished_at: datetime | None
    asks: bool = False  # whether it has questions

    @property
    def listed(self) -> int:
        """Images found so far."""
        return self.to_do + self.skipped + self.skipped_failed

    @property
    def to_do(self) -> int:
        """Images that are or were to be scored by this job."""
        return self.queued + self.running + self.scored + self.failed + self.cancelled

    @property
    def left(self) -> int:
        """Images that are still to be scored."""
        return self.queued + self.running

    @property
    def tolerated(self) -> bool:
        """Whether its failures are within what --max-failed allows."""
        if self.max_failed.endswith("%"):
            return self.failed <= self.to_do * float(self.max_failed[:-1]) / 100
        return self.failed <= int(self.max_failed)


def job_progress(engine: Engine, job_id: int) -> Progress:
    """Sum the progress of a job over its chunks. Raises JobNotFound when its listing found nothing."""
    job_columns = ("name", "state", "skipped", "skipped_failed", "max_failed", "private", "created_at", "finished_at")
    query = select(
        *(getattr(JobRow, name) for name in job_columns),
        *(ScorerRow.model, ScorerRow.revision, ScorerRow.procedure),
        JobRow.listed_at.is_not(None).label("is_listed"),
        func.coalesce(JobRow.lister_until > now_s(), false()).label("is_being_listed"),
        exists().where(JobQuestionRow.job_id == JobRow.id).label("asks"),
    )
    with reading(engine) as connection:
        of_job = query.join(ScorerRow, ScorerRow.id == JobRow.scorer_id).where(JobRow.id == job_id)
        job = connection.execute(of_job).mappings().one_or_none()
        if job is None:
            raise JobNotFound(f"job {job_id} no longer exists: its listing found no photos")
        sums = (func.sum(ChunkRow.size), func.sum(ChunkRow.scored), func.sum(ChunkRow.failed))
        by_state = select(ChunkRow.state, *sums).where(ChunkRow.job_id == job_id).group_by(ChunkRow.state)
        rows = connection.execute(by_state).all()
    left = {state: int(size - scored - failed) for state, size, scored, failed in rows}
    counts: dict[str, Any] = {
        "queued": left.get(ChunkState.QUEUED, 0) + left.get(ChunkState.SENT, 0),
        "running": left.get(ChunkState.LEASED, 0),
        "scored": sum(int(row[2]) for row in rows),
        "failed": sum(int(row[3]) for row in rows),
        "cancelled": left.get(ChunkState.DONE, 0),
    }
    return Progress(job=job_id, **{**job, "state": JobState(job["state"])}, **counts)


def job_state(engine: Engine, job_id: int) -> JobState:
    """Return the state of a job, without its counts. Raises JobNotFound when the job no longer exists."""
    with reading(engine) as connection:
        state = connection.execute(select(JobRow.state).where(JobRow.id == job_id)).scalar()
    if state is None:
        raise JobNotFound(f"job {job_id} no longer exists: its listing found no photos")
    return JobState(state)


def count_answers(engine: Engine, job_id: int) -> int:
    """Count the answers that a job got and no later job replaced."""
    with reading(engine) as connection:
        query = select(func.count()).select_from(AnswerRow).where(AnswerRow.job_id == job_id)
        return connection.execute(query).scalar_one()


def measure_pace(engine: Engine, job_id: int) -> float | None:
    """Return the scores per second of a job over the last minutes, or None when there are too few."""
    now = datetime.now(UTC)
    scorer = select(JobRow.scorer_id).where(JobRow.id == job_id).scalar_subquery()
    newest = (
        select(ScoreRow.job_id, ScoreRow.scored_at)
        .where(ScoreRow.scorer_id == scorer, ScoreRow.scored_at > now - PACE_OVER)
        .order_by(ScoreRow.scored_at.desc())
        .limit(PACE_SCORES)
        .subquery()
    )
    query = select(func.count(), func.min(newest.c.scored_at)).where(newest.c.job_id == job_id)
    with reading(engine) as connection:
        number, first = connection.execute(query).one()
    seconds = (now - first).total_seconds() if first is not None else 0.0
    return number / seconds if seconds >= PACE_LEAST_S else None


@dataclass(frozen=True)
class Silence:
    """Chunks of a job held by a silent worker. left_s: seconds until other workers may take them."""

    owner: str
    chunks: int
    quiet_s: float | None  # None when the ledger does not know the worker
    left_s: float


def silent_workers(engine: Engine, job_id: int, longer_than_s: float) -> list[Silence]:
    """Return the workers that hold chunks of a job and have been silent for so long."""
    now = now_s()
    quiet = now - WorkerRow.seen_at
    query = (
        select(ChunkRow.leased_by, func.count(), func.max(quiet), func.max(ChunkRow.lease_expires_at - now))
        .outerjoin(WorkerRow, WorkerRow.owner == ChunkRow.leased_by)
        .where(ChunkRow.job_id == job_id, ChunkRow.state == ChunkState.LEASED)
        .where(or_(WorkerRow.owner.is_(None), quiet > longer_than_s))
        .group_by(ChunkRow.leased_by)
        .order_by(ChunkRow.leased_by)
    )
    with reading(engine) as connection:
        return [Silence(row[0] or "", row[1], row[2], max(0.0, row[3] or 0.0)) for row in connection.execute(query)]
