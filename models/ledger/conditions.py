"""The states that changes start from, as conditions of the ledger's statements, and the parameters that they take."""

from sqlalchemy import Float, and_, bindparam, select

from models.claims import Claim
from models.dialects import Ids, now_s, one_of
from models.tables import Chunk, Item, Job
from qsit.states import ChunkState, ItemState

# Statements are made once, for making one takes longer than asking the database; what varies are their parameters.
THIS_CHUNK = Chunk.id == bindparam("chunk")
OPEN = Item.state == ItemState.QUEUED
OF_THIS_CHUNK = and_(Item.chunk_id == bindparam("chunk"), OPEN)
AMONG_THESE = and_(Item.job_id == bindparam("job"), one_of(Item.image_id, bindparam("ids", type_=Ids())), OPEN)
FROM_NOW = now_s() + bindparam("lease_s", type_=Float(53))

MINE = and_(THIS_CHUNK, Chunk.token == bindparam("held_by"), Chunk.state == ChunkState.LEASED)
HELD_BY_ME = select(Job.state).join(Chunk, Chunk.job_id == Job.id).where(MINE).with_for_update(of=Chunk)
"""The job's state; the chunk is locked, so that nobody takes it before the transaction ends."""
OVERDUE = Chunk.until < now_s()


def lease_of(claim: Claim) -> dict[str, object]:
    return {"chunk": claim.chunk_id, "held_by": claim.token}
