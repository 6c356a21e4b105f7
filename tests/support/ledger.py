"""Jobs, photos and results for tests of the ledger."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, true, update

from models.claims import Claim, Failed, QueueKey, Scored
from models.db import writing
from models.ledger import jobs, leases, listing, scheduling
from models.ledger.jobs import JobSpec
from models.tables import ChunkRow
from qsit import process_id
from qsit.states import Reason

SPEC = JobSpec(key="k", name=None, model="demo", revision="r1", procedure="rating-1/upright-1")


QUEUE = QueueKey("demo", "r1")


@dataclass(frozen=True)
class Photo:
    uri: str
    version: str = "1"


def photos(count: int, prefix: str = "file:///p/", version: str = "1") -> list[Photo]:
    return [Photo(f"{prefix}{index:06d}.jpg", version) for index in range(count)]


def listed(engine: Engine, found: list[Photo], spec: JobSpec = SPEC) -> int:
    job = jobs.open_job(engine, spec)
    assert listing.begin_listing(engine, job.id)
    listing.add_images(engine, job.id, found)
    listing.end_listing(engine, job.id)
    return job.id


def score_all(
    engine: Engine, lane: QueueKey = QUEUE, failing: tuple[str, ...] = (), reason: Reason = Reason.CORRUPT
) -> int:
    """Score everything in a queue. Return the number of items."""
    number = 0
    while messages := scheduling.stage_chunks(engine, lane, ahead=4, lease_s=60):
        for message in messages:
            claim = leases.claim(engine, message.chunk_id, lane, process_id.identity(), 60)
            assert claim is not None
            results: list[Scored | Failed] = [
                Failed(item.image_id, reason, "broken")
                if item.uri in failing
                else Scored(item.image_id, 0.5, (0.0, 1.0, 2.0, 3.0, 4.0), "float32")
                for item in claim.items
            ]
            leases.record(engine, claim, results, 60)
            leases.release(engine, claim)
            number += len(results)
    return number


HERE = process_id.identity()
DEAD = f"{HERE.split(':')[0]}:999999999:0.00"


def claimed(engine: Engine, worker: str = HERE) -> Claim:
    """Send and claim the next chunk."""
    (message,) = scheduling.stage_chunks(engine, QUEUE, ahead=1, lease_s=60)
    claim = leases.claim(engine, message.chunk_id, QUEUE, worker, 60)
    assert claim is not None
    return claim


def good(image_id: int, score: float = 0.5) -> Scored:
    return Scored(image_id, score, (0.0, 1.0, 2.0, 3.0, 4.0), "float32")


def expire_leases(engine: Engine) -> None:
    """End every lease, and every wait of a sent or resting chunk."""
    pass_time(engine, 1e9)


def pass_time(engine: Engine, seconds: float, condition: ColumnElement[bool] | None = None) -> None:
    """Move the deadlines of chunks into the past, which is all that the ledger sees of time."""
    moved = {column: column - seconds for column in (ChunkRow.available_at, ChunkRow.lease_expires_at)}
    with writing(engine) as connection:
        connection.execute(update(ChunkRow).where(true() if condition is None else condition).values(moved))


def deadline(chunk: Any) -> float | None:
    """Return when a chunk's lease or wait ends."""
    found: float | None = chunk.lease_expires_at if chunk.available_at is None else chunk.available_at
    return found
