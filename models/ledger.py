"""The life of a chunk in a worker's hands: claimed, recorded, handed back or lost.

Every change is guarded by the state it starts from. A claim is a token and a deadline by the database's clock; who
has lost the token writes nothing.
"""

import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Float,
    ScalarSelect,
    and_,
    bindparam,
    case,
    exists,
    or_,
    select,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute

from models import scores
from models.claims import Claim, ClaimedItem, Failed, Known, Lane, Scored
from models.db import in_turn, storable, writing
from models.errors import LeaseLost
from models.jobs import finish_if_done
from models.sql import Ids, now_s, one_of
from models.states import ChunkState, ItemState, JobState, Reason, Risk, WorkerState
from models.tables import Chunk, Image, Item, Job, Score, Scorer, Worker

LOSSES_TO_CRASHED = 3


# Statements are made once, for making one takes longer than asking the database; what varies are their parameters.
_THIS_CHUNK = Chunk.id == bindparam("chunk")
_OPEN = Item.state == ItemState.QUEUED
_OF_THIS_CHUNK = and_(Item.chunk_id == bindparam("chunk"), _OPEN)
_AMONG_THESE = and_(Item.job_id == bindparam("job"), one_of(Item.image_id, bindparam("ids", type_=Ids())), _OPEN)
_FROM_NOW = now_s() + bindparam("lease_s", type_=Float(53))

_MINE = and_(_THIS_CHUNK, Chunk.token == bindparam("held_by"), Chunk.state == ChunkState.LEASED)
OVERDUE = Chunk.until < now_s()
_HAS_RESTED = or_(Chunk.until.is_(None), OVERDUE)
_FREE = or_(Chunk.state == ChunkState.SENT, and_(Chunk.state == ChunkState.QUEUED, _HAS_RESTED))
_ONLY_JOB = bindparam("only_job", type_=BigInteger)
_FOR_THIS_LANE = (
    exists()
    .where(Job.id == Chunk.job_id, Job.state == JobState.ACTIVE, Scorer.id == Job.scorer_id)
    .where(Scorer.model == bindparam("model"), Scorer.revision == bindparam("revision"))
    .where(or_(Job.id == _ONLY_JOB, and_(_ONLY_JOB.is_(None), Job.private.is_(False))))
)


def _of_its_job(what: InstrumentedAttribute[Any]) -> ScalarSelect[Any]:
    return select(what).where(Job.id == Chunk.job_id).correlate(Chunk).scalar_subquery()


_ITS_SCORER = _of_its_job(Job.scorer_id)
_ITS_PROCEDURE = select(Scorer.procedure).where(Scorer.id == _ITS_SCORER).scalar_subquery()
_TAKE = (
    update(Chunk)
    .where(_THIS_CHUNK, _FREE, _FOR_THIS_LANE)
    .values(state=ChunkState.LEASED, token=bindparam("new_token"), owner=bindparam("new_owner"), until=_FROM_NOW)
    .returning(Chunk.job_id, _ITS_SCORER, _of_its_job(Job.rescore), _ITS_PROCEDURE)
)
_IS_OVERDUE = select(Chunk.id).where(_THIS_CHUNK, Chunk.state == ChunkState.LEASED, OVERDUE)
_HAS_SCORE = exists().where(Score.image_id == Item.image_id, Score.scorer_id == bindparam("scorer"))
_OPEN_ITEMS = (
    select(Image.id, Image.uri, Image.version, Item.risk == Risk.SUSPECT, _HAS_SCORE)
    .join(Item, Item.image_id == Image.id)
    .where(_OF_THIS_CHUNK)
    .order_by(Image.id)
)


def claim(engine: Engine, chunk_id: int, lane: Lane, owner: str, lease_s: float) -> Claim | None:
    """
    Lease a chunk that was queued or sent, for `lease_s` seconds. None when it is leased or done already, not for
    this lane, or its job is not active. Items that have their score by now are settled without being returned.
    """
    token = secrets.token_hex(16)
    terms = {
        "chunk": chunk_id, "model": lane.model, "revision": lane.revision, "only_job": lane.job_id,
        "new_token": token, "new_owner": owner, "lease_s": lease_s,
    }  # fmt: skip
    with writing(engine) as connection:
        taken = connection.execute(_TAKE, terms).one_or_none()
        if taken is None and connection.execute(_IS_OVERDUE, terms).scalar() is not None:
            lose(connection, chunk_id, OVERDUE)
            taken = connection.execute(_TAKE, terms).one_or_none()
        if taken is None:
            return None
        job_id, scorer_id, rescore, procedure = taken
        rows = connection.execute(_OPEN_ITEMS, {"chunk": chunk_id, "scorer": scorer_id}).all()
        items = [
            ClaimedItem(image_id, uri, version, bool(suspect))
            for image_id, uri, version, suspect, has_score in rows
            if rescore or not has_score
        ]
        if len(items) < len(rows):
            settled = [image_id for image_id, *_, has_score in rows if has_score]
            _settle_scored(connection, job_id, settled)
            _count(connection, chunk_id, len(settled), 0)
    return Claim(chunk_id, job_id, scorer_id, procedure, bool(rescore), token, items)


_START = update(Item).where(_AMONG_THESE).values(risk=bindparam("new_risk"))


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
            connection.execute(_CALM, {"chunk": claim.chunk_id})
        risk = Risk.ALONE if alone else Risk.IN_FLIGHT
        connection.execute(_START, {"job": claim.job_id, "ids": image_ids, "new_risk": risk})


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
        counts = {"more_scored": len(done), "more_failed": len(failed)}
        job_state = connection.execute(_RECORD, {**_lease_of(claim), **counts, "lease_s": lease_s}).scalar()
        if job_state is None:
            raise _lost(claim)
        real_ids = scores.register_learnt(connection, learnt)
        if scored:
            scores.write_scores(connection, claim, scored, real_ids)
        settled = _settle_scored(connection, claim.job_id, [result.image_id for result in done])
        settled_failed = _settle_failed(connection, claim.job_id, failed)
        if (settled, settled_failed) != (len(done), len(failed)):  # some had been recorded before
            _count(connection, claim.chunk_id, settled - len(done), settled_failed - len(failed))
    return JobState(job_state) is JobState.ACTIVE


_EXTEND = update(Chunk).where(_MINE).values(until=_FROM_NOW).returning(_of_its_job(Job.state))


def extend(connection: Connection, claim: Claim, lease_s: float) -> bool:
    """The heartbeat of a lease. False when it is lost, or the job has been paused or cancelled."""
    return connection.execute(_EXTEND, {**_lease_of(claim), "lease_s": lease_s}).scalar() == JobState.ACTIVE


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


_HELD_BY_ME = select(Job.state).join(Chunk, Chunk.job_id == Job.id).where(_MINE).with_for_update(of=Chunk)


def _lease_of(claim: Claim) -> dict[str, object]:
    return {"chunk": claim.chunk_id, "held_by": claim.token}


def _lost(claim: Claim) -> LeaseLost:
    return LeaseLost(f"the lease of chunk {claim.chunk_id} was lost")


def _check_lease(connection: Connection, claim: Claim) -> JobState:
    """The job's state; the chunk is locked, so that nobody takes it before the transaction ends."""
    job_state = connection.execute(_HELD_BY_ME, _lease_of(claim)).scalar()
    if job_state is None:
        raise _lost(claim)
    return JobState(job_state)


_SETTLE_SCORED = update(Item).where(_AMONG_THESE).values(state=ItemState.SCORED, risk=Risk.NONE)
_SETTLE_FAILED = (
    update(Item)
    .where(Item.job_id == bindparam("job"), Item.image_id == bindparam("image"), _OPEN)
    .values(state=ItemState.FAILED, risk=Risk.NONE, reason=bindparam("why"), message=bindparam("words"))
)
_COUNTED = {
    "scored": Chunk.scored + bindparam("more_scored"), "failed": Chunk.failed + bindparam("more_failed"),
}  # fmt: skip
_COUNT = update(Chunk).where(_THIS_CHUNK).values(_COUNTED)
_RECORD = update(Chunk).where(_MINE).values(**_COUNTED, until=_FROM_NOW).returning(_of_its_job(Job.state))


def _settle_scored(connection: Connection, job_id: int, ids: Sequence[int]) -> int:
    return connection.execute(_SETTLE_SCORED, {"job": job_id, "ids": ids}).rowcount if ids else 0


def _settle_failed(connection: Connection, job_id: int, failed: Sequence[Failed]) -> int:
    rows = [
        {
            "job": job_id, "image": result.image_id,
            "why": result.reason, "words": storable(result.message)[:500],
        }
        for result in failed
    ]  # fmt: skip
    return connection.execute(_SETTLE_FAILED, rows).rowcount if rows else 0


def _count(connection: Connection, chunk_id: int, scored: int, failed: int) -> None:
    connection.execute(_COUNT, {"chunk": chunk_id, "more_scored": scored, "more_failed": failed})


def lose(connection: Connection, chunk_id: int, still: ColumnElement[bool]) -> int:
    """
    The worker that held a chunk is dead or out of touch; nothing is done unless that is `still` so, for a live one may
    have the chunk by now. What it had in flight becomes suspect; what it ran alone has one more loss, and fails with
    the third. Returns 1, or 0 when nothing was done.
    """
    query = (
        select(Job.state)
        .join(Chunk, Chunk.job_id == Job.id)
        .where(Chunk.id == chunk_id, Chunk.state == ChunkState.LEASED, still)
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


_CANCEL = update(Item).where(_OF_THIS_CHUNK).values(state=ItemState.CANCELLED, risk=Risk.NONE)
_CALM = (
    update(Item)
    .where(_OF_THIS_CHUNK, Item.risk.in_((Risk.IN_FLIGHT, Risk.ALONE)))
    .values(risk=case((Item.risk == Risk.ALONE, Risk.SUSPECT), else_=Risk.NONE))
)
_RELEASE = (
    update(Chunk)
    .where(_THIS_CHUNK)
    .values(
        state=case((exists().where(_OF_THIS_CHUNK), ChunkState.QUEUED), else_=ChunkState.DONE),
        token=None,
        owner=None,
        until=now_s() + bindparam("delay_s", type_=Float(53)),
    )
    .returning(Chunk.state)
)


def _release(connection: Connection, chunk_id: int, job_state: str, delay_s: float = 0.0) -> str:
    """
    A leased chunk is queued again, or done. Nothing of it is in flight any more, and nothing more is laid to its
    items: what ran alone does so again. The chunk's new state.
    """
    chunk = {"chunk": chunk_id}
    connection.execute(_CANCEL if job_state == JobState.CANCELLED else _CALM, chunk)
    return connection.execute(_RELEASE, {**chunk, "delay_s": delay_s or None}).scalar_one()
