"""The end of a lease: the chunk is done or queued again, and the death of a worker is counted."""

import sqlalchemy as sa

from models.dialects import now_s
from models.ledger.conditions import NOT_HELD, OPEN_ITEM_OF_CHUNK, THIS_CHUNK
from models.tables import ChunkRow, ItemRow, JobRow, WorkerRow
from qsit.states import ChunkState, ItemState, JobState, Quarantine, Reason, WorkerState

MAX_CRASHES = 3
"""An item that ends so many workers while it runs alone fails as `crashed`."""


def expire(connection: sa.Connection, chunk_id: int, condition: sa.ColumnElement[bool]) -> int:
    """
    End the lease of a worker that is dead or silent. Return 1, or 0 when nothing was done.

    Re-checks `condition` under lock, since another worker may hold the chunk by now. What was in flight becomes
    suspect. What ran alone has one more crash, and fails with the third.
    """
    query = (
        sa.select(JobRow.state)
        .join(ChunkRow, ChunkRow.job_id == JobRow.id)
        .where(ChunkRow.id == chunk_id, ChunkRow.state == ChunkState.LEASED, condition)
    )
    job_state = connection.execute(query.with_for_update(of=ChunkRow, skip_locked=True)).scalar()
    if job_state is None:
        return 0
    if not _was_stopping(connection, chunk_id):
        _count_crash(connection, chunk_id)
    requeue_or_finish(connection, chunk_id, job_state)
    return 1


def _was_stopping(connection: sa.Connection, chunk_id: int) -> bool:
    """Return whether the chunk's worker had been told to stop: then its end is no photo's fault."""
    stopped = sa.select(WorkerRow.owner).where(WorkerRow.state == WorkerState.STOPPED)
    query = sa.select(ChunkRow.id).where(ChunkRow.id == chunk_id, ChunkRow.leased_by.in_(stopped))
    return connection.execute(query).scalar() is not None


def _count_crash(connection: sa.Connection, chunk_id: int) -> None:
    open_items = sa.and_(ItemRow.chunk_id == chunk_id, ItemRow.state == ItemState.QUEUED)
    ran_alone = ItemRow.quarantine == Quarantine.ALONE
    failed = connection.execute(
        sa.update(ItemRow)
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
        sa.update(ItemRow)
        .where(open_items, ItemRow.quarantine.in_((Quarantine.ALONE, Quarantine.IN_FLIGHT)))
        .values(quarantine=Quarantine.SUSPECT, crashes=sa.case((ran_alone, ItemRow.crashes + 1), else_=ItemRow.crashes))
    )
    connection.execute(sa.update(ChunkRow).where(ChunkRow.id == chunk_id).values(failed=ChunkRow.failed + failed))


_CANCEL = sa.update(ItemRow).where(OPEN_ITEM_OF_CHUNK).values(state=ItemState.CANCELLED, quarantine=Quarantine.NONE)

CLEAR_RISK = (
    sa.update(ItemRow)
    .where(OPEN_ITEM_OF_CHUNK, ItemRow.quarantine.in_((Quarantine.IN_FLIGHT, Quarantine.ALONE)))
    .values(quarantine=sa.case((ItemRow.quarantine == Quarantine.ALONE, Quarantine.SUSPECT), else_=Quarantine.NONE))
)

_REQUEUE_OR_FINISH = (
    sa.update(ChunkRow)
    .where(THIS_CHUNK)
    .values(
        **NOT_HELD
        | {
            "state": sa.case((sa.exists().where(OPEN_ITEM_OF_CHUNK), ChunkState.QUEUED), else_=ChunkState.DONE),
            "available_at": sa.case(
                (sa.exists().where(OPEN_ITEM_OF_CHUNK), now_s() + sa.bindparam("delay_s", type_=sa.Float(53))),
                else_=None,
            ),
        }
    )
    .returning(ChunkRow.state)
)


def requeue_or_finish(connection: sa.Connection, chunk_id: int, job_state: str, delay_s: float = 0.0) -> str:
    """
    Queue a leased chunk again, or finish it, and return its new state.

    Nothing of it is in flight any more. What ran alone runs alone again.
    """
    chunk = {"chunk": chunk_id}
    connection.execute(_CANCEL if job_state == JobState.CANCELLED else CLEAR_RISK, chunk)
    return connection.execute(_REQUEUE_OR_FINISH, {**chunk, "delay_s": delay_s or None}).scalar_one()
