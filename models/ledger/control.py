"""What people do to a job that is there: pause, resume, cancel and retry it, and prune what old ones left."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, Engine, and_, bindparam, case, delete, exists, select, update

from models.db import reading, writing
from models.ledger import rescue
from models.ledger.jobs import finish_if_done
from models.tables import HAS_FAILED, Chunk, Item, Job
from qsit.errors import UsageError
from qsit.states import ChunkState, ItemState, JobState, Reason, Risk

CHUNKS_AT_ONCE = 100
"""How many chunks one transaction settles or prunes, so that nobody waits long for it."""
FAILURES_AT_ONCE = 5000


def pause(engine: Engine, job_id: int) -> None:
    """
    Send nothing more of a job; workers hand back what they hold after the batch in hand.

    Raises:
        UsageError: when the job is finished or cancelled.
    """
    with writing(engine) as connection:
        _change(connection, job_id, "pause", {JobState.ACTIVE, JobState.PAUSED}, JobState.PAUSED)
    with writing(engine) as connection:  # of its own: jobs are locked after chunks, or two could wait for each other
        rescue.requeue(connection, and_(Chunk.job_id == job_id, Chunk.state == ChunkState.SENT))


def resume(engine: Engine, job_id: int) -> None:
    """
    Let a paused job go on.

    Raises:
        UsageError: when the job is finished or cancelled.
    """
    with writing(engine) as connection:
        _change(connection, job_id, "resume", {JobState.ACTIVE, JobState.PAUSED}, JobState.ACTIVE)
    finish_if_done(engine, job_id)  # whose last photo was done while it was paused


def cancel(engine: Engine, job_id: int) -> None:
    """
    Do nothing more of a job. Workers record the batch in hand and let go of the rest; what has its score keeps it.

    Raises:
        UsageError: when the job is finished.
    """
    with writing(engine) as connection:
        _change(
            connection, job_id, "cancel", {JobState.ACTIVE, JobState.PAUSED, JobState.CANCELLED}, JobState.CANCELLED
        )
        connection.execute(
            update(Job).where(Job.id == job_id, Job.finished_at.is_(None)).values(finished_at=datetime.now(UTC))
        )
    settle_cancelled(engine)


def _change(connection: Connection, job_id: int, verb: str, starts: set[JobState], end: JobState) -> None:
    state = connection.execute(select(Job.state).where(Job.id == job_id).with_for_update()).scalar_one()
    if state not in starts:
        raise UsageError(f"job {job_id} is {state}: there is nothing to {verb}")
    connection.execute(update(Job).where(Job.id == job_id).values(state=end))


def settle_cancelled(engine: Engine) -> None:
    """Cancel what is left of cancelled jobs and in no worker's hands; repeated by the timer of every worker."""
    free = Chunk.state.in_((ChunkState.QUEUED, ChunkState.SENT))
    with reading(engine) as connection:
        left = exists().where(Chunk.job_id == Job.id, free)
        job_ids = connection.execute(select(Job.id).where(Job.state == JobState.CANCELLED, left)).scalars().all()
    for job_id in job_ids:
        next_chunks = select(Chunk.id).where(Chunk.job_id == job_id, free).order_by(Chunk.id).limit(CHUNKS_AT_ONCE)
        while True:
            with writing(engine) as connection:
                chunk_ids = connection.execute(next_chunks.with_for_update()).scalars().all()
                connection.execute(
                    update(Item)
                    .where(Item.chunk_id.in_(chunk_ids), Item.state == ItemState.QUEUED)
                    .values(state=ItemState.CANCELLED, risk=Risk.NONE)
                )
                connection.execute(
                    update(Chunk)
                    .where(Chunk.id.in_(chunk_ids), free)
                    .values(state=ChunkState.DONE, token=None, owner=None, until=None)
                )
            if len(chunk_ids) < CHUNKS_AT_ONCE:
                break


def retry(engine: Engine, job_id: int, reasons: Sequence[Reason] = ()) -> int:
    """
    Queue the failed items of a job again, of the given reasons or of all, and let a finished job go on. Returns
    their number.

    Raises:
        UsageError: when the job is cancelled.
    """
    number, last = 0, 0
    failed = and_(Item.job_id == job_id, HAS_FAILED)
    if reasons:
        failed = and_(failed, Item.reason.in_(reasons))
    while True:
        with writing(engine) as connection:
            page = select(Item.image_id, Item.chunk_id).where(failed, Item.image_id > last)
            rows = connection.execute(page.order_by(Item.image_id).limit(FAILURES_AT_ONCE)).all()
            number += _queue_again(connection, job_id, {row.chunk_id for row in rows}, [row.image_id for row in rows])
        if len(rows) < FAILURES_AT_ONCE:
            return number
        last = rows[-1].image_id


def _queue_again(connection: Connection, job_id: int, chunk_ids: set[int], image_ids: Sequence[int]) -> int:
    if image_ids:
        connection.execute(select(Chunk.id).where(Chunk.id.in_(chunk_ids)).order_by(Chunk.id).with_for_update())
    queued = connection.execute(
        update(Item)
        .where(Item.job_id == job_id, Item.image_id.in_(image_ids), HAS_FAILED)
        .values(state=ItemState.QUEUED, risk=Risk.NONE, losses=0, reason=None, message=None)
        .returning(Item.chunk_id)
    ).scalars().all()  # fmt: skip
    if queued:
        connection.execute(
            update(Chunk)
            .where(Chunk.id == bindparam("chunk"))
            .values(
                failed=Chunk.failed - bindparam("number"),
                state=case((Chunk.state == ChunkState.DONE, ChunkState.QUEUED), else_=Chunk.state),
            ),
            [{"chunk": chunk_id, "number": number} for chunk_id, number in sorted(Counter(queued).items())],
        )
    # after the chunks, and also where it changes nothing: who finishes the job must wait, and look again
    state = connection.execute(select(Job.state).where(Job.id == job_id).with_for_update()).scalar_one()
    if state == JobState.CANCELLED:
        raise UsageError(f"job {job_id} is cancelled: submit its photos again")
    if queued and state == JobState.FINISHED:
        connection.execute(update(Job).where(Job.id == job_id).values(state=JobState.ACTIVE, finished_at=None))
    return len(queued)


def prune(engine: Engine, older_than: timedelta) -> int:
    """
    Remove the items of jobs that ended so long ago, but for the failed ones, which keep later jobs from trying in
    vain. Scores, and the counts of the jobs, stay. Returns the number of items removed.
    """
    ended = and_(
        Job.state.in_((JobState.FINISHED, JobState.CANCELLED)), Job.finished_at < datetime.now(UTC) - older_than
    )
    with reading(engine) as connection:
        job_ids = connection.execute(select(Job.id).where(ended).order_by(Job.id)).scalars().all()
    return sum(_prune_job(engine, job_id) for job_id in job_ids)


def _prune_job(engine: Engine, job_id: int) -> int:
    number, last = 0, 0
    while True:
        with writing(engine) as connection:
            page = select(Chunk.id).where(Chunk.job_id == job_id, Chunk.state == ChunkState.DONE, Chunk.id > last)
            chunk_ids = connection.execute(page.order_by(Chunk.id).limit(CHUNKS_AT_ONCE)).scalars().all()
            settled = Item.state.in_((ItemState.SCORED, ItemState.CANCELLED))
            number += connection.execute(delete(Item).where(Item.chunk_id.in_(chunk_ids), settled)).rowcount
        if len(chunk_ids) < CHUNKS_AT_ONCE:
            return number
        last = chunk_ids[-1]
