"""The life of a chunk in a worker's hands: claimed, recorded, handed back or lost.

Every change is guarded by the state it starts from. A claim is a token and a deadline by the database's clock; who
has lost the token writes nothing.
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace
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

from models.claims import AlreadyScored, Claim, ClaimedItem, ExistingResults, QueueKey, Result
from models.db import writing
from models.dialects import now_s
from models.ledger import answers, recording
from models.ledger.conditions import (
    ITEM_ID_IN,
    LEASE_IS_MINE,
    LOCK_MY_CHUNK,
    NEW_EXPIRY,
    OF_THIS_CHUNK,
    OVERDUE,
    THIS_CHUNK,
    lease_of,
)
from models.ledger.jobs import finish_if_done
from models.tables import ChunkRow, ImageRow, ItemRow, JobQuestionRow, JobRow, ScoreRow, ScorerRow, WorkerRow
from qsit.errors import LeaseLost
from qsit.states import ChunkState, ItemState, JobState, Quarantine, Reason, WorkerState

LOSSES_TO_CRASHED = 3


_HAS_RESTED = or_(ChunkRow.until.is_(None), OVERDUE)
_FREE = or_(ChunkRow.state == ChunkState.SENT, and_(ChunkRow.state == ChunkState.QUEUED, _HAS_RESTED))
_ONLY_JOB = bindparam("only_job", type_=BigInteger)
_FOR_THIS_LANE = (
    exists()
    .where(JobRow.id == ChunkRow.job_id, JobRow.state == JobState.ACTIVE, ScorerRow.id == JobRow.scorer_id)
    .where(ScorerRow.model == bindparam("model"), ScorerRow.revision == bindparam("revision"))
    .where(or_(JobRow.id == _ONLY_JOB, and_(_ONLY_JOB.is_(None), JobRow.private.is_(False))))
)


def _of_its_job(what: InstrumentedAttribute[Any]) -> ScalarSelect[Any]:
    return select(what).where(JobRow.id == ChunkRow.job_id).correlate(ChunkRow).scalar_subquery()


_ITS_SCORER = _of_its_job(JobRow.scorer_id)
_ITS_PROCEDURE = select(ScorerRow.procedure).where(ScorerRow.id == _ITS_SCORER).scalar_subquery()
_ASKS = exists().where(JobQuestionRow.job_id == ChunkRow.job_id).correlate(ChunkRow)
_TAKE = (
    update(ChunkRow)
    .where(THIS_CHUNK, _FREE, _FOR_THIS_LANE)
    .values(state=ChunkState.LEASED, token=bindparam("new_token"), owner=bindparam("new_owner"), until=NEW_EXPIRY)
    .returning(
        ChunkRow.job_id, _ITS_SCORER, _of_its_job(JobRow.rescore), _ITS_PROCEDURE, _of_its_job(JobRow.ask_below), _ASKS
    )
)
_IS_OVERDUE = select(ChunkRow.id).where(THIS_CHUNK, ChunkRow.state == ChunkState.LEASED, OVERDUE)
_ITS_SCORE = (
    select(ScoreRow.score)
    .where(ScoreRow.image_id == ItemRow.image_id, ScoreRow.scorer_id == bindparam("scorer"))
    .correlate(ItemRow)
    .scalar_subquery()
)
_OPEN_ITEMS = (
    select(ImageRow.id, ImageRow.uri, ImageRow.version, ItemRow.risk == Quarantine.SUSPECT, _ITS_SCORE)
    .join(ItemRow, ItemRow.image_id == ImageRow.id)
    .where(OF_THIS_CHUNK)
    .order_by(ImageRow.id)
)


def claim(engine: Engine, chunk_id: int, lane: QueueKey, owner: str, lease_s: float) -> Claim | None:
    """
    Lease a chunk that was queued or sent, for `lease_s` seconds. None when it is leased or done already, not for
    this lane, or its job is not active. Items that need nothing by now are settled without being returned.
    """
    token = secrets.token_hex(16)
    terms = {
        "chunk": chunk_id, "model": lane.model, "revision": lane.revision, "only_job": lane.job_id,
        "new_token": token, "new_owner": owner, "lease_s": lease_s,
    }  # fmt: skip
    with writing(engine) as connection:
        taken = connection.execute(_TAKE, terms).one_or_none()
        if taken is None and connection.execute(_IS_OVERDUE, terms).scalar() is not None:
            expire(connection, chunk_id, OVERDUE)
            taken = connection.execute(_TAKE, terms).one_or_none()
        if taken is None:
            return None
        job_id, scorer_id, rescore, procedure, ask_below, asks = taken
        questions = answers.questions_of(connection, job_id) if asks else {}
        rows = connection.execute(_OPEN_ITEMS, {"chunk": chunk_id, "scorer": scorer_id}).all()
        answered = answers.answered(connection, [row[0] for row in rows], scorer_id, questions)
        items = [
            ClaimedItem(image_id, uri, version, bool(suspect), _found(score, answered.get(image_id)))
            for image_id, uri, version, suspect, score in rows
        ]
        every = Claim(chunk_id, job_id, scorer_id, procedure, bool(rescore), token, items, questions, ask_below)
        settled = [AlreadyScored(item.image_id) for item in items if every.is_settled(item.found)]
        if not settled:
            return every
        claimed = replace(every, items=[item for item in items if not every.is_settled(item.found)])
        recording.record_batch(connection, claimed, settled, lease_s)
    return claimed


_NOTHING = ExistingResults()


def _found(score: float | None, answered: frozenset[int] | None) -> ExistingResults:
    if score is None and answered is None:
        return _NOTHING  # most have nothing, and making another takes its time
    return ExistingResults(score, answered or frozenset())


_START = update(ItemRow).where(ITEM_ID_IN).values(risk=bindparam("new_risk"))


def mark_in_flight(engine: Engine, claim: Claim, image_ids: Sequence[int], *, alone: bool = False) -> None:
    """
    Note that items are in flight, so that a worker's death can be laid to them. What runs alone is in flight alone:
    what was before it has come to an end, if without a result, by the worker's own fault.

    Raises:
        LeaseLost: when the chunk is another's by now.
    """
    with writing(engine) as connection:
        _check_lease(connection, claim)
        if alone:
            connection.execute(_CLEAR_RISK, {"chunk": claim.chunk_id})
        risk = Quarantine.ALONE if alone else Quarantine.IN_FLIGHT
        connection.execute(_START, {"job": claim.job_id, "ids": image_ids, "new_risk": risk})


def record(engine: Engine, claim: Claim, batch: Sequence[Result], lease_s: float) -> bool:
    """
    Write a batch's results, and extend the lease, in one transaction. A version that was learnt becomes the current
    one of its URI, and has score and answers; the item stays with the image whose version is unknown. False when the
    job has been paused or cancelled, and the rest is to be handed back.

    Raises:
        LeaseLost: when the chunk is another's by now; nothing is written.
    """
    with writing(engine) as connection:
        job_state = recording.record_batch(connection, claim, batch, lease_s)
        if job_state is None:
            raise _lost(claim)
    return job_state is JobState.ACTIVE


_EXTEND = update(ChunkRow).where(LEASE_IS_MINE).values(until=NEW_EXPIRY).returning(_of_its_job(JobRow.state))


def renew(connection: Connection, claim: Claim, lease_s: float) -> bool:
    """The heartbeat of a lease. False when it is lost, or the job has been paused or cancelled."""
    return connection.execute(_EXTEND, {**lease_of(claim), "lease_s": lease_s}).scalar() == JobState.ACTIVE


def release(engine: Engine, claim: Claim, *, delay_s: float = 0.0) -> None:
    """
    End a lease in good order: the chunk is done, or what is left of it is queued again, to be sent after `delay_s`.
    Finishes the job with its last chunk. Does nothing when the lease is lost.
    """
    with writing(engine) as connection:
        try:
            job_state = _check_lease(connection, claim)
        except LeaseLost:
            return
        left = _requeue_or_finish(connection, claim.chunk_id, job_state, delay_s)
    if left == ChunkState.DONE:
        finish_if_done(engine, claim.job_id)


def _lost(claim: Claim) -> LeaseLost:
    return LeaseLost(f"the lease of chunk {claim.chunk_id} was lost")


def _check_lease(connection: Connection, claim: Claim) -> JobState:
    """The job's state; the chunk is locked, so that nobody takes it before the transaction ends."""
    job_state = connection.execute(LOCK_MY_CHUNK, lease_of(claim)).scalar()
    if job_state is None:
        raise _lost(claim)
    return JobState(job_state)


def expire(connection: Connection, chunk_id: int, still: ColumnElement[bool]) -> int:
    """
    The worker that held a chunk is dead or out of touch; nothing is done unless that is `still` so, for a live one may
    have the chunk by now. What it had in flight becomes suspect; what it ran alone has one more loss, and fails with
    the third. Returns 1, or 0 when nothing was done.
    """
    query = (
        select(JobRow.state)
        .join(ChunkRow, ChunkRow.job_id == JobRow.id)
        .where(ChunkRow.id == chunk_id, ChunkRow.state == ChunkState.LEASED, still)
    )
    job_state = connection.execute(query.with_for_update(of=ChunkRow, skip_locked=True)).scalar()
    if job_state is None:
        return 0
    open_items = and_(ItemRow.chunk_id == chunk_id, ItemRow.state == ItemState.QUEUED)
    if _was_told_to_end(connection, chunk_id):
        _requeue_or_finish(connection, chunk_id, job_state)
        return 1
    crashed = and_(open_items, ItemRow.risk == Quarantine.ALONE, ItemRow.losses + 1 >= LOSSES_TO_CRASHED)
    count = connection.execute(
        update(ItemRow)
        .where(crashed)
        .values(
            state=ItemState.FAILED,
            risk=Quarantine.NONE,
            losses=ItemRow.losses + 1,
            reason=Reason.CRASHED,
            message=f"it ended its worker {LOSSES_TO_CRASHED} times while running alone",
        )
    ).rowcount
    connection.execute(
        update(ItemRow)
        .where(open_items, ItemRow.risk.in_((Quarantine.ALONE, Quarantine.IN_FLIGHT)))
        .values(
            risk=Quarantine.SUSPECT,
            losses=case((ItemRow.risk == Quarantine.ALONE, ItemRow.losses + 1), else_=ItemRow.losses),
        )
    )
    connection.execute(update(ChunkRow).where(ChunkRow.id == chunk_id).values(failed=ChunkRow.failed + count))
    _requeue_or_finish(connection, chunk_id, job_state)
    return 1


def _was_told_to_end(connection: Connection, chunk_id: int) -> bool:
    """Whether the chunk's worker was killed while it was stopping anyway, which is no photo's doing."""
    stopped = select(WorkerRow.owner).where(WorkerRow.state == WorkerState.STOPPED)
    query = select(ChunkRow.id).where(ChunkRow.id == chunk_id, ChunkRow.owner.in_(stopped))
    return connection.execute(query).scalar() is not None


_CANCEL = update(ItemRow).where(OF_THIS_CHUNK).values(state=ItemState.CANCELLED, risk=Quarantine.NONE)
_CLEAR_RISK = (
    update(ItemRow)
    .where(OF_THIS_CHUNK, ItemRow.risk.in_((Quarantine.IN_FLIGHT, Quarantine.ALONE)))
    .values(risk=case((ItemRow.risk == Quarantine.ALONE, Quarantine.SUSPECT), else_=Quarantine.NONE))
)
_REQUEUE_OR_FINISH = (
    update(ChunkRow)
    .where(THIS_CHUNK)
    .values(
        state=case((exists().where(OF_THIS_CHUNK), ChunkState.QUEUED), else_=ChunkState.DONE),
        token=None,
        owner=None,
        until=now_s() + bindparam("delay_s", type_=Float(53)),
    )
    .returning(ChunkRow.state)
)


def _requeue_or_finish(connection: Connection, chunk_id: int, job_state: str, delay_s: float = 0.0) -> str:
    """
    A leased chunk is queued again, or done. Nothing of it is in flight any more, and nothing more is laid to its
    items: what ran alone does so again. The chunk's new state.
    """
    chunk = {"chunk": chunk_id}
    connection.execute(_CANCEL if job_state == JobState.CANCELLED else _CLEAR_RISK, chunk)
    return connection.execute(_REQUEUE_OR_FINISH, {**chunk, "delay_s": delay_s or None}).scalar_one()
