"""The life of a chunk in a worker's hands: claimed, recorded, handed back or lost.

Every change is guarded by the state it starts from. A claim is a token and a deadline by the database's clock; who
has lost the token writes nothing.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Engine,
    Select,
    and_,
    bindparam,
    case,
    cast,
    column,
    exists,
    false,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from models.db import in_turn, now_s, one_of, reading, storable, writing
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
        lost = and_(Chunk.state == ChunkState.LEASED, Chunk.until < now_s())
        ours = and_(
            Job.state == JobState.ACTIVE,
            Scorer.model == lane.model,
            Scorer.revision == lane.revision,
            Job.private.is_(False) if lane.job_id is None else Job.id == lane.job_id,
        )
        job = connection.execute(
            select(Job.id, Job.scorer_id, Job.rescore, Scorer.procedure, lost.label("lost"), ours.label("ours"))
            .join(Chunk, Chunk.job_id == Job.id)
            .join(Scorer, Scorer.id == Job.scorer_id)
            .where(Chunk.id == chunk_id)
        ).one_or_none()
        if job is not None and job.lost:
            lose(connection, chunk_id)
        if job is None or not job.ours:
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
        scored = exists().where(Score.image_id == Item.image_id, Score.scorer_id == job.scorer_id)
        rows = connection.execute(
            select(Image.id, Image.uri, Image.version, Item.risk, (false() if job.rescore else scored).label("scored"))
            .join(Item, Item.image_id == Image.id)
            .where(Item.chunk_id == chunk_id, Item.state == ItemState.QUEUED)
            .order_by(Image.id)
        ).all()
        claim = Claim(
            chunk_id, job.id, job.scorer_id, job.procedure, job.rescore, token,
            [ClaimedItem(row.id, row.uri, row.version, row.risk == Risk.SUSPECT) for row in rows if not row.scored],
        )  # fmt: skip
        if settled := _settle_scored(connection, claim, [row.id for row in rows if row.scored]):
            connection.execute(update(Chunk).where(Chunk.id == chunk_id).values(scored=Chunk.scored + settled))
    return claim


def start(engine: Engine, claim: Claim, image_ids: Sequence[int], *, alone: bool = False) -> None:
    """
    Note that items are in flight, so that a worker's death can be laid to them.

    Raises:
        LeaseLost: when the chunk is another's by now.
    """
    with writing(engine) as connection:
        _check_lease(connection, claim)
        connection.execute(
            update(Item)
            .where(_open_among(connection, claim, image_ids))
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
        count = _settle_scored(connection, claim, [result.image_id for result in done])
        failures = _settle_failed(connection, claim, failed)
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
            job_state = _check_lease(connection, claim)
        except LeaseLost:
            return
        left = _release(connection, claim.chunk_id, job_state, delay_s)
    if left == ChunkState.DONE:
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
    if connection.dialect.name == "postgresql":  # whose client takes rows one by one
        _overwrite(connection, postgresql.insert(Score).from_select(list(rows[0]), _as_table(rows)))
    else:
        _overwrite(connection, sqlite.insert(Score), rows)


def _as_table(rows: Sequence[Mapping[str, Any]]) -> Select[Any]:
    """Rows of scores as PostgreSQL selects them out of one parameter, of JSON."""
    document = cast(literal(json.dumps(rows, default=datetime.isoformat)), JSON())
    columns = [column(name, Score.__table__.c[name].type) for name in rows[0]]
    return select(func.json_to_recordset(document).table_valued(*columns).render_derived(with_types=True))


def _overwrite(connection: Connection, insert: Any, *rows: Sequence[Mapping[str, Any]]) -> None:
    keys = ("image_id", "scorer_id")
    changed = {
        column.name: insert.excluded[column.name] for column in Score.__table__.columns if column.name not in keys
    }
    connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=changed), *rows)


def _open_among(connection: Connection, claim: Claim, ids: Sequence[int]) -> ColumnElement[bool]:
    return and_(Item.job_id == claim.job_id, one_of(connection, Item.image_id, ids), Item.state == ItemState.QUEUED)


def _settle_scored(connection: Connection, claim: Claim, ids: Sequence[int]) -> int:
    if not ids:
        return 0
    settled = update(Item).where(_open_among(connection, claim, ids)).values(state=ItemState.SCORED, risk=Risk.NONE)
    return connection.execute(settled).rowcount


def _settle_failed(connection: Connection, claim: Claim, failed: Sequence[Failed]) -> int:
    if not failed:
        return 0
    return connection.execute(
        update(Item)
        .where(Item.job_id == claim.job_id, Item.image_id == bindparam("id"), Item.state == ItemState.QUEUED)
        .values(state=ItemState.FAILED, risk=Risk.NONE, reason=bindparam("why"), message=bindparam("words")),
        [{"id": result.image_id, "why": result.reason, "words": storable(result.message)[:500]} for result in failed],
    ).rowcount


def lose(connection: Connection, chunk_id: int) -> int:
    """
    The worker that held a chunk is dead or out of touch. What it had in flight becomes suspect; what it ran alone
    has one more loss, and fails with the third.
    """
    query = (
        select(Job.state)
        .join(Chunk, Chunk.job_id == Job.id)
        .where(Chunk.id == chunk_id, Chunk.state == ChunkState.LEASED)
    )
    job_state = connection.execute(query.with_for_update(of=Chunk, skip_locked=True)).scalar()
    if job_state is None:
        return 0
    open_items = and_(Item.chunk_id == chunk_id, Item.state == ItemState.QUEUED)
    if _was_told_to_end(connection, chunk_id):
        _release(connection, chunk_id, job_state)
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
    _release(connection, chunk_id, job_state)
    return 1


def _was_told_to_end(connection: Connection, chunk_id: int) -> bool:
    """Whether the chunk's worker was killed while it was stopping anyway, which is no photo's doing."""
    stopped = select(Worker.owner).where(Worker.state == WorkerState.STOPPED)
    query = select(Chunk.id).where(Chunk.id == chunk_id, Chunk.owner.in_(stopped))
    return connection.execute(query).scalar() is not None


def _release(connection: Connection, chunk_id: int, job_state: str, delay_s: float = 0.0) -> str:
    """
    A leased chunk is queued again, or done. Nothing of it is in flight any more, and nothing more is laid to its
    items: what ran alone does so again. The chunk's new state.
    """
    is_open = and_(Item.chunk_id == chunk_id, Item.state == ItemState.QUEUED)
    if job_state == JobState.CANCELLED:
        connection.execute(update(Item).where(is_open).values(state=ItemState.CANCELLED, risk=Risk.NONE))
    connection.execute(
        update(Item)
        .where(is_open, Item.risk.in_((Risk.IN_FLIGHT, Risk.ALONE)))
        .values(risk=case((Item.risk == Risk.ALONE, Risk.SUSPECT), else_=Risk.NONE))
    )
    return connection.execute(
        update(Chunk)
        .where(Chunk.id == chunk_id)
        .values(
            state=case((exists().where(is_open), ChunkState.QUEUED), else_=ChunkState.DONE),
            token=None,
            owner=None,
            until=now_s() + delay_s if delay_s else None,
        )
        .returning(Chunk.state)
    ).scalar_one()
