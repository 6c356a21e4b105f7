"""The life of a chunk in a worker's hands: claimed, renewed, released or expired.

Every statement names the state it starts from. A claim is a token and a deadline by the database's clock: a worker that
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
    LEASE_HAS_EXPIRED,
    LEASE_IS_MINE,
    LOCK_MY_CHUNK,
    NEW_EXPIRY,
    NOT_HELD,
    OPEN_ITEM_OF_CHUNK,
    THIS_CHUNK,
    lease_of,
)
from models.ledger.jobs import finish_if_done
from models.tables import ChunkRow, ImageRow, ItemRow, JobQuestionRow, JobRow, ScoreRow, ScorerRow, WorkerRow
from qsit.errors import LeaseLost
from qsit.states import ChunkState, ItemState, JobState, Quarantine, Reason, WorkerState

MAX_CRASHES = 3
"""An item that ends so many workers while it runs alone fails as `crashed`."""

_HAS_RESTED = or_(ChunkRow.available_at.is_(None), ChunkRow.available_at < now_s())
_IS_FREE = or_(ChunkRow.state == ChunkState.SENT, and_(ChunkRow.state == ChunkState.QUEUED, _HAS_RESTED))
_ONLY_JOB = bindparam("only_job", type_=BigInteger)
_IS_OF_QUEUE = (
    exists()
    .where(JobRow.id == ChunkRow.job_id, JobRow.state == JobState.ACTIVE, ScorerRow.id == JobRow.scorer_id)
    .where(ScorerRow.model == bindparam("model"), ScorerRow.revision == bindparam("revision"))
    .where(or_(JobRow.id == _ONLY_JOB, and_(_ONLY_JOB.is_(None), JobRow.private.is_(False))))
)


def _job_column(column: InstrumentedAttribute[Any]) -> ScalarSelect[Any]:
    return select(column).where(JobRow.id == ChunkRow.job_id).correlate(ChunkRow).scalar_subquery()


_SCORER = _job_column(JobRow.scorer_id)
_CLAIM = (
    update(ChunkRow)
    .where(THIS_CHUNK, _IS_FREE, _IS_OF_QUEUE)
    .values(
        state=ChunkState.LEASED,
        token=bindparam("new_token"),
        leased_by=bindparam("worker"),
        lease_expires_at=NEW_EXPIRY,
        sent_via=None,
        available_at=None,
    )
    .returning(
        ChunkRow.job_id,
        _SCORER.label("scorer_id"),
        _job_column(JobRow.rescore).label("rescore"),
        select(ScorerRow.procedure).where(ScorerRow.id == _SCORER).scalar_subquery().label("procedure"),
        _job_column(JobRow.ask_below).label("ask_below"),
        exists().where(JobQuestionRow.job_id == ChunkRow.job_id).correlate(ChunkRow).label("asks"),
    )
)
_IS_EXPIRED = select(ChunkRow.id).where(THIS_CHUNK, ChunkRow.state == ChunkState.LEASED, LEASE_HAS_EXPIRED)
_SCORE = (
    select(ScoreRow.score)
    .where(ScoreRow.image_id == ItemRow.image_id, ScoreRow.scorer_id == bindparam("scorer"))
    .correlate(ItemRow)
    .scalar_subquery()
)
_OPEN_ITEMS = (
    select(ImageRow.id, ImageRow.uri, ImageRow.version, ItemRow.quarantine == Quarantine.SUSPECT, _SCORE)
    .join(ItemRow, ItemRow.image_id == ImageRow.id)
    .where(OPEN_ITEM_OF_CHUNK)
    .order_by(ImageRow.id)
)


def claim(engine: Engine, chunk_id: int, queue: QueueKey, worker: str, lease_s: float) -> Claim | None:
    """
    Lease a queued or sent chunk to a worker for `lease_s` seconds, and return its items that still need work.

    Return None when it is leased or done, belongs to another queue, or its job is not active. Items that need nothing
    any more are settled and not returned.
    """
    token = secrets.token_hex(16)
    parameters = {
        "chunk": chunk_id,
        "model": queue.model,
        "revision": queue.revision,
        "only_job": queue.job_id,
        "new_token": token,
        "worker": worker,
        "lease_s": lease_s,
    }
    with writing(engine) as connection:
        taken = connection.execute(_CLAIM, parameters).one_or_none()
        if taken is None and connection.execute(_IS_EXPIRED, parameters).scalar() is not None:
            expire(connection, chunk_id, LEASE_HAS_EXPIRED)
            taken = connection.execute(_CLAIM, parameters).one_or_none()
        if taken is None:
            return None
        questions = answers.questions_of(connection, taken.job_id) if taken.asks else {}
        rows = connection.execute(_OPEN_ITEMS, {"chunk": chunk_id, "scorer": taken.scorer_id}).all()
        answered = answers.answered(connection, [row[0] for row in rows], taken.scorer_id, questions)
        items = [
            ClaimedItem(image_id, uri, version, bool(suspect), _existing(score, answered.get(image_id)))
            for image_id, uri, version, suspect, score in rows
        ]
        every = Claim(
            chunk_id,
            taken.job_id,
            taken.scorer_id,
            taken.procedure,
            bool(taken.rescore),
            token,
            items,
            questions,
            taken.ask_below,
        )
        settled = [AlreadyScored(item.image_id) for item in items if every.is_settled(item.found)]
        if not settled:
            return every
        left = replace(every, items=[item for item in items if not every.is_settled(item.found)])
        recording.record_batch(connection, left, settled, lease_s)
    return left


_NOTHING = ExistingResults()


def _existing(score: float | None, answered: frozenset[int] | None) -> ExistingResults:
    if score is None and answered is None:
        return _NOTHING  # shared: most items have nothing
    return ExistingResults(score, answered or frozenset())


_MARK = update(ItemRow).where(ITEM_ID_IN).values(quarantine=bindparam("new_quarantine"))


def mark_in_flight(engine: Engine, claim: Claim, image_ids: Sequence[int], *, alone: bool = False) -> None:
    """
    Note that items are in flight: if the worker dies, one of them may be the cause.

    An item that runs alone is the only one in flight. Earlier ones have ended, if without a result, by the worker's
    own fault.

    Raises:
        LeaseLost: when another worker has the chunk.
    """
    with writing(engine) as connection:
        _lock_chunk(connection, claim)
        if alone:
            connection.execute(_CLEAR_RISK, {"chunk": claim.chunk_id})
        quarantine = Quarantine.ALONE if alone else Quarantine.IN_FLIGHT
        connection.execute(_MARK, {"job": claim.job_id, "ids": image_ids, "new_quarantine": quarantine})


def record(engine: Engine, claim: Claim, batch: Sequence[Result], lease_s: float) -> bool:
    """
    Write a batch's results and renew the lease, in one transaction.

    A version that the worker learned becomes the current one of its URI and gets the score and answers. The item stays
    with the image of unknown version. Return False when the job was paused or cancelled: release the rest.

    Raises:
        LeaseLost: when another worker has the chunk; nothing is written.
    """
    with writing(engine) as connection:
        job_state = recording.record_batch(connection, claim, batch, lease_s)
        if job_state is None:
            raise _lease_lost(claim)
    return job_state is JobState.ACTIVE


_RENEW = update(ChunkRow).where(LEASE_IS_MINE).values(lease_expires_at=NEW_EXPIRY).returning(_job_column(JobRow.state))


def renew(connection: Connection, claim: Claim, lease_s: float) -> bool:
    """Extend a lease. Return False when it is lost, or the job was paused or cancelled."""
    return connection.execute(_RENEW, {**lease_of(claim), "lease_s": lease_s}).scalar() == JobState.ACTIVE


def release(engine: Engine, claim: Claim, *, delay_s: float = 0.0) -> None:
    """
    End a lease in good order: the chunk is done, or the rest of it is queued and sent again after `delay_s` seconds.

    Finish the job with its last chunk. Do nothing when the lease is lost.
    """
    with writing(engine) as connection:
        try:
            job_state = _lock_chunk(connection, claim)
        except LeaseLost:
            return
        state = _requeue_or_finish(connection, claim.chunk_id, job_state, delay_s)
    if state == ChunkState.DONE:
        finish_if_done(engine, claim.job_id)


def _lease_lost(claim: Claim) -> LeaseLost:
    return LeaseLost(f"the lease of chunk {claim.chunk_id} was lost")


def _lock_chunk(connection: Connection, claim: Claim) -> JobState:
    """Lock a chunk until the transaction ends, and return its job's state. Raises LeaseLost."""
    job_state = connection.execute(LOCK_MY_CHUNK, lease_of(claim)).scalar()
    if job_state is None:
        raise _lease_lost(claim)
    return JobState(job_state)


def expire(connection: Connection, chunk_id: int, condition: ColumnElement[bool]) -> int:
    """
    End the lease of a worker that is dead or silent. Return 1, or 0 when nothing was done.

    Re-checks `condition` under lock, since another worker may hold the chunk by now. What was in flight becomes
    suspect. What ran alone has one more crash, and fails with the third.
    """
    query = (
        select(JobRow.state)
        .join(ChunkRow, ChunkRow.job_id == JobRow.id)
        .where(ChunkRow.id == chunk_id, ChunkRow.state == ChunkState.LEASED, condition)
    )
    job_state = connection.execute(query.with_for_update(of=ChunkRow, skip_locked=True)).scalar()
    if job_state is None:
        return 0
    if not _was_stopping(connection, chunk_id):
        _count_crash(connection, chunk_id)
    _requeue_or_finish(connection, chunk_id, job_state)
    return 1


def _was_stopping(connection: Connection, chunk_id: int) -> bool:
    """Return whether the chunk's worker had been told to stop: then its end is no photo's fault."""
    stopped = select(WorkerRow.owner).where(WorkerRow.state == WorkerState.STOPPED)
    query = select(ChunkRow.id).where(ChunkRow.id == chunk_id, ChunkRow.leased_by.in_(stopped))
    return connection.execute(query).scalar() is not None


def _count_crash(connection: Connection, chunk_id: int) -> None:
    open_items = and_(ItemRow.chunk_id == chunk_id, ItemRow.state == ItemState.QUEUED)
    ran_alone = ItemRow.quarantine == Quarantine.ALONE
    failed = connection.execute(
        update(ItemRow)
        .where(open_items, ran_alone, ItemRow.crashes + 1 >= MAX_CRASHES)
        .values(
            state=ItemState.FAILED,
            quarantine=Quarantine.NONE,
            crashes=ItemRow.crashes + 1,
            reason=Reason.CRASHED,
            message=f"it ended its worker {MAX_CRASHES} times while running alone",
        )
    ).rowcount
    connection.execute(
        update(ItemRow)
        .where(open_items, ItemRow.quarantine.in_((Quarantine.ALONE, Quarantine.IN_FLIGHT)))
        .values(quarantine=Quarantine.SUSPECT, crashes=case((ran_alone, ItemRow.crashes + 1), else_=ItemRow.crashes))
    )
    connection.execute(update(ChunkRow).where(ChunkRow.id == chunk_id).values(failed=ChunkRow.failed + failed))


_CANCEL = update(ItemRow).where(OPEN_ITEM_OF_CHUNK).values(state=ItemState.CANCELLED, quarantine=Quarantine.NONE)
_CLEAR_RISK = (
    update(ItemRow)
    .where(OPEN_ITEM_OF_CHUNK, ItemRow.quarantine.in_((Quarantine.IN_FLIGHT, Quarantine.ALONE)))
    .values(quarantine=case((ItemRow.quarantine == Quarantine.ALONE, Quarantine.SUSPECT), else_=Quarantine.NONE))
)
_REQUEUE_OR_FINISH = (
    update(ChunkRow)
    .where(THIS_CHUNK)
    .values(
        **NOT_HELD
        | {
            "state": case((exists().where(OPEN_ITEM_OF_CHUNK), ChunkState.QUEUED), else_=ChunkState.DONE),
            "available_at": case(
                (exists().where(OPEN_ITEM_OF_CHUNK), now_s() + bindparam("delay_s", type_=Float(53))), else_=None
            ),
        }
    )
    .returning(ChunkRow.state)
)


def _requeue_or_finish(connection: Connection, chunk_id: int, job_state: str, delay_s: float = 0.0) -> str:
    """
    Queue a leased chunk again, or finish it, and return its new state.

    Nothing of it is in flight any more. What ran alone runs alone again.
    """
    chunk = {"chunk": chunk_id}
    connection.execute(_CANCEL if job_state == JobState.CANCELLED else _CLEAR_RISK, chunk)
    return connection.execute(_REQUEUE_OR_FINISH, {**chunk, "delay_s": delay_s or None}).scalar_one()
