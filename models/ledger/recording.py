"""How a batch's results are written: under its lease, each item once, and counted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, Text, and_, bindparam, column, exists, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from models.claims import Claim, ExistingResults, Failed, Result, Scored
from models.db import advisory_lock, reading, sanitize_text
from models.dialects import overwriting, rows_of
from models.ledger import answers
from models.ledger.conditions import ITEM_ID_IN, ITEM_IS_OPEN, LOCK_MY_CHUNK, NEW_EXPIRY, THIS_CHUNK, lease_of
from models.ledger.ingest import add_version
from models.tables import ChunkRow, ImageRow, ItemRow, RowId, ScoreRow, Utc
from qsit.states import ItemState, JobState, Quarantine

LOGITS = ("excellent", "good", "fair", "poor", "bad")


def existing_results(engine: Engine, uri: str, version: str, claim: Claim) -> ExistingResults:
    """What there is already of an image at a version, by the scorer of a claim and to its questions."""
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


@dataclass(frozen=True)
class _Batch:
    """What there is to write. scored: by the image that has the score, in one order for all, or two could wait for
    each other."""

    scored: list[tuple[int, Scored]]
    done: list[int]
    failed: list[Failed]


def record_batch(connection: Connection, claim: Claim, results: Sequence[Result], lease_s: float) -> JobState | None:
    """
    Write scores and answers, settle and count the items that are still open, and extend the lease. A version that was
    learnt becomes the current one of its URI, and has score and answers. Returns the job's state, or None when the
    lease is lost.
    """
    failed = [result for result in results if isinstance(result, Failed)]
    done = [result for result in results if not isinstance(result, Failed)]
    real_ids = _register_learnt(connection, {each.image_id: each.version for each in done if each.version is not None})
    scored = {real_ids.get(each.image_id, each.image_id): each for each in done if isinstance(each, Scored)}
    batch = _Batch(sorted(scored.items()), [each.image_id for each in done], failed)
    write_all = _in_one_statement if connection.dialect.name == "postgresql" else _in_steps
    job_state = write_all(connection, claim, batch, lease_s)
    if job_state is None:
        return None
    given = {
        (real_ids.get(each.image_id, each.image_id), question_id): (answer, each.dtype)
        for each in done
        for question_id, answer in each.answers.items()
    }
    if given:
        answers.write_answers(connection, claim, given)  # the chunk is locked, and stays ours until all is written
    return JobState(job_state)


def _register_learnt(connection: Connection, learnt: dict[int, str]) -> Mapping[int, int]:
    """The images at the versions that were learnt, by the id of the one whose version is unknown."""
    if not learnt:
        return {}
    advisory_lock(connection, "jobs")
    rows = connection.execute(select(ImageRow.id, ImageRow.uri).where(ImageRow.id.in_(learnt))).all()
    real_ids = add_version(connection, {row.uri: learnt[row.id] for row in rows})
    return {row.id: real_ids[row.uri] for row in rows}


def _message(failed: Failed) -> str:
    return sanitize_text(failed.message)[:500]


_SCORED = {"state": ItemState.SCORED, "risk": Quarantine.NONE}
_FAILED = {"state": ItemState.FAILED, "risk": Quarantine.NONE}
_SETTLE = update(ItemRow).where(ITEM_ID_IN).values(_SCORED)

_WRITE = overwriting(sqlite.insert(ScoreRow))
_FAIL = (
    update(ItemRow)
    .where(ItemRow.job_id == bindparam("job"), ItemRow.image_id == bindparam("image"), ITEM_IS_OPEN)
    .values(**_FAILED, reason=bindparam("why"), message=bindparam("words"))
)
_COUNT = (
    update(ChunkRow)
    .where(THIS_CHUNK)
    .values(
        scored=ChunkRow.scored + bindparam("more_scored"),
        failed=ChunkRow.failed + bindparam("more_failed"),
        until=NEW_EXPIRY,
    )
)


def _in_steps(connection: Connection, claim: Claim, batch: _Batch, lease_s: float) -> str | None:
    """For SQLite, where a statement costs little and none can do it all."""
    job_state = connection.execute(LOCK_MY_CHUNK, lease_of(claim)).scalar()
    if job_state is None:
        return None
    same = {"scorer_id": claim.scorer_id, "job_id": claim.job_id, "scored_at": datetime.now(UTC)}
    scores = [
        dict(zip(LOGITS, each.logits, strict=True), image_id=image_id, score=each.score, dtype=each.dtype, **same)
        for image_id, each in batch.scored
    ]
    failed = [
        {"job": claim.job_id, "image": each.image_id, "why": each.reason, "words": _message(each)}
        for each in batch.failed
    ]
    if scores:
        connection.execute(_WRITE, scores)
    count = {
        "more_scored": connection.execute(_SETTLE, {"job": claim.job_id, "ids": batch.done}).rowcount,
        "more_failed": connection.execute(_FAIL, failed).rowcount if failed else 0,
    }
    connection.execute(_COUNT, {"chunk": claim.chunk_id, "lease_s": lease_s, **count})
    return job_state


def _all() -> Any:
    held = LOCK_MY_CHUNK.cte("held")
    is_held = exists(select(held.c.state))
    same = {"scorer_id": bindparam("scorer"), "job_id": bindparam("job"), "scored_at": bindparam("now", type_=Utc())}
    varies = [column(each.name, each.type) for each in ScoreRow.__table__.columns if each.name not in same]
    rows = select(rows_of("scores", *varies), *same.values()).where(is_held)
    written = overwriting(postgresql.insert(ScoreRow).from_select([*(each.name for each in varies), *same], rows))
    settled = _SETTLE.where(is_held).returning(ItemRow.image_id).cte("settled")
    why = rows_of("failures", column("image_id", RowId), column("reason", Text), column("message", Text))
    failed = (
        update(ItemRow)
        .where(ItemRow.job_id == bindparam("job"), ItemRow.image_id == why.c.image_id, ITEM_IS_OPEN, is_held)
        .values(**_FAILED, reason=why.c.reason, message=why.c.message)
        .returning(ItemRow.image_id)
        .cte("failed")
    )
    return (
        update(ChunkRow)
        .where(THIS_CHUNK, is_held)
        .values(
            scored=ChunkRow.scored + select(func.count()).select_from(settled).scalar_subquery(),
            failed=ChunkRow.failed + select(func.count()).select_from(failed).scalar_subquery(),
            until=NEW_EXPIRY,
        )
        .returning(select(held.c.state).scalar_subquery())
        .add_cte(written.cte("written"))
    )


_ALL = _all()
_AS_JSON = '{"image_id":%d,"score":%.17g,"excellent":%.9g,"good":%.9g,"fair":%.9g,"poor":%.9g,"bad":%.9g,"dtype":"%s"}'
"""Nine digits tell a float32 from the next, seventeen any float; json.dumps takes five times as long."""


def _in_one_statement(connection: Connection, claim: Claim, batch: _Batch, lease_s: float) -> str | None:
    """For PostgreSQL, where the way to the server and back costs more than most of what it does there."""
    scores = [_AS_JSON % (image_id, each.score, *each.logits, each.dtype) for image_id, each in batch.scored]
    failures = [{"image_id": each.image_id, "reason": each.reason, "message": _message(each)} for each in batch.failed]
    parameters = {
        **lease_of(claim), "lease_s": lease_s, "job": claim.job_id, "scorer": claim.scorer_id,
        "now": datetime.now(UTC), "scores": f"[{','.join(scores)}]", "ids": batch.done,
        "failures": json.dumps(failures, ensure_ascii=False),
    }  # fmt: skip
    return connection.execute(_ALL, parameters).scalar()
