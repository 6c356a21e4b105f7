"""Scores in the ledger, for tests that compare or show them."""

from dataclasses import replace
from typing import Any

from sqlalchemy import Engine

from models.claims import QueueKey
from models.ledger import leases, scheduling
from qsit import process_id
from tests.support.ledger import SPEC, Photo, good, listed


def record_scores(engine: Engine, scores: dict[str, float], version: str = "1", **spec: Any) -> int:
    """Give each URI its score, by a job of its own. Return the job."""
    wanted = replace(SPEC, key=str(scores), **spec)
    job = listed(engine, [Photo(uri, version) for uri in scores], wanted)
    queue = QueueKey(wanted.model, wanted.revision)
    while messages := scheduling.stage_chunks(engine, queue, ahead=4, lease_s=60):
        for message in messages:
            claim = leases.claim(engine, message.chunk_id, queue, process_id.identity(), 60)
            assert claim is not None
            leases.record(engine, claim, [good(item.image_id, scores[item.uri]) for item in claim.items], 60)
            leases.release(engine, claim)
    return job
