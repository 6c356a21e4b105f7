"""The states that changes start from, as conditions of the ledger's statements, and the parameters that they take."""

from sqlalchemy import Float, and_, bindparam, select

from models.claims import Claim
from models.dialects import Ids, now_s, one_of
from models.tables import ChunkRow, ItemRow, JobRow
from qsit.states import ChunkState, ItemState

# Statements are made once, for making one takes longer than asking the database; what varies are their parameters.
THIS_CHUNK = ChunkRow.id == bindparam("chunk")
ITEM_IS_OPEN = ItemRow.state == ItemState.QUEUED
OF_THIS_CHUNK = and_(ItemRow.chunk_id == bindparam("chunk"), ITEM_IS_OPEN)
ITEM_ID_IN = and_(
    ItemRow.job_id == bindparam("job"), one_of(ItemRow.image_id, bindparam("ids", type_=Ids())), ITEM_IS_OPEN
)
NEW_EXPIRY = now_s() + bindparam("lease_s", type_=Float(53))

LEASE_IS_MINE = and_(THIS_CHUNK, ChunkRow.token == bindparam("held_by"), ChunkRow.state == ChunkState.LEASED)
LOCK_MY_CHUNK = (
    select(JobRow.state).join(ChunkRow, ChunkRow.job_id == JobRow.id).where(LEASE_IS_MINE).with_for_update(of=ChunkRow)
)
"""The job's state; the chunk is locked, so that nobody takes it before the transaction ends."""
OVERDUE = ChunkRow.until < now_s()


def lease_of(claim: Claim) -> dict[str, object]:
    return {"chunk": claim.chunk_id, "held_by": claim.token}
