"""Write a batch's results under its lease: each item once, and counted."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, and_, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from models.claims import Claim, ExistingResults, Failed, Result, Scored
from models.db import advisory_lock, reading, sanitize_text
from models.dialects import overwriting
from models.ledger import answers
from models.ledger.conditions import ITEM_ID_IN, ITEM_IS_OPEN, LOCK_MY_CHUNK, NEW_EXPIRY, THIS_CHUNK, lease_of
from models.ledger.ingest import add_version
from models.tables import ChunkRow, ImageRow, ItemRow, ScoreRow
from qsit.states import ItemState, JobState, Quarantine

LOGITS = ("excellent", "good", "fair", "poor", "bad")
MAX_MESSAGE = 500
"""Characters of a failure's message that are kept."""


def existing_results(engine: Engine, uri: str, version: str, claim: Claim) -> ExistingResults:
    """Return the score and the answers that the ledger has of an image at a version, for a claim."""
    has_score = and_(ScoreRow.image_id == ImageRow.id, ScoreRow.scorer_id == claim.scorer_id)
    query = (
        select(ImageRow.id, ScoreRow.score)
        .outerjoin(ScoreRow, has_score)
        .where(ImageRow.uri == uri, ImageRow.version == version)
    )
    with reading(engine) as connection:
        image = connection.execute(query).one_or_none()
        if image is None:
            return ExistingResults()
        answered = answers.answered(connection, [image.id], claim.scorer_id, claim.questions)
        return ExistingResults(image.score, answered.get(image.id, frozenset()))


_WRITE_SCORES = {dialect.dialect.name: overwriting(dialect.insert(ScoreRow)) for dialect in (postgresql, sqlite)}
_SETTLE = update(ItemRow).where(ITEM_ID_IN).values(state=ItemState.SCORED, quarantine=Quarantine.NONE)
_FAIL = (
    update(ItemRow)
    .where(ItemRow.job_id == bindparam("job"), ItemRow.image_id == bindparam("image"), ITEM_IS_OPEN)
    .values(
        state=ItemState.FAILED,
        quarantine=Quarantine.NONE,
        reason=bindparam("new_reason"),
        message=bindparam("new_message"),
    )
)
_COUNT = (
    update(ChunkRow)
    .where(THIS_CHUNK)
    .values(
        scored=ChunkRow.scored + bindparam("more_scored"),
        failed=ChunkRow.failed + bindparam("more_failed"),
        lease_expires_at=NEW_EXPIRY,
    )
)


def record_batch(connection: Connection, claim: Claim, results: Sequence[Result], lease_s: float) -> JobState | None:
    """
    Write scores and answers, settle and count the items that are still open, and renew the lease.

    A version that the worker learned becomes the current one of its URI and gets the score and answers. Return the
    job's state, or None when the lease is lost.
    """
    failed = [result for result in results if isinstance(result, Failed)]
    done = [result for result in results if not isinstance(result, Failed)]
    # before the chunk is locked: every transaction takes these locks in one order
    learned_ids = _add_learned(connection, {each.image_id: each.version for each in done if each.version is not None})
    job_state = connection.execute(LOCK_MY_CHUNK, lease_of(claim)).scalar()
    if job_state is None:
        return None
    _write_scores(connection, claim, [each for each in done if isinstance(each, Scored)], learned_ids)
    count = {
        "more_scored": connection.execute(
            _SETTLE, {"job": claim.job_id, "ids": [each.image_id for each in done]}
        ).rowcount,
        "more_failed": _fail(connection, claim, failed),
    }
    connection.execute(_COUNT, {"chunk": claim.chunk_id, "lease_s": lease_s, **count})
    found = {
        (learned_ids.get(each.image_id, each.image_id), question_id): (answer, each.dtype)
        for each in done
        for question_id, answer in each.answers.items()
    }
    if found:
        answers.write_answers(connection, claim, found)
    return JobState(job_state)


def _add_learned(connection: Connection, versions: dict[int, str]) -> Mapping[int, int]:
    """Add the versions that the worker learned. Return their ids, by the id of the image without a version."""
    if not versions:
        return {}
    advisory_lock(connection, "jobs")
    rows = connection.execute(select(ImageRow.id, ImageRow.uri).where(ImageRow.id.in_(versions))).all()
    ids = add_version(connection, {row.uri: versions[row.id] for row in rows})
    return {row.id: ids[row.uri] for row in rows}


def _write_scores(connection: Connection, claim: Claim, scored: list[Scored], learned_ids: Mapping[int, int]) -> None:
    shared = {"scorer_id": claim.scorer_id, "job_id": claim.job_id, "scored_at": datetime.now(UTC)}
    rows = {}
    for each in scored:
        image_id = learned_ids.get(each.image_id, each.image_id)
        logits = dict(zip(LOGITS, each.logits, strict=True))
        rows[image_id] = {"image_id": image_id, "score": each.score, "dtype": each.dtype, **logits, **shared}
    if rows:
        # sorted: two transactions that write the same images take their locks in the same order
        connection.execute(_WRITE_SCORES[connection.dialect.name], [rows[image_id] for image_id in sorted(rows)])


def _fail(connection: Connection, claim: Claim, failed: Sequence[Failed]) -> int:
    """Fail items that are still open, each with its reason. Return their number."""
    rows = [
        {
            "job": claim.job_id,
            "image": each.image_id,
            "new_reason": each.reason,
            "new_message": sanitize_text(each.message)[:MAX_MESSAGE],
        }
        for each in failed
    ]
    return connection.execute(_FAIL, rows).rowcount if rows else 0
