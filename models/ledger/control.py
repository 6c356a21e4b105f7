"""Pause, resume, cancel and retry jobs, and prune what old ones left."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, Engine, and_, bindparam, case, delete, exists, select, update

from models.db import reading, writing
from models.ledger import rescue
from models.ledger.conditions import NOT_HELD
from models.ledger.jobs import finish_if_done
from models.tables import HAS_FAILED, ChunkRow, ItemRow, JobRow
from qsit.errors import UsageError
from qsit.states import ChunkState, ItemState, JobState, Quarantine, Reason

CHUNKS_AT_ONCE = 100
"""Chunks that one transaction settles or prunes, so that nobody waits long for it."""
FAILURES_AT_ONCE = 5000


def pause(engine: Engine, job_id: int) -> None:
    """
    Send nothing more of a job. Workers release what they hold after their current batch.

    Raises UsageError when the job is finished or cancelled.
    """
    with writing(engine) as connection:
        _change(connection, job_id, "pause", {JobState.ACTIVE, JobState.PAUSED}, JobState.PAUSED)
    with writing(engine) as connection:  # a second one: chunks are locked before jobs everywhere
        rescue.requeue(connection, and_(ChunkRow.job_id == job_id, ChunkRow.state == ChunkState.SENT))


def resume(engine: Engine, job_id: int) -> None:
    """Let a paused job continue. Raises UsageError when the job is finished or cancelled."""
    with writing(engine) as connection:
        _change(connection, job_id, "resume", {JobState.ACTIVE, JobState.PAUSED}, JobState.ACTIVE)
    finish_if_done(engine, job_id)  # its last photo may have been done while it was paused


def cancel(engine: Engine, job_id: int) -> None:
    """
    Do nothing more of a job. Workers record their current batch and release the rest. Scores stay.

    Raises UsageError when the job is finished.
    """
    with writing(engine) as connection:
        _change(
            connection, job_id, "cancel", {JobState.ACTIVE, JobState.PAUSED, JobState.CANCELLED}, JobState.CANCELLED
        )
        connection.execute(
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.finished_at.is_(None))
            .values(finished_at=datetime.now(UTC))
        )
    settle_cancelled(engine)


def _change(connection: Connection, job_id: int, verb: str, starts: set[JobState], end: JobState) -> None:
    state = connection.execute(select(JobRow.state).where(JobRow.id == job_id).with_for_update()).scalar_one()
    if state not in starts:
        raise UsageError(f"job {job_id} is {state}: there is nothing to {verb}")
    connection.execute(update(JobRow).where(JobRow.id == job_id).values(state=end))


def settle_cancelled(engine: Engine) -> None:
    """Cancel what is left of cancelled jobs and not held by a worker. Every worker's timer repeats this."""
    free = ChunkRow.state.in_((ChunkState.QUEUED, ChunkState.SENT))
    with reading(engine) as connection:
        left = exists().where(ChunkRow.job_id == JobRow.id, free)
        job_ids = connection.execute(select(JobRow.id).where(JobRow.state == JobState.CANCELLED, left)).scalars().all()
    for job_id in job_ids:
        next_chunks = (
            select(ChunkRow.id).where(ChunkRow.job_id == job_id, free).order_by(ChunkRow.id).limit(CHUNKS_AT_ONCE)
        )
        while True:
            with writing(engine) as connection:
                chunk_ids = connection.execute(next_chunks.with_for_update()).scalars().all()
                connection.execute(
                    update(ItemRow)
                    .where(ItemRow.chunk_id.in_(chunk_ids), ItemRow.state == ItemState.QUEUED)
                    .values(state=ItemState.CANCELLED, quarantine=Quarantine.NONE)
                )
                connection.execute(
                    update(ChunkRow).where(ChunkRow.id.in_(chunk_ids), free).values(state=ChunkState.DONE, **NOT_HELD)
                )
            if len(chunk_ids) < CHUNKS_AT_ONCE:
                break


def retry(engine: Engine, job_id: int, reasons: Sequence[Reason] = ()) -> int:
    """
    Queue the failed items of a job again, of the given reasons or of all, and reactivate a finished job. Return
    their number.

    Raises UsageError when the job is cancelled.
    """
    number, last = 0, 0
    failed = and_(ItemRow.job_id == job_id, HAS_FAILED)
    if reasons:
        failed = and_(failed, ItemRow.reason.in_(reasons))
    while True:
        with writing(engine) as connection:
            page = select(ItemRow.image_id, ItemRow.chunk_id).where(failed, ItemRow.image_id > last)
            rows = connection.execute(page.order_by(ItemRow.image_id).limit(FAILURES_AT_ONCE)).all()
            number += _queue_again(connection, job_id, {row.chunk_id for row in rows}, [row.image_id for row in rows])
        if len(rows) < FAILURES_AT_ONCE:
            return number
        last = rows[-1].image_id


def _queue_again(connection: Connection, job_id: int, chunk_ids: set[int], image_ids: Sequence[int]) -> int:
    if image_ids:
        connection.execute(
            select(ChunkRow.id).where(ChunkRow.id.in_(chunk_ids)).order_by(ChunkRow.id).with_for_update()
        )
    again = {"state": ItemState.QUEUED, "quarantine": Quarantine.NONE, "crashes": 0, "reason": None, "message": None}
    failed = and_(ItemRow.job_id == job_id, ItemRow.image_id.in_(image_ids), HAS_FAILED)
    queued = connection.execute(update(ItemRow).where(failed).values(again).returning(ItemRow.chunk_id)).scalars().all()
    if queued:
        connection.execute(
            update(ChunkRow)
            .where(ChunkRow.id == bindparam("chunk"))
            .values(
                failed=ChunkRow.failed - bindparam("number"),
                state=case((ChunkRow.state == ChunkState.DONE, ChunkState.QUEUED), else_=ChunkRow.state),
            ),
            [{"chunk": chunk_id, "number": number} for chunk_id, number in sorted(Counter(queued).items())],
        )
    # after the chunks, and also when nothing changes: whoever finishes the job must wait for this and look again
    state = connection.execute(select(JobRow.state).where(JobRow.id == job_id).with_for_update()).scalar_one()
    if state == JobState.CANCELLED:
        raise UsageError(f"job {job_id} is cancelled: submit its photos again")
    if queued and state == JobState.FINISHED:
        connection.execute(update(JobRow).where(JobRow.id == job_id).values(state=JobState.ACTIVE, finished_at=None))
    return len(queued)


def prune(engine: Engine, older_than: timedelta) -> int:
    """
    Remove the items of jobs that ended so long ago. Return their number.

    Failed items stay: they keep later jobs from trying in vain. Scores and the counts of the jobs stay.
    """
    ended = and_(
        JobRow.state.in_((JobState.FINISHED, JobState.CANCELLED)), JobRow.finished_at < datetime.now(UTC) - older_than
    )
    with reading(engine) as connection:
        job_ids = connection.execute(select(JobRow.id).where(ended).order_by(JobRow.id)).scalars().all()
    return sum(_prune_job(engine, job_id) for job_id in job_ids)


def _prune_job(engine: Engine, job_id: int) -> int:
    number, last = 0, 0
    while True:
        with writing(engine) as connection:
            page = select(ChunkRow.id).where(
                ChunkRow.job_id == job_id, ChunkRow.state == ChunkState.DONE, ChunkRow.id > last
            )
            chunk_ids = connection.execute(page.order_by(ChunkRow.id).limit(CHUNKS_AT_ONCE)).scalars().all()
            settled = ItemRow.state.in_((ItemState.SCORED, ItemState.CANCELLED))
            number += connection.execute(delete(ItemRow).where(ItemRow.chunk_id.in_(chunk_ids), settled)).rowcount
        if len(chunk_ids) < CHUNKS_AT_ONCE:
            return number
        last = chunk_ids[-1]
