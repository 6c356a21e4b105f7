"""Queue lost chunks again: those sent but never claimed, and those whose worker died or fell silent."""

from sqlalchemy import ColumnElement, Connection, Engine, and_, or_, select, update

from models.claims import QueueKey
from models.db import advisory_lock, reading, writing
from models.dialects import now_s
from models.ledger.conditions import LEASE_HAS_EXPIRED, NOT_HELD
from models.ledger.expiry import expire
from models.tables import HELD, ChunkRow, JobRow, ScorerRow
from qsit.process_id import is_dead
from qsit.states import ChunkState

DELIVERY_S = 10.0
"""How long a message may take from Redis to the claim of its chunk before it counts as lost."""

IS_SENT = and_(HELD, ChunkRow.state == ChunkState.SENT)
IS_LEASED = and_(HELD, ChunkRow.state == ChunkState.LEASED)


def requeue_lost(engine: Engine, queue: QueueKey, *, lease_s: float) -> None:
    """
    Queue again what was sent to a queue more than DELIVERY_S ago. Call it when that queue is empty in Redis.

    A worker may hold one of the messages already. It can still claim the chunk.
    """
    of_model = select(JobRow.id).join(ScorerRow, ScorerRow.id == JobRow.scorer_id)
    of_model = of_model.where(ScorerRow.model == queue.model, ScorerRow.revision == queue.revision)
    sent = and_(IS_SENT, ChunkRow.sent_via == queue.broker, ChunkRow.job_id.in_(of_model))
    lost = and_(sent, ChunkRow.available_at < now_s() + lease_s - DELIVERY_S)
    with reading(engine) as connection:
        if connection.execute(select(ChunkRow.id).where(lost).limit(1)).scalar() is None:
            return
    with writing(engine) as connection:
        advisory_lock(connection, "send")
        requeue(connection, lost)


def requeue_overdue(connection: Connection) -> None:
    """Queue again what nobody claimed in time, and what workers hold beyond their lease."""
    requeue(connection, and_(IS_SENT, ChunkRow.available_at < now_s()))
    _expire_all(connection, LEASE_HAS_EXPIRED)


def recover(engine: Engine) -> int:
    """
    Queue again everything that the fleet was sent and has not claimed, and what dead workers hold. Return the number
    of chunks. Safe at any time: a message that was not lost after all finds its chunk leased.
    """
    with writing(engine) as connection:
        advisory_lock(connection, "send")
        count = requeue(connection, and_(IS_SENT, ChunkRow.sent_via == ""))
        count += _expire_all(connection, LEASE_HAS_EXPIRED)
    return count + requeue_of_dead(engine)


def requeue_of_dead(engine: Engine) -> int:
    """Queue again what ended processes of this host hold or were sent. Return the number of chunks."""
    holders = select(ChunkRow.leased_by, ChunkRow.sent_via).where(HELD).distinct()
    with reading(engine) as connection:
        names = {name for row in connection.execute(holders) for name in row if name}
    dead = sorted(name for name in names if is_dead(name))
    if not dead:
        return 0
    with writing(engine) as connection:
        advisory_lock(connection, "send")
        count = requeue(connection, and_(IS_SENT, ChunkRow.sent_via.in_(dead)))
        count += _expire_all(connection, ChunkRow.leased_by.in_(dead))
    return count


def requeue(connection: Connection, condition: ColumnElement[bool]) -> int:
    """Turn sent chunks into queued ones. Return their number."""
    # Every transaction locks chunks in the order of their ids, so that no two wait for each other.
    # Without "+ 0", SQLite would read the whole table in that order.
    locked = select(ChunkRow.id).where(condition).order_by(ChunkRow.id + 0).with_for_update()
    chunk_ids = connection.execute(locked).scalars().all()
    if chunk_ids:
        queued = update(ChunkRow).where(ChunkRow.id.in_(chunk_ids)).values(state=ChunkState.QUEUED, **NOT_HELD)
        connection.execute(queued)
    return len(chunk_ids)


def shorten_after_clock_change(connection: Connection, latest: ColumnElement[float], lease_s: float) -> None:
    """End leases and waits by one lease from now that would end after `latest`: the clock was set back."""
    beyond = and_(HELD, or_(ChunkRow.available_at > latest, ChunkRow.lease_expires_at > latest))
    connection.execute(select(ChunkRow.id).where(beyond).order_by(ChunkRow.id + 0).with_for_update())
    for column in (ChunkRow.available_at, ChunkRow.lease_expires_at):
        connection.execute(update(ChunkRow).where(HELD, column > latest).values({column: now_s() + lease_s}))


def _expire_all(connection: Connection, condition: ColumnElement[bool]) -> int:
    chunk_ids = connection.execute(select(ChunkRow.id).where(IS_LEASED, condition)).scalars().all()
    return sum(expire(connection, chunk_id, condition) for chunk_id in chunk_ids)
