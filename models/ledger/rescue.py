"""Queue again what was lost: chunks sent but never claimed, and chunks of workers that died."""

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    select,
    update,
)

from models.claims import QueueKey
from models.db import advisory_lock, reading, writing
from models.dialects import now_s
from models.ledger.conditions import OVERDUE
from models.ledger.leases import expire
from models.tables import HELD, ChunkRow, JobRow, ScorerRow
from qsit.process_id import is_dead
from qsit.states import ChunkState

SETTLE_S = 10.0
"""How long a message may be on its way from Redis to the claim of its chunk before it is taken to be lost."""


def expire_all(connection: Connection, which: ColumnElement[bool]) -> int:
    leased = select(ChunkRow.id).where(HELD, ChunkRow.state == ChunkState.LEASED, which)
    return sum(expire(connection, chunk_id, which) for chunk_id in connection.execute(leased).scalars().all())


def requeue_lost(engine: Engine, lane: QueueKey, *, lease_s: float) -> None:
    """
    Queue again what the lane sent a while ago; called when nothing waits in Redis. At worst a message was in the hands
    of a worker that is about to claim its chunk, which it still may.
    """
    in_lane = select(JobRow.id).join(ScorerRow, ScorerRow.id == JobRow.scorer_id)
    in_lane = in_lane.where(ScorerRow.model == lane.model, ScorerRow.revision == lane.revision)
    sent = and_(HELD, ChunkRow.state == ChunkState.SENT, ChunkRow.owner == lane.broker, ChunkRow.job_id.in_(in_lane))
    lost = and_(sent, ChunkRow.until < now_s() + lease_s - SETTLE_S)
    with reading(engine) as connection:
        if connection.execute(select(ChunkRow.id).where(lost).limit(1)).scalar() is None:
            return
    with writing(engine) as connection:
        advisory_lock(connection, "send")
        requeue(connection, lost)


def recover(engine: Engine) -> int:
    """
    Queue everything again that was sent and not claimed, and what the dead held. Safe at any time: a message that
    was not lost after all finds its chunk taken. Returns the number of chunks.
    """
    with writing(engine) as connection:
        advisory_lock(connection, "send")
        count = requeue(connection, and_(HELD, ChunkRow.state == ChunkState.SENT, ChunkRow.owner == ""))
        count += expire_all(connection, OVERDUE)
    return count + requeue_of_dead(engine)


def requeue_of_dead(engine: Engine) -> int:
    """Queue again what is held by processes of this host that have ended. Returns the number of chunks."""
    with reading(engine) as connection:
        owners = connection.execute(select(ChunkRow.owner).where(HELD, ChunkRow.owner != "").distinct()).scalars().all()
    dead = [owner for owner in owners if owner is not None and is_dead(owner)]
    if not dead:
        return 0
    with writing(engine) as connection:
        advisory_lock(connection, "send")
        count = requeue(connection, and_(HELD, ChunkRow.state == ChunkState.SENT, ChunkRow.owner.in_(dead)))
        count += expire_all(connection, ChunkRow.owner.in_(dead))
    return count


def requeue(connection: Connection, which: ColumnElement[bool]) -> int:
    """Sent chunks become queued. Their number."""
    # locked in the order of their ids first, as everywhere, or two could wait for each other; plus nothing, or SQLite
    # would read the whole table in that order
    locked = select(ChunkRow.id).where(which).order_by(ChunkRow.id + 0).with_for_update()
    chunk_ids = connection.execute(locked).scalars().all()
    if chunk_ids:
        connection.execute(
            update(ChunkRow)
            .where(ChunkRow.id.in_(chunk_ids))
            .values(state=ChunkState.QUEUED, token=None, owner=None, until=None)
        )
    return len(chunk_ids)
