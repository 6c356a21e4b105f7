"""What comes next: the chunks that are to be in Redis, and those that must go there again."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Engine, and_, exists, func, or_, select, update

from models.db import in_turn, now_s, reading, writing
from models.fleet import is_dead
from models.ledger import Lane, lose
from models.states import ChunkState, ItemState, JobState
from models.tables import Chunk, Image, Item, Job, Ledger, Scorer, Worker

SETTLE_S = 10.0
"""How long a message may be on its way from Redis to the claim of its chunk before it is taken to be lost."""


@dataclass(frozen=True)
class Message:
    """What Redis carries of a chunk; the URIs are for the eyes of whoever watches the queue."""

    chunk_id: int
    uris: list[str]


@functools.cache
def ledger_id(engine: Engine) -> str:
    """What tells this ledger from others that share its Redis: eight hexadecimal digits, made with the schema."""
    with reading(engine) as connection:
        return connection.execute(select(Ledger.id)).scalar_one()


def send(engine: Engine, lane: Lane, *, ahead: int, lease_s: float) -> list[Message]:
    """
    Mark the chunks that come next as sent, so that `ahead` of them wait in Redis for each live worker of the lane
    (for one worker where none is seen yet), and return what to publish. By priority, then the job served longest ago.
    """
    with writing(engine) as connection:
        in_turn(connection, "send")
        take_back(connection, and_(Chunk.state == ChunkState.SENT, Chunk.until < now_s()))
        lost = select(Chunk.id).where(Chunk.state == ChunkState.LEASED, Chunk.until < now_s())
        for lost_id in connection.execute(lost).scalars().all():
            lose(connection, lost_id)
        live = (
            select(func.count())
            .select_from(Worker)
            .where(_same_lane(lane), Worker.seen_at > now_s() - lease_s, Worker.state == "ready")
        )
        waiting = (
            select(func.count())
            .select_from(Chunk)
            .join(Job, Job.id == Chunk.job_id)
            .join(Scorer, Scorer.id == Job.scorer_id)
            .where(Chunk.state == ChunkState.SENT, Chunk.owner == lane.broker)
            .where(Scorer.model == lane.model, Scorer.revision == lane.revision)
        )
        wanted = ahead * max(1, connection.execute(live).scalar_one()) - connection.execute(waiting).scalar_one()
        messages = []
        for _ in range(wanted):
            if (chunk_id := _send_next(connection, lane, lease_s)) is None:
                break
            uris = (
                select(Image.uri)
                .join(Item, Item.image_id == Image.id)
                .where(Item.chunk_id == chunk_id, Item.state == ItemState.QUEUED)
                .order_by(Image.id)
            )
            messages.append(Message(chunk_id, list(connection.execute(uris).scalars())))
        return messages


def _same_lane(lane: Lane) -> ColumnElement[bool]:
    return and_(Worker.broker == lane.broker, Worker.model == lane.model, Worker.revision == lane.revision)


def _send_next(connection: Connection, lane: Lane, lease_s: float) -> int | None:
    ready = and_(Chunk.state == ChunkState.QUEUED, or_(Chunk.until.is_(None), Chunk.until < now_s()))
    jobs = (
        select(Job.id)
        .join(Scorer, Scorer.id == Job.scorer_id)
        .where(Scorer.model == lane.model, Scorer.revision == lane.revision, Job.state == JobState.ACTIVE)
        .where(exists().where(Chunk.job_id == Job.id, ready))
        .order_by(Job.priority.desc(), Job.served_at, Job.id)
    )
    jobs = jobs.where(Job.private.is_(False)) if lane.job_id is None else jobs.where(Job.id == lane.job_id)
    job_id = connection.execute(jobs.limit(1)).scalar()
    if job_id is None:
        return None
    next_chunk = (
        select(Chunk.id)
        .where(Chunk.job_id == job_id, ready)
        .order_by(Chunk.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    chunk_id = connection.execute(next_chunk).scalar()
    if chunk_id is None:
        return None
    connection.execute(
        update(Chunk)
        .where(Chunk.id == chunk_id, Chunk.state == ChunkState.QUEUED)
        .values(state=ChunkState.SENT, owner=lane.broker, until=now_s() + lease_s)
    )
    connection.execute(update(Job).where(Job.id == job_id).values(served_at=now_s()))
    return chunk_id


def unsend(engine: Engine, chunk_ids: Sequence[int]) -> None:
    """Queue chunks again whose messages could not be published."""
    with writing(engine) as connection:
        take_back(connection, and_(Chunk.id.in_(chunk_ids), Chunk.state == ChunkState.SENT))


def take_back_lost(engine: Engine, lane: Lane, *, lease_s: float) -> None:
    """
    Queue again what the lane sent a while ago; called when nothing waits in Redis. At worst a message was in the hands
    of a worker that is about to claim its chunk, which it still may.
    """
    in_lane = select(Job.id).join(Scorer, Scorer.id == Job.scorer_id)
    in_lane = in_lane.where(Scorer.model == lane.model, Scorer.revision == lane.revision)
    sent = and_(Chunk.state == ChunkState.SENT, Chunk.owner == lane.broker, Chunk.job_id.in_(in_lane))
    lost = and_(sent, Chunk.until < now_s() + lease_s - SETTLE_S)
    with reading(engine) as connection:
        if connection.execute(select(Chunk.id).where(lost).limit(1)).scalar() is None:
            return
    with writing(engine) as connection:
        in_turn(connection, "send")
        take_back(connection, lost)


def recover(engine: Engine) -> int:
    """
    Queue everything again that was sent and not claimed, and what the dead held. Safe at any time: a message that
    was not lost after all finds its chunk taken. Returns the number of chunks.
    """
    with writing(engine) as connection:
        in_turn(connection, "send")
        count = take_back(connection, and_(Chunk.state == ChunkState.SENT, Chunk.owner == ""))
        expired = select(Chunk.id).where(Chunk.state == ChunkState.LEASED, Chunk.until < now_s())
        for chunk_id in connection.execute(expired).scalars().all():
            count += lose(connection, chunk_id)
    return count + free_the_dead(engine)


def lanes(engine: Engine) -> list[Lane]:
    """The lanes of the fleet in which chunks wait."""
    waiting = exists().where(Chunk.job_id == Job.id, Chunk.state == ChunkState.QUEUED)
    query = (
        select(Scorer.model, Scorer.revision)
        .join(Job, Job.scorer_id == Scorer.id)
        .where(Job.state == JobState.ACTIVE, Job.private.is_(False), waiting)
        .distinct()
    )
    with reading(engine) as connection:
        return [Lane(row.model, row.revision) for row in connection.execute(query)]


def free_the_dead(engine: Engine) -> int:
    """Queue again what is held by processes of this host that have ended. Returns the number of chunks."""
    held = Chunk.state.in_((ChunkState.SENT, ChunkState.LEASED))
    with reading(engine) as connection:
        owners = connection.execute(select(Chunk.owner).where(held, Chunk.owner != "").distinct()).scalars().all()
    dead = [owner for owner in owners if owner is not None and is_dead(owner)]
    if not dead:
        return 0
    with writing(engine) as connection:
        in_turn(connection, "send")
        count = take_back(connection, and_(Chunk.state == ChunkState.SENT, Chunk.owner.in_(dead)))
        leased = select(Chunk.id).where(Chunk.state == ChunkState.LEASED, Chunk.owner.in_(dead))
        for chunk_id in connection.execute(leased).scalars().all():
            count += lose(connection, chunk_id)
    return count


def take_back(connection: Connection, which: ColumnElement[bool]) -> int:
    """Sent chunks become queued."""
    return connection.execute(
        update(Chunk).where(which).values(state=ChunkState.QUEUED, token=None, owner=None, until=None)
    ).rowcount
