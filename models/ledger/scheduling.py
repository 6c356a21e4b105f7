"""Choose the chunks that go to Redis next."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, Float, and_, bindparam, case, exists, func, or_, select, update
from sqlalchemy.orm import aliased

from models.claims import QueueKey
from models.db import advisory_lock, reading, writing
from models.dialects import now_s
from models.ledger.conditions import IS_FOR_BROKER, IS_FOR_MODEL, LEASE_HAS_EXPIRED, queue_parameters
from models.ledger.rescue import IS_LEASED, IS_SENT, requeue, requeue_overdue, shorten_after_clock_change
from models.tables import HELD, ChunkRow, ImageRow, ItemRow, JobRow, LedgerRow, ScorerRow, WorkerRow
from qsit.states import ChunkState, ItemState, JobState, WorkerState

SLACK_S = 60.0
"""No chunk is held or rests for longer than a lease and this."""


@dataclass(frozen=True)
class Message:
    """What Redis carries of a chunk. Workers use the id alone: the claim says which URIs may be opened."""

    chunk_id: int
    uris: list[str]


@functools.cache
def ledger_id(engine: Engine) -> str:
    """Return what distinguishes this ledger from others on the same Redis: eight hexadecimal digits."""
    with reading(engine) as connection:
        return connection.execute(select(LedgerRow.id)).scalar_one()


_LEASE = bindparam("lease_s", type_=Float(53))
_LATEST = now_s() + _LEASE + SLACK_S  # what ends later was written before the clock was set back
_LIVE_WORKERS = (
    select(func.count())
    .select_from(WorkerRow)
    .where(WorkerRow.broker == bindparam("broker"), WorkerRow.state == WorkerState.READY)
    .where(WorkerRow.model == bindparam("model"), WorkerRow.revision == bindparam("revision"))
    .where(WorkerRow.seen_at > now_s() - _LEASE)
)
_IS_UNCLAIMED = and_(IS_SENT, ChunkRow.available_at < now_s())
_HELD_CHUNKS = (
    select(
        func.count().filter(or_(_IS_UNCLAIMED, and_(IS_LEASED, LEASE_HAS_EXPIRED))).label("overdue"),
        func.count()
        .filter(or_(ChunkRow.available_at > _LATEST, ChunkRow.lease_expires_at > _LATEST))
        .label("beyond_lease"),
        func.count()
        .filter(IS_SENT, ChunkRow.sent_via == bindparam("broker"), ~_IS_UNCLAIMED, IS_FOR_MODEL)
        .label("waiting"),
        _LIVE_WORKERS.scalar_subquery().label("workers"),
    )
    .select_from(ChunkRow)
    .join(JobRow, JobRow.id == ChunkRow.job_id)
    .join(ScorerRow, ScorerRow.id == JobRow.scorer_id)
    .where(HELD)
)

_NEXT = aliased(ChunkRow)
_HAS_RESTED = or_(_NEXT.available_at.is_(None), _NEXT.available_at < now_s(), _NEXT.available_at > _LATEST)
_IS_AVAILABLE = and_(_NEXT.state == ChunkState.QUEUED, _HAS_RESTED)
_NEXT_JOB = (
    select(JobRow.id)
    .join(ScorerRow, ScorerRow.id == JobRow.scorer_id)
    .where(IS_FOR_MODEL, JobRow.state == JobState.ACTIVE, exists().where(_NEXT.job_id == JobRow.id, _IS_AVAILABLE))
    .where(IS_FOR_BROKER)
    .order_by(JobRow.priority.desc(), JobRow.last_dispatched_at, JobRow.id)
    .limit(1)
)
_NEXT_CHUNK = (
    select(_NEXT.id)
    .where(_NEXT.job_id == _NEXT_JOB.scalar_subquery(), _IS_AVAILABLE)
    .order_by(_NEXT.id)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_STAGE_NEXT = (
    update(ChunkRow)
    .where(ChunkRow.id == _NEXT_CHUNK.scalar_subquery(), ChunkRow.state == ChunkState.QUEUED)
    .values(state=ChunkState.SENT, sent_via=bindparam("broker"), available_at=now_s() + _LEASE)
    .returning(ChunkRow.id, ChunkRow.job_id)
)
_LATEST_DISPATCH = (
    select(func.max(JobRow.last_dispatched_at) + 1e-3).where(JobRow.state == JobState.ACTIVE).scalar_subquery()
)
# A job's turn is later than every other job's, also within one millisecond or after the clock was set back.
_NOTE_DISPATCH = (
    update(JobRow)
    .where(JobRow.id == bindparam("job"))
    .values(last_dispatched_at=case((now_s() < _LATEST_DISPATCH, _LATEST_DISPATCH), else_=now_s()))
)

_URIS = (
    select(ImageRow.uri)
    .join(ItemRow, ItemRow.image_id == ImageRow.id)
    .where(ItemRow.chunk_id == bindparam("chunk"), ItemRow.state == ItemState.QUEUED)
    .order_by(ImageRow.id)
)


def stage_chunks(engine: Engine, queue: QueueKey, *, ahead: int, lease_s: float) -> list[Message]:
    """
    Mark the next chunks as sent and return what to publish.

    `ahead` of them wait in Redis for each live worker of the queue, or for one worker where none is seen yet. Order: by
    priority, then the job served longest ago.
    """
    parameters = queue_parameters(queue) | {"lease_s": lease_s}
    messages = []
    with writing(engine) as connection:
        advisory_lock(connection, "send")
        held = connection.execute(_HELD_CHUNKS, parameters).one()
        if held.overdue:
            requeue_overdue(connection)
        if held.beyond_lease:
            shorten_after_clock_change(connection, now_s() + lease_s + SLACK_S, lease_s)
        for _ in range(ahead * max(1, held.workers) - held.waiting):
            chunk = connection.execute(_STAGE_NEXT, parameters).one_or_none()
            if chunk is None:
                break
            connection.execute(_NOTE_DISPATCH, {"job": chunk.job_id})
            uris = connection.execute(_URIS, {"chunk": chunk.id}).scalars()
            messages.append(Message(chunk.id, list(uris)))
    return messages


def unstage(engine: Engine, chunk_ids: Sequence[int]) -> None:
    """Queue chunks again whose messages could not be published."""
    with writing(engine) as connection:
        requeue(connection, and_(ChunkRow.id.in_(chunk_ids), ChunkRow.state == ChunkState.SENT))


def queues_with_work(engine: Engine) -> list[QueueKey]:
    """Return the queues of the fleet for which chunks wait."""
    waiting = exists().where(ChunkRow.job_id == JobRow.id, ChunkRow.state == ChunkState.QUEUED)
    query = (
        select(ScorerRow.model, ScorerRow.revision)
        .join(JobRow, JobRow.scorer_id == ScorerRow.id)
        .where(JobRow.state == JobState.ACTIVE, JobRow.private.is_(False), waiting)
        .distinct()
    )
    with reading(engine) as connection:
        return [QueueKey(row.model, row.revision) for row in connection.execute(query)]
