"""The life of a chunk in a worker's hands: claimed, recorded, handed back or lost.

Every change is guarded by the state it starts from. A claim is a token and a deadline by the database's clock; who
has lost the token writes nothing.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, case, exists, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from models.db import in_turn, now_s, reading, storable, writing
from models.errors import LeaseLost
from models.jobs import finish_if_done
from models.register import learn
from models.states import ChunkState, ItemState, JobState, Reason, Risk, WorkerState
from models.tables import Chunk, Image, Item, Job, Score, Scorer, Worker

LOSSES_TO_CRASHED = 3


@dataclass(frozen=True)
class Lane:
    """
    Which chunks a worker takes: those for its model, sent through its broker.

    broker: "" for the broker that the fleet shares, or the identity of the `qsit score` that owns a private one;
    job_id: the only job of a private broker.
    """

    model: str
    revision: str
    broker: str = ""
    job_id: int | None = None


@dataclass(frozen=True)
class ClaimedItem:
    image_id: int
    uri: str
    version: str
    suspect: bool  # it was in flight when a worker died, and must run alone


@dataclass(frozen=True)
class Claim:
    """A leased chunk: its open items, and the token without which nothing of it can be written."""

    chunk_id: int
    job_id: int
    scorer_id: int
    procedure: str
    rescore: bool
    token: str
    items: list[ClaimedItem]


@dataclass(frozen=True)
class Scored:
    """version: the one that was read, of an image whose version was unknown."""

    image_id: int
    score: float
    logits: tuple[float, ...]  # Excellent, Good, Fair, Poor, Bad
    dtype: str
    version: str | None = None


@dataclass(frozen=True)
class Known:
    """An image whose version was unknown, and that has its score at the version it turned out to have."""

    image_id: int
    version: str


@dataclass(frozen=True)
class Failed:
    image_id: int
    reason: Reason
    message: str


def claim(engine: Engine, chunk_id: int, lane: Lane, owner: str, lease_s: float) -> Claim | None:
    """
    Lease a chunk that was queued or sent, for `lease_s` seconds. None when it is leased or done already, not for
    this lane, or its job is not active. Items that have their score by now are settled without being returned.
    """
    token = secrets.token_hex(16)
    with writing(engine) as connection:
        lost = and_(Chunk.id == chunk_id, Chunk.state == ChunkState.LEASED, Chunk.until < now_s())
        if connection.execute(select(Chunk.id).where(lost)).scalar() is not None:
            lose(connection, chunk_id)
        job = connection.execute(
            select(Job.id, Job.scorer_id, Job.rescore, Job.private, Scorer.procedure)
            .join(Chunk, Chunk.job_id == Job.id)
            .join(Scorer, Scorer.id == Job.scorer_id)
            .where(Chunk.id == chunk_id, Job.state == JobState.ACTIVE)
            .where(Scorer.model == lane.model, Scorer.revision == lane.revision)
        ).one_or_none()
        if job is None or (job.private if lane.job_id is None else job.id != lane.job_id):
            return None
        free = or_(
            Chunk.state == ChunkState.SENT,
            and_(Chunk.state == ChunkState.QUEUED, or_(Chunk.until.is_(None), Chunk.until < now_s())),
        )
        taken = connection.execute(
            update(Chunk)
            .where(Chunk.id == chunk_id, free)
            .values(state=ChunkState.LEASED, token=token, owner=owner, until=now_s() + lease_s)
        )
        if taken.rowcount != 1:
            return None
        if not job.rescore:
            _settle(connection, chunk_id, job.scorer_id)
        rows = connection.execute(
            select(Image.id, Image.uri, Image.version, Item.risk)
            .join(Item, Item.image_id == Image.id)
            .where(Item.chunk_id == chunk_id, Item.state == ItemState.QUEUED)
            .order_by(Image.id)
        ).all()
    items = [ClaimedItem(row.id, row.uri, row.version, row.risk == Risk.SUSPECT) for row in rows]
    return Claim(chunk_id, job.id, job.scorer_id, job.procedure, job.rescore, token, items)


def start(engine: Engine, claim: Claim, image_ids: Sequence[int], *, alone: bool = False) -> None:
    """
    Note that items are in flight, so that a worker's death can be laid to them. What runs alone is in flight alone:
    what was before it has come to an end, if without a result, by the worker's own fault.

    Raises:
        LeaseLost: when the chunk is another's by now.
    """
    with writing(engine) as connection:
        _check_lease(connection, claim)
        if alone:
            _calm(connection, and_(Item.chunk_id == claim.chunk_id, Item.state == ItemState.QUEUED))
        connection.execute(
            update(Item)
            .where(Item.job_id == claim.job_id, Item.image_id.in_(image_ids), Item.state == ItemState.QUEUED)
            .values(risk=Risk.ALONE if alone else Risk.IN_FLIGHT)
        )


def record(engine: Engine, claim: Claim, results: Sequence[Scored | Known | Failed], lease_s: float) -> bool:
    """
    Write a batch's results, and extend the lease, in one transaction. A version that was learnt becomes the current
    one of its URI, and has the score; the item stays with the image whose version is unknown. False when the job has
    been paused or cancelled, and the rest is to be handed back.

    Raises:
        LeaseLost: when the chunk is another's by now; nothing is written.
    """
    scored = [result for result in results if isinstance(result, Scored)]
    failed = [result for result in results if isinstance(result, Failed)]
    done = [result for result in results if not isinstance(result, Failed)]
    learnt = {result.image_id: result.version for result in done if result.version is not None}
    with writing(engine) as connection:
        if learnt:
            in_turn(connection, "jobs")
        job_state = _check_lease(connection, claim)
        real_ids = _register_learnt(connection, learnt)
        if scored:
            _write_scores(connection, claim, scored, real_ids)
        count = _settle_items(connection, claim, [result.image_id for result in done], ItemState.SCORED)
        for result in failed:
            connection.execute(
                update(Item)
                .where(Item.job_id == claim.job_id, Item.image_id == result.image_id, Item.state == ItemState.QUEUED)
                .values(reason=result.reason, message=storable(result.message)[:500])
            )
        failures = _settle_items(connection, claim, [result.image_id for result in failed], ItemState.FAILED)
        connection.execute(
            update(Chunk)
            .where(Chunk.id == claim.chunk_id)
            .values(scored=Chunk.scored + count, failed=Chunk.failed + failures, until=now_s() + lease_s)
        )
    return job_state == JobState.ACTIVE


def has_score(engine: Engine, uri: str, version: str, scorer_id: int) -> bool:
    """Whether an image has its score at a version."""
    query = select(Score.image_id).join(Image, Image.id == Score.image_id)
    query = query.where(Image.uri == uri, Image.version == version, Score.scorer_id == scorer_id)
    with reading(engine) as connection:
        return connection.execute(query).scalar() is not None


def extend(connection: Connection, claim: Claim, lease_s: float) -> bool:
    """The heartbeat of a lease. False when it is lost, or the job has been paused or cancelled."""
    still = and_(Chunk.id == claim.chunk_id, Chunk.token == claim.token, Chunk.state == ChunkState.LEASED)
    is_held = connection.execute(update(Chunk).where(still).values(until=now_s() + lease_s)).rowcount == 1
    job_state = select(Job.state).where(Job.id == claim.job_id)
    return is_held and connection.execute(job_state).scalar() == JobState.ACTIVE


def hand_back(engine: Engine, claim: Claim, *, delay_s: float = 0.0) -> None:
    """
    End a lease in good order: the chunk is done, or what is left of it is queued again, to be sent after `delay_s`.
    Finishes the job with its last chunk. Does nothing when the lease is lost.
    """
    with writing(engine) as connection:
        try:
            _check_lease(connection, claim)
        except LeaseLost:
            return
        _calm(connection, and_(Item.chunk_id == claim.chunk_id, Item.state == ItemState.QUEUED))
        _release(connection, claim.chunk_id, delay_s)
    finish_if_done(engine, claim.job_id)


def _check_lease(connection: Connection, claim: Claim) -> JobState:
    """The job's state; the chunk is locked, so that nobody takes it before the transaction ends."""
    query = (
        select(Job.state)
        .join(Chunk, Chunk.job_id == Job.id)
        .where(Chunk.id == claim.chunk_id, Chunk.token == claim.token, Chunk.state == ChunkState.LEASED)
    )
    job_state = connection.execute(query.with_for_update(of=Chunk)).scalar()
    if job_state is None:
        raise LeaseLost(f"the lease of chunk {claim.chunk_id} was lost")
    return JobState(job_state)


def _register_learnt(connection: Connection, learnt: dict[int, str]) -> dict[int, int]:
    """The images at the versions that were learnt, by the id of the one whose version is unknown."""
    if not learnt:
        return {}
    rows = connection.execute(select(Image.id, Image.uri).where(Image.id.in_(learnt))).all()
    real_ids = learn(connection, {row.uri: learnt[row.id] for row in rows})
    return {row.id: real_ids[row.uri] for row in rows}


def _write_scores(connection: Connection, claim: Claim, scored: Sequence[Scored], real_ids: Mapping[int, int]) -> None:
    rows: list[dict[str, Any]] = [
        {
            "image_id": real_ids.get(result.image_id, result.image_id), "scorer_id": claim.scorer_id,
            "score": result.score,
            **dict(zip(("excellent", "good", "fair", "poor", "bad"), result.logits, strict=True)),
            "dtype": result.dtype, "job_id": claim.job_id, "scored_at": datetime.now(UTC),
        }
        for result in scored
    ]  # fmt: skip
    rows.sort(key=lambda row: row["image_id"])  # in one order for all, or two could wait for each other
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(Score)
    changed = {column: statement.excluded[column] for column in rows[0] if column not in ("image_id", "scorer_id")}
    connection.execute(statement.on_conflict_do_update(index_elements=["image_id", "scorer_id"], set_=changed), rows)


def _settle_items(connection: Connection, claim: Claim, ids: Sequence[int], state: ItemState) -> int:
    if not ids:
        return 0
    return connection.execute(
        update(Item)
        .where(Item.job_id == claim.job_id, Item.image_id.in_(ids), Item.state == ItemState.QUEUED)
        .values(state=state, risk=Risk.NONE)
    ).rowcount


def _settle(connection: Connection, chunk_id: int, scorer_id: int) -> None:
    """Items that another job has scored meanwhile are scored."""
    has_score = exists().where(Score.image_id == Item.image_id, Score.scorer_id == scorer_id)
    settled = connection.execute(
        update(Item)
        .where(Item.chunk_id == chunk_id, Item.state == ItemState.QUEUED, has_score)
        .values(state=ItemState.SCORED, risk=Risk.NONE)
    ).rowcount
    if settled:
        connection.execute(update(Chunk).where(Chunk.id == chunk_id).values(scored=Chunk.scored + settled))


def lose(connection: Connection, chunk_id: int) -> int:
    """
    The worker that held a chunk is dead or out of touch. What it had in flight becomes suspect; what it ran alone
    has one more loss, and fails with the third.
    """
    query = select(Chunk.id).where(Chunk.id == chunk_id, Chunk.state == ChunkState.LEASED)
    if connection.execute(query.with_for_update(skip_locked=True)).scalar() is None:
        return 0
    open_items = and_(Item.chunk_id == chunk_id, Item.state == ItemState.QUEUED)
    if _was_told_to_end(connection, chunk_id):
        _calm(connection, open_items)
        _release(connection, chunk_id, 0.0)
        return 1
    crashed = and_(open_items, Item.risk == Risk.ALONE, Item.losses + 1 >= LOSSES_TO_CRASHED)
    count = connection.execute(
        update(Item)
        .where(crashed)
        .values(
            state=ItemState.FAILED,
            risk=Risk.NONE,
            losses=Item.losses + 1,
            reason=Reason.CRASHED,
            message=f"it ended its worker {LOSSES_TO_CRASHED} times while running alone",
        )
    ).rowcount
    connection.execute(
        update(Item)
        .where(open_items, Item.risk.in_((Risk.ALONE, Risk.IN_FLIGHT)))
        .values(risk=Risk.SUSPECT, losses=case((Item.risk == Risk.ALONE, Item.losses + 1), else_=Item.losses))
    )
    connection.execute(update(Chunk).where(Chunk.id == chunk_id).values(failed=Chunk.failed + count))
    _release(connection, chunk_id, 0.0)
    return 1


def _was_told_to_end(connection: Connection, chunk_id: int) -> bool:
    """Whether the chunk's worker was killed while it was stopping anyway, which is no photo's doing."""
    stopped = select(Worker.owner).where(Worker.state == WorkerState.STOPPED)
    query = select(Chunk.id).where(Chunk.id == chunk_id, Chunk.owner.in_(stopped))
    return connection.execute(query).scalar() is not None


def _calm(connection: Connection, items: ColumnElement[bool]) -> None:
    """Nothing of these items is in flight any more, and nothing is laid to them."""
    connection.execute(update(Item).where(items, Item.risk == Risk.IN_FLIGHT).values(risk=Risk.NONE))
    connection.execute(update(Item).where(items, Item.risk == Risk.ALONE).values(risk=Risk.SUSPECT))


def _release(connection: Connection, chunk_id: int, delay_s: float) -> None:
    cancelled = exists().where(Chunk.id == chunk_id, Job.id == Chunk.job_id, Job.state == JobState.CANCELLED)
    connection.execute(
        update(Item)
        .where(Item.chunk_id == chunk_id, Item.state == ItemState.QUEUED, cancelled)
        .values(state=ItemState.CANCELLED, risk=Risk.NONE)
    )
    left = exists().where(Item.chunk_id == chunk_id, Item.state == ItemState.QUEUED)
    connection.execute(
        update(Chunk)
        .where(Chunk.id == chunk_id)
        .values(
            state=case((left, ChunkState.QUEUED), else_=ChunkState.DONE),
            token=None,
            owner=None,
            until=now_s() + delay_s if delay_s else None,
        )
    )
