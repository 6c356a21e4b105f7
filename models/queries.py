"""Every read: progress, results, failures, summaries."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Engine, Select, and_, func, or_, select

from models.db import reading
from models.states import ChunkState, ItemState, JobState, Reason
from models.tables import Chunk, Image, Item, Job, Score, Scorer

PAGE = 1000
"""Rows fetched at a time."""

Sort = Literal["score", "-score", "uri", "-scored_at"]


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
    skipped: int  # scored before
    skipped_failed: int  # failed before, by their own fault
    queued: int  # waiting in the ledger or in Redis
    running: int  # in chunks that a worker holds
    scored: int
    failed: int
    max_failed: str
    private: bool
    created_at: datetime
    finished_at: datetime | None

    @property
    def listed(self) -> int:
        """Images found so far."""
        return self.to_do + self.skipped + self.skipped_failed

    @property
    def to_do(self) -> int:
        """Images that are or were to be scored by this job."""
        return self.queued + self.running + self.scored + self.failed

    @property
    def tolerated(self) -> bool:
        """Whether its failures are within what --max-failed allows."""
        if self.max_failed.endswith("%"):
            return self.failed <= self.to_do * float(self.max_failed[:-1]) / 100
        return self.failed <= int(self.max_failed)


def progress(engine: Engine, job_id: int) -> Progress:
    """The progress of a job, summed over its chunks."""
    left = Chunk.size - Chunk.scored - Chunk.failed
    waiting = Chunk.state.in_((ChunkState.QUEUED, ChunkState.SENT))
    with reading(engine) as connection:
        job = connection.execute(
            select(
                Job.name, Job.state, Job.skipped, Job.skipped_failed, Job.max_failed, Job.listed_at,
                Job.private, Job.created_at, Job.finished_at, Scorer.model, Scorer.revision, Scorer.procedure,
            ).join(Scorer, Scorer.id == Job.scorer_id).where(Job.id == job_id)
        ).one()  # fmt: skip
        counts = connection.execute(
            select(
                func.coalesce(func.sum(left).filter(waiting), 0).label("queued"),
                func.coalesce(func.sum(left).filter(Chunk.state == ChunkState.LEASED), 0).label("running"),
                func.coalesce(func.sum(Chunk.scored), 0).label("scored"),
                func.coalesce(func.sum(Chunk.failed), 0).label("failed"),
            ).where(Chunk.job_id == job_id)
        ).one()
    return Progress(
        job=job_id, name=job.name, state=JobState(job.state), model=job.model, revision=job.revision,
        procedure=job.procedure, is_listed=job.listed_at is not None, skipped=job.skipped,
        skipped_failed=job.skipped_failed, queued=int(counts.queued), running=int(counts.running),
        scored=int(counts.scored), failed=int(counts.failed), max_failed=job.max_failed, private=job.private,
        created_at=job.created_at, finished_at=job.finished_at,
    )  # fmt: skip


def failures_by_reason(engine: Engine, job_id: int) -> dict[Reason, int]:
    """How many items of a job failed for each reason, the commonest first."""
    query = (
        select(Item.reason, func.count())
        .where(Item.job_id == job_id, Item.state == ItemState.FAILED)
        .group_by(Item.reason)
        .order_by(func.count().desc(), Item.reason)
    )
    with reading(engine) as connection:
        return {Reason(row[0] or ""): row[1] for row in connection.execute(query)}


@dataclass(frozen=True)
class Result:
    """A score as it is queried; logits in the order Excellent, Good, Fair, Poor, Bad."""

    image_id: int
    scorer_id: int
    uri: str
    version: str
    score: float
    logits: tuple[float, ...]
    model: str
    revision: str
    procedure: str
    dtype: str
    scored_at: datetime
    job: int


@dataclass(frozen=True)
class Wanted:
    """Which results, in which order: scores 0..1, all of them where nothing is said."""

    job: int | None = None
    model: str | None = None
    under: str | None = None  # URIs that begin with this
    least: float | None = None
    most: float | None = None
    all_versions: bool = False
    sort: Sort = "score"
    limit: int | None = None


def results(engine: Engine, wanted: Wanted) -> Iterator[Result]:
    """Results in order, fetched by pages that each continue behind the last row of the one before."""
    left = wanted.limit
    last: Result | None = None
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        with reading(engine) as connection:
            rows = connection.execute(_page(wanted, last).limit(size)).all()
        for row in rows:
            last = _result(row)
            yield last
        if len(rows) < size:
            return
        left = None if left is None else left - size


def _page(wanted: Wanted, last: Result | None) -> Select[*tuple[Any, ...]]:
    query = (
        select(
            Image.id, Image.uri, Image.version, Score.scorer_id, Score.score, Score.excellent, Score.good, Score.fair,
            Score.poor, Score.bad, Score.dtype, Score.scored_at, Score.job_id, Scorer.model, Scorer.revision,
            Scorer.procedure,
        )
        .join(Score, Score.image_id == Image.id)
        .join(Scorer, Scorer.id == Score.scorer_id)
    )  # fmt: skip
    if not wanted.all_versions:
        query = query.where(Image.current)
    if wanted.job is not None:
        query = query.where(Score.job_id == wanted.job)
    if wanted.model is not None:
        query = query.where(Scorer.model == wanted.model)
    if wanted.under is not None:
        query = query.where(Image.uri >= wanted.under, Image.uri < _after_prefix(wanted.under))
    if wanted.least is not None:
        query = query.where(Score.score >= wanted.least)
    if wanted.most is not None:
        query = query.where(Score.score <= wanted.most)
    keys: dict[Sort, tuple[Any, bool]] = {
        "score": (Score.score, False),
        "-score": (Score.score, True),
        "uri": (Image.uri, False),
        "-scored_at": (Score.scored_at, True),
    }
    key, descending = keys[wanted.sort]
    order = key.desc() if descending else key.asc()
    query = query.order_by(order, Image.id, Score.scorer_id)
    return query if last is None else query.where(_behind(key, descending, _value(last, wanted.sort), last))


def _behind(key: Any, descending: bool, value: Any, last: Result) -> ColumnElement[bool]:
    further: ColumnElement[bool] = key < value if descending else key > value
    same_key = and_(key == value, Image.id > last.image_id)
    same_image = and_(key == value, Image.id == last.image_id, Score.scorer_id > last.scorer_id)
    return or_(further, same_key, same_image)


def _value(result: Result, sort: Sort) -> float | str | datetime:
    if sort == "uri":
        return result.uri
    return result.scored_at if sort == "-scored_at" else result.score


def _after_prefix(prefix: str) -> str:
    """The least text that is greater than everything that begins with `prefix`."""
    return prefix + "\U0010ffff"


def _result(row: Any) -> Result:
    return Result(
        row.id, row.scorer_id, row.uri, row.version, row.score,
        (row.excellent, row.good, row.fair, row.poor, row.bad),
        row.model, row.revision, row.procedure, row.dtype, row.scored_at, row.job_id,
    )  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """A failed item."""

    uri: str
    reason: Reason
    message: str
    job: int


def failures(engine: Engine, job_id: int) -> Iterator[Failure]:
    """The failed items of a job, in the order of their listing."""
    last = 0
    while True:
        query = (
            select(Image.id, Image.uri, Item.reason, Item.message)
            .join(Item, Item.image_id == Image.id)
            .where(Item.job_id == job_id, Item.state == ItemState.FAILED, Image.id > last)
            .order_by(Image.id)
            .limit(PAGE)
        )
        with reading(engine) as connection:
            rows = connection.execute(query).all()
        for row in rows:
            yield Failure(row.uri, Reason(row.reason), row.message or "", job_id)
        if len(rows) < PAGE:
            return
        last = rows[-1].id
