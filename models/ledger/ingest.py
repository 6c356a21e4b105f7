"""Turn listed images into rows: each the current version of its URI, and an item of a job if it needs work."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Subquery,
    and_,
    cast,
    exists,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased

from models.tables import HAS_FAILED, AnswerRow, ChunkRow, ImageRow, ItemRow, JobQuestionRow, JobRow, RowId, ScoreRow
from qsit.states import PASSING_REASONS, UNKNOWN_VERSION, ChunkState, ItemState, Quarantine

CHUNK_SIZE = 512
SMALLEST_CHUNK = 16


@dataclass(frozen=True)
class JobCriteria:
    """What decides which images a job needs. asks: whether it has questions."""

    job_id: int
    scorer_id: int
    rescore: bool
    asks: bool
    ask_below: float | None


def upsert_images(
    connection: Connection, versions: Mapping[str, str], criteria: JobCriteria
) -> tuple[list[int], int, int]:
    """
    Make each version the current one of its URI.

    Return the ids of the images that need work and are not in the job yet; how many others have all that the job wants;
    and how many failed before by their own fault. An image of unknown version gets a row, but is never current.
    """
    listed = _table(connection, versions)
    known, new = _make_current(connection, listed)
    return _partition(connection, listed, criteria) if known else (new, 0, 0)


def add_version(connection: Connection, versions: Mapping[str, str]) -> dict[str, int]:
    """Make each version the current one of its URI. Return the ids of the images, by URI."""
    listed = _table(connection, versions)
    _make_current(connection, listed)
    same = and_(listed.c.key == ImageRow.uri, listed.c.value == ImageRow.version)
    return {row.uri: row.id for row in connection.execute(select(ImageRow.uri, ImageRow.id).join(listed, same))}


def _make_current(connection: Connection, listed: Subquery) -> tuple[bool, list[int]]:
    """Return whether any URI was known before, and the ids of the new images in the order of the listing."""
    known = connection.execute(
        select(ImageRow.id, ImageRow.current, (ImageRow.version == listed.c.value).label("is_listed"), listed.c.value)
        .join(listed, listed.c.key == ImageRow.uri)
    ).all()  # fmt: skip
    turned = [row for row in known if row.current != row.is_listed and row.value != UNKNOWN_VERSION]
    for was_current in (True, False):  # in this order, so that no URI ever has two current versions
        if ids := [row.id for row in turned if row.current is was_current]:
            connection.execute(update(ImageRow).where(ImageRow.id.in_(ids)).values(current=not was_current))
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    rows = select(listed.c.key, listed.c.value, listed.c.value != UNKNOWN_VERSION).order_by(listed.c.position)
    added = connection.execute(
        dialect.insert(ImageRow)
        .from_select(["uri", "version", "current"], rows)
        .on_conflict_do_nothing(index_elements=["uri", "version"])
        .returning(ImageRow.id)
    )
    return bool(known), sorted(added.scalars().all())


def _partition(connection: Connection, listed: Subquery, criteria: JobCriteria) -> tuple[list[int], int, int]:
    other = aliased(ImageRow)
    either_unknown = or_(other.version == UNKNOWN_VERSION, listed.c.value == UNKNOWN_VERSION)
    same = and_(other.uri == listed.c.key, or_(other.version == listed.c.value, either_unknown))
    in_job = exists().where(same, exists().where(ItemRow.job_id == criteria.job_id, ItemRow.image_id == other.id))
    scored = exists().where(ScoreRow.image_id == ImageRow.id, ScoreRow.scorer_id == criteria.scorer_id)
    has_all = and_(scored, _is_answered(criteria)) if criteria.asks else scored
    failed = exists().where(
        ItemRow.image_id == ImageRow.id,
        HAS_FAILED,
        ItemRow.reason.not_in(PASSING_REASONS),
        JobRow.id == ItemRow.job_id,
        JobRow.scorer_id == criteria.scorer_id,
    )
    may_skip = false() if criteria.rescore else listed.c.value != UNKNOWN_VERSION
    query = (
        select(ImageRow.id, and_(may_skip, has_all).label("has_all"), and_(may_skip, failed).label("failed"))
        .join(listed, and_(listed.c.key == ImageRow.uri, listed.c.value == ImageRow.version))
        .where(~in_job)
        .order_by(listed.c.position)
    )
    rows = connection.execute(query).all()
    waiting = [row.id for row in rows if not row.has_all and not row.failed]
    skipped = sum(row.has_all for row in rows)
    return waiting, skipped, len(rows) - len(waiting) - skipped


def _is_answered(criteria: JobCriteria) -> ColumnElement[bool]:
    """Return whether an image with a score has every answer that the job asks for."""
    of_this = and_(AnswerRow.image_id == ImageRow.id, AnswerRow.scorer_id == criteria.scorer_id)
    has_answer = exists().where(of_this, AnswerRow.question_id == JobQuestionRow.question_id)
    has_answer = has_answer.correlate(ImageRow, JobQuestionRow)  # SQLAlchemy does not correlate so far out by itself
    is_open = exists().where(JobQuestionRow.job_id == criteria.job_id, ~has_answer)
    if criteria.ask_below is None:
        return ~is_open
    good_enough = exists().where(
        ScoreRow.image_id == ImageRow.id, ScoreRow.scorer_id == criteria.scorer_id, ScoreRow.score >= criteria.ask_below
    )
    return or_(good_enough, ~is_open)


def insert_items(connection: Connection, job_id: int, ids: Sequence[int]) -> None:
    """Put images into new chunks of a job."""
    so_far = connection.execute(
        select(func.coalesce(func.sum(ChunkRow.size), 0)).where(ChunkRow.job_id == job_id)
    ).scalar()
    done, total = 0, int(so_far or 0)
    chunk_of: dict[int, int] = {}
    while done < len(ids):
        # chunks grow with the job, so that several workers share a small one
        part = ids[done : done + min(CHUNK_SIZE, max(SMALLEST_CHUNK, (total + done) // 8))]
        done += len(part)
        row = {"job_id": job_id, "state": ChunkState.QUEUED, "size": len(part), "scored": 0, "failed": 0}
        chunk_id = connection.execute(insert(ChunkRow).values(row).returning(ChunkRow.id)).scalar_one()
        chunk_of |= dict.fromkeys(part, chunk_id)
    placed = _table(connection, chunk_of)
    same = {"job_id": job_id, "state": ItemState.QUEUED, "quarantine": Quarantine.NONE, "crashes": 0}
    rows = select(cast(placed.c.key, RowId), cast(placed.c.value, RowId), *(literal(value) for value in same.values()))
    connection.execute(insert(ItemRow).from_select(["image_id", "chunk_id", *same], rows))


def _table(connection: Connection, pairs: Mapping[str, str] | Mapping[int, int]) -> Subquery:
    """Return keys and values as a table with their position, passed as one JSON parameter."""
    document = json.dumps(pairs, ensure_ascii=False)
    if connection.dialect.name == "postgresql":
        each = func.json_each_text(cast(literal(document), JSON()))
        table = each.table_valued("key", "value", with_ordinality="position").render_derived()
        return select(table.c.key, table.c.value, table.c.position).subquery()
    table = func.json_each(document).table_valued("key", "value", "id")
    return select(table.c.key, table.c.value, table.c.id.label("position")).subquery()
