"""The life of a chunk in a worker's hands: claimed, renewed, released or expired.

Every statement names the state it starts from. A claim is a token and a deadline by the database's clock: a worker that
has lost the token writes nothing.
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import InstrumentedAttribute

from models.claims import AlreadyScored, Claim, ClaimedItem, ExistingResults, QueueKey, Result
from models.db import writing
from models.dialects import now_s
from models.ledger import answers, conditions, recording
from models.ledger.expiry import CLEAR_RISK, expire, requeue_or_finish
from models.ledger.jobs import finish_if_done
from models.tables import ChunkRow, ImageRow, ItemRow, JobQuestionRow, JobRow, ScoreRow, ScorerRow
from qsit.errors import LeaseLost
from qsit.states import ChunkState, JobState, Quarantine

_HAS_RESTED = sa.or_(ChunkRow.available_at.is_(None), ChunkRow.available_at < now_s())
_IS_FREE = sa.or_(ChunkRow.state == ChunkState.SENT, sa.and_(ChunkRow.state == ChunkState.QUEUED, _HAS_RESTED))
_IS_OF_QUEUE = (
    sa.exists()
    .where(JobRow.id == ChunkRow.job_id, JobRow.state == JobState.ACTIVE, ScorerRow.id == JobRow.scorer_id)
    .where(conditions.IS_FOR_MODEL, conditions.IS_FOR_BROKER)
)


def _job_column(column: InstrumentedAttribute[Any]) -> sa.ScalarSelect[Any]:
    return sa.select(column).where(JobRow.id == ChunkRow.job_id).correlate(ChunkRow).scalar_subquery()


_SCORER = _job_column(JobRow.scorer_id)
_CLAIM = (
    sa.update(ChunkRow)
    .where(conditions.THIS_CHUNK, _IS_FREE, _IS_OF_QUEUE)
    .values(
        state=ChunkState.LEASED,
        token=sa.bindparam("new_token"),
        leased_by=sa.bindparam("worker"),
        lease_expires_at=conditions.NEW_EXPIRY,
        sent_via=None,
        available_at=None,
    )
    .returning(
        ChunkRow.job_id,
        _SCORER.label("scorer_id"),
        _job_column(JobRow.rescore).label("rescore"),
        sa.select(ScorerRow.procedure).where(ScorerRow.id == _SCORER).scalar_subquery().label("procedure"),
        _job_column(JobRow.ask_below).label("ask_below"),
        sa.exists().where(JobQuestionRow.job_id == ChunkRow.job_id).correlate(ChunkRow).label("asks"),
    )
)
_IS_EXPIRED = sa.select(ChunkRow.id).where(
    conditions.THIS_CHUNK, ChunkRow.state == ChunkState.LEASED, conditions.LEASE_HAS_EXPIRED
)
_SCORE = (
    sa.select(ScoreRow.score)
    .where(ScoreRow.image_id == ItemRow.image_id, ScoreRow.scorer_id == sa.bindparam("scorer"))
    .correlate(ItemRow)
    .scalar_subquery()
)
_OPEN_ITEMS = (
    sa.select(ImageRow.id, ImageRow.uri, ImageRow.version, ItemRow.quarantine == Quarantine.SUSPECT, _SCORE)
    .join(ItemRow, ItemRow.image_id == ImageRow.id)
    .where(conditions.OPEN_ITEM_OF_CHUNK)
    .order_by(ImageRow.id)
)


def claim(engine: sa.Engine, chunk_id: int, queue: QueueKey, worker: str, lease_s: float) -> Claim | None:
    """
    Lease a queued or sent chunk to a worker for `lease_s` seconds, and return its items that still need work.

    Return None when it is leased or done, belongs to another queue, or its job is not active. Items that need nothing
    any more are settled and not returned.
    """
    token = secrets.token_hex(16)
    lease = {"chunk": chunk_id, "new_token": token, "worker": worker, "lease_s": lease_s}
    parameters = conditions.queue_parameters(queue) | lease
    with writing(engine) as connection:
        taken = connection.execute(_CLAIM, parameters).one_or_none()
        if taken is None and connection.execute(_IS_EXPIRED, parameters).scalar() is not None:
            expire(connection, chunk_id, conditions.LEASE_HAS_EXPIRED)
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
        job = {name: value for name, value in taken._mapping.items() if name != "asks"}
        every = Claim(chunk_id, token=token, items=items, questions=questions, **job)
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


_MARK = sa.update(ItemRow).where(conditions.ITEM_ID_IN).values(quarantine=sa.bindparam("new_quarantine"))


def mark_in_flight(engine: sa.Engine, claim: Claim, image_ids: Sequence[int], *, alone: bool = False) -> None:
    """
    Note that items are in flight: if the worker dies, one of them may be the cause.

    An item that runs alone is the only one in flight. Earlier ones have ended, if without a result, by the worker's
    own fault.

    Raises LeaseLost when another worker has the chunk.
    """
    with writing(engine) as connection:
        _lock_chunk(connection, claim)
        if alone:
            connection.execute(CLEAR_RISK, {"chunk": claim.chunk_id})
        quarantine = Quarantine.ALONE if alone else Quarantine.IN_FLIGHT
        connection.execute(_MARK, {"job": claim.job_id, "ids": image_ids, "new_quarantine": quarantine})


def record(engine: sa.Engine, claim: Claim, batch: Sequence[Result], lease_s: float) -> bool:
    """
    Write a batch's results and renew the lease, in one transaction.

    A version that the worker learned becomes the current one of its URI and gets the score and answers. The item stays
    with the image of unknown version. Return False when the job was paused or cancelled: release the rest.

    Raises LeaseLost when another worker has the chunk; nothing is written.
    """
    with writing(engine) as connection:
        job_state = recording.record_batch(connection, claim, batch, lease_s)
        if job_state is None:
            raise _lease_lost(claim)
    return job_state is JobState.ACTIVE


_RENEW = (
    sa.update(ChunkRow)
    .where(conditions.LEASE_IS_MINE)
    .values(lease_expires_at=conditions.NEW_EXPIRY)
    .returning(_job_column(JobRow.state))
)


def renew(connection: sa.Connection, claim: Claim, lease_s: float) -> bool:
    """Extend a lease. Return False when it is lost, or the job was paused or cancelled."""
    return connection.execute(_RENEW, {**conditions.lease_of(claim), "lease_s": lease_s}).scalar() == JobState.ACTIVE


def release(engine: sa.Engine, claim: Claim, *, delay_s: float = 0.0) -> None:
    """
    End a lease in good order: the chunk is done, or the rest of it is queued and sent again after `delay_s` seconds.

    Finish the job with its last chunk. Do nothing when the lease is lost.
    """
    with writing(engine) as connection:
        try:
            job_state = _lock_chunk(connection, claim)
        except LeaseLost:
            return
        state = requeue_or_finish(connection, claim.chunk_id, job_state, delay_s)
    if state == ChunkState.DONE:
        finish_if_done(engine, claim.job_id)


def _lease_lost(claim: Claim) -> LeaseLost:
    return LeaseLost(f"the lease of chunk {claim.chunk_id} was lost")


def _lock_chunk(connection: sa.Connection, claim: Claim) -> JobState:
    """Lock a chunk until the transaction ends, and return its job's state. Raises LeaseLost."""
    job_state = connection.execute(conditions.LOCK_MY_CHUNK, conditions.lease_of(claim)).scalar()
    if job_state is None:
        raise _lease_lost(claim)
    return JobState(job_state)
