"""Conditions and parameters that the ledger's statements share.

Statements are built once, at import: building one takes longer than running it. Only their parameters vary.
"""

from sqlalchemy import BigInteger, Float, and_, bindparam, or_, select

from models.claims import Claim, QueueKey
from models.dialects import Ids, now_s, one_of
from models.tables import ChunkRow, ItemRow, JobRow, ScorerRow
from qsit.states import ChunkState, ItemState

THIS_CHUNK = ChunkRow.id == bindparam("chunk")
ITEM_IS_OPEN = ItemRow.state == ItemState.QUEUED
OPEN_ITEM_OF_CHUNK = and_(ItemRow.chunk_id == bindparam("chunk"), ITEM_IS_OPEN)
ITEM_ID_IN = and_(
    ItemRow.job_id == bindparam("job"), one_of(ItemRow.image_id, bindparam("ids", type_=Ids())), ITEM_IS_OPEN
)
NEW_EXPIRY = now_s() + bindparam("lease_s", type_=Float(53))
LEASE_IS_MINE = and_(THIS_CHUNK, ChunkRow.token == bindparam("my_token"), ChunkRow.state == ChunkState.LEASED)
LEASE_HAS_EXPIRED = ChunkRow.lease_expires_at < now_s()
LOCK_MY_CHUNK = (
    select(JobRow.state).join(ChunkRow, ChunkRow.job_id == JobRow.id).where(LEASE_IS_MINE).with_for_update(of=ChunkRow)
)
"""Return the job's state and lock the chunk, so that nobody takes it before the transaction ends."""

_ONLY_JOB = bindparam("only_job", type_=BigInteger)
IS_FOR_MODEL = and_(ScorerRow.model == bindparam("model"), ScorerRow.revision == bindparam("revision"))
IS_FOR_BROKER = or_(JobRow.id == _ONLY_JOB, and_(_ONLY_JOB.is_(None), JobRow.private.is_(False)))

NOT_HELD = {"token": None, "leased_by": None, "lease_expires_at": None, "sent_via": None, "available_at": None}
"""The values of a chunk that is queued or done."""


def lease_of(claim: Claim) -> dict[str, object]:
    """Return the parameters of LEASE_IS_MINE."""
    return {"chunk": claim.chunk_id, "my_token": claim.token}


def queue_parameters(queue: QueueKey) -> dict[str, object]:
    """Return the parameters of IS_FOR_MODEL and IS_FOR_BROKER."""
    return {"model": queue.model, "revision": queue.revision, "broker": queue.broker, "only_job": queue.job_id}
