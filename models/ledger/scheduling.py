"""What comes next: the chunks that are to be in Redis, and those that must go there again."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    Float,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import aliased

from models.claims import QueueKey
from models.db import advisory_lock, reading, writing
from models.dialects import now_s
from models.ledger.conditions import OVERDUE
from models.ledger.rescue import expire_all, requeue
from models.tables import HELD, ChunkRow, ImageRow, ItemRow, JobRow, LedgerRow, ScorerRow, WorkerRow
from qsit.states import ChunkState, ItemState, JobState, WorkerState

SLACK_S = 60.0
"""No chunk is held or rests for longer than a lease and this."""


@dataclass(frozen=True)
class Message:
    """What Redis carries of a chunk; the URIs are for the eyes of whoever watches the queue."""

    chunk_id: int
    uris: list[str]


@functools.cache
def ledger_id(engine: Engine) -> str:
    """What tells this ledger from others that share its Redis: eight hexadecimal digits, made with the schema."""
    with reading(engine) as connection:
        return connection.execute(select(LedgerRow.id)).scalar_one()


_OF_LANE = and_(ScorerRow.model == bindparam("model"), ScorerRow.revision == bindparam("revision"))
_LEASE = bindparam("lease_s", type_=Float(53))
_LATEST = now_s() + _LEASE + SLACK_S  # whatever is to end later was given before the clock was set back
_LIVE_WORKERS = (
    select(func.count())
    .select_from(WorkerRow)
    .where(WorkerRow.broker == bindparam("broker"), WorkerRow.state == WorkerState.READY)
    .where(WorkerRow.model == bindparam("model"), WorkerRow.revision == bindparam("revision"))
    .where(WorkerRow.seen_at > now_s() - _LEASE)
)
_OUT = (
    select(
        func.count().filter(OVERDUE).label("overdue"),
        func.count().filter(ChunkRow.until > _LATEST).label("astray"),
        func.count()
        .filter(ChunkRow.state == ChunkState.SENT, ChunkRow.owner == bindparam("broker"), ~OVERDUE, _OF_LANE)
        .label("waiting"),
        _LIVE_WORKERS.scalar_subquery().label("workers"),
    )
    .select_from(ChunkRow)
    .join(JobRow, JobRow.id == ChunkRow.job_id)
    .join(ScorerRow, ScorerRow.id == JobRow.scorer_id)
    .where(HELD)
)


def stage_chunks(engine: Engine, lane: QueueKey, *, ahead: int, lease_s: float) -> list[Message]:
    """
    Mark the chunks that come next as sent, so that `ahead` of them wait in Redis for each live worker of the lane
    (for one worker where none is seen yet), and return what to publish. By priority, then the job served longest ago.
    """
    terms = {
        "model": lane.model, "revision": lane.revision, "broker": lane.broker, "only_job": lane.job_id,
        "lease_s": lease_s,
    }  # fmt: skip
    messages = []
    with writing(engine) as connection:
        advisory_lock(connection, "stage_chunks")
        out = connection.execute(_OUT, terms).one()
        if out.overdue:
            _take_overdue_back(connection)
        if out.astray:
            connection.execute(_ASTRAY, terms)  # locks them in the order of their ids, as everywhere
            connection.execute(_BRING_FORWARD, terms)
        for _ in range(ahead * max(1, out.workers) - out.waiting):
            sent = connection.execute(_SEND_NEXT, terms).one_or_none()
            if sent is None:
                break
            connection.execute(_SERVE, {"job": sent.job_id})
            messages.append(Message(sent.id, list(connection.execute(_URIS, {"chunk": sent.id}).scalars())))
    return messages


def _take_overdue_back(connection: Connection) -> None:
    requeue(connection, and_(HELD, ChunkRow.state == ChunkState.SENT, OVERDUE))
    expire_all(connection, OVERDUE)


_ASTRAY = select(ChunkRow.id).where(HELD, ChunkRow.until > _LATEST).order_by(ChunkRow.id + 0).with_for_update()
_BRING_FORWARD = update(ChunkRow).where(HELD, ChunkRow.until > _LATEST).values(until=now_s() + _LEASE)
_READY = aliased(ChunkRow)
_HAS_RESTED = or_(_READY.until.is_(None), _READY.until < now_s(), _READY.until > _LATEST)
_IS_READY = and_(_READY.state == ChunkState.QUEUED, _HAS_RESTED)
_ONLY_JOB = bindparam("only_job", type_=BigInteger)
_NEXT_JOB = (
    select(JobRow.id)
    .join(ScorerRow, ScorerRow.id == JobRow.scorer_id)
    .where(_OF_LANE, JobRow.state == JobState.ACTIVE, exists().where(_READY.job_id == JobRow.id, _IS_READY))
    .where(or_(JobRow.id == _ONLY_JOB, and_(_ONLY_JOB.is_(None), JobRow.private.is_(False))))
    .order_by(JobRow.priority.desc(), JobRow.served_at, JobRow.id)
    .limit(1)
)
_NEXT_CHUNK = (
    select(_READY.id)
    .where(_READY.job_id == _NEXT_JOB.scalar_subquery(), _IS_READY)
    .order_by(_READY.id)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_SEND_NEXT = (
    update(ChunkRow)
    .where(ChunkRow.id == _NEXT_CHUNK.scalar_subquery(), ChunkRow.state == ChunkState.QUEUED)
    .values(state=ChunkState.SENT, owner=bindparam("broker"), until=now_s() + _LEASE)
    .returning(ChunkRow.id, ChunkRow.job_id)
)
_LAST_SERVED = select(func.max(JobRow.served_at) + 1e-3).where(JobRow.state == JobState.ACTIVE).scalar_subquery()
_SERVE = (
    update(JobRow)
    .where(
        JobRow.id == bindparam("job")
    )  # after every other, even in the same millisecond or when the clock was set back
    .values(served_at=case((now_s() < _LAST_SERVED, _LAST_SERVED), else_=now_s()))
)
_URIS = (
    select(ImageRow.uri)
    .join(ItemRow, ItemRow.image_id == ImageRow.id)
    .where(ItemRow.chunk_id == bindparam("chunk"), ItemRow.state == ItemState.QUEUED)
    .order_by(ImageRow.id)
)


def unstage(engine: Engine, chunk_ids: Sequence[int]) -> None:
    """Queue chunks again whose messages could not be published."""
    with writing(engine) as connection:
        requeue(connection, and_(ChunkRow.id.in_(chunk_ids), ChunkRow.state == ChunkState.SENT))


def queues_with_work(engine: Engine) -> list[QueueKey]:
    """The lanes of the fleet in which chunks wait."""
    waiting = exists().where(ChunkRow.job_id == JobRow.id, ChunkRow.state == ChunkState.QUEUED)
    query = (
        select(ScorerRow.model, ScorerRow.revision)
        .join(JobRow, JobRow.scorer_id == ScorerRow.id)
        .where(JobRow.state == JobState.ACTIVE, JobRow.private.is_(False), waiting)
        .distinct()
    )
    with reading(engine) as connection:
        return [QueueKey(row.model, row.revision) for row in connection.execute(query)]
