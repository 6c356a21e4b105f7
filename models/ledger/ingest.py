"""Turn listed images into rows: each the current version of its URI, and an item of a job if it needs work."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
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
    connection: sa.Connection, versions: Mapping[str, str], criteria: JobCriteria
) -> tuple[list[int], int, int]:
    """
    Make each version the current one of its URI.

    Return the ids of the images that need work and are not in the job yet; how many others have all that the job wants;
    and how many failed before by their own fault. An image of unknown version gets a row, but is never current.
    """
    listed = _table(connection, versions)
    known, new = _make_current(connection, listed)
    return _partition(connection, listed, criteria) if known else (new, 0, 0)


def add_version(connection: sa.Connection, versions: Mapping[str, str]) -> dict[str, int]:
    """Make each version the current one of its URI. Return the ids of the images, by URI."""
    listed = _table(connection, versions)
    _make_current(connection, listed)
    same = sa.and_(listed.c.key == ImageRow.uri, listed.c.value == ImageRow.version)
    return {row.uri: row.id for row in connection.execute(sa.select(ImageRow.uri, ImageRow.id).join(listed, same))}


def _make_current(connection: sa.Connection, listed: sa.Subquery) -> tuple[bool, list[int]]:
    """Return whether any URI was known before, and the ids of the new images in the order of the listing."""
    is_listed = (ImageRow.version == listed.c.value).label("is_listed")
    query = sa.select(ImageRow.id, ImageRow.current, is_listed, listed.c.value)
    known = connection.execute(query.join(listed, listed.c.key == ImageRow.uri)).all()
    turned = [row for row in known if row.current != row.is_listed and row.value != UNKNOWN_VERSION]
    for was_current in (True, False):  # in this order, so that no URI ever has two current versions
        if ids := [row.id for row in turned if row.current is was_current]:
            connection.execute(sa.update(ImageRow).where(ImageRow.id.in_(ids)).values(current=not was_current))
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    rows = sa.select(listed.c.key, listed.c.value, listed.c.value != UNKNOWN_VERSION).order_by(listed.c.position)
    added = connection.execute(
        dialect.insert(ImageRow)
        .from_select(["uri", "version", "current"], rows)
        .on_conflict_do_nothing(index_elements=["uri", "version"])
        .returning(ImageRow.id)
    )
    return bool(known), sorted(added.scalars().all())


def _partition(connection: sa.Connection, listed: sa.Subquery, criteria: JobCriteria) -> tuple[list[int], int, int]:
    other = aliased(ImageRow)
    either_unknown = sa.or_(other.version == UNKNOWN_VERSION, listed.c.value == UNKNOWN_VERSION)
    same = sa.and_(other.uri == listed.c.key, sa.or_(other.version == listed.c.value, either_unknown))
    in_job = sa.exists().where(same, sa.exists().where(ItemRow.job_id == criteria.job_id, ItemRow.image_id == other.id))
    scored = sa.exists().where(ScoreRow.image_id == ImageRow.id, ScoreRow.scorer_id == criteria.scorer_id)
    has_all = sa.and_(scored, _is_answered(criteria)) if criteria.asks else scored
    failed = sa.exists().where(
        ItemRow.image_id == ImageRow.id,
        HAS_FAILED,
        ItemRow.reason.not_in(PASSING_REASONS),
        JobRow.id == ItemRow.job_id,
        JobRow.scorer_id == criteria.scorer_id,
    )
    may_skip = sa.false() if criteria.rescore else listed.c.value != UNKNOWN_VERSION
    query = (
        sa.select(ImageRow.id, sa.and_(may_skip, has_all).label("has_all"), sa.and_(may_skip, failed).label("failed"))
        .join(listed, sa.and_(listed.c.key == ImageRow.uri, listed.c.value == ImageRow.version))
        .where(~in_job)
        .order_by(listed.c.position)
    )
    rows = connection.execute(query).all()
    waiting = [row.id for row in rows if not row.has_all and not row.failed]
    skipped = sum(row.has_all for row in rows)
    return waiting, skipped, len(rows) - len(waiting) - skipped


def _is_answered(criteria: JobCriteria) -> sa.ColumnElement[bool]:
    """Return whether an image with a score has every answer that the job asks for."""
    of_this = sa.and_(AnswerRow.image_id == ImageRow.id, AnswerRow.scorer_id == criteria.scorer_id)
    has_answer = sa.exists().where(of_this, AnswerRow.question_id == JobQuestionRow.question_id)
    has_answer = has_answer.correlate(ImageRow, JobQuestionRow)  # SQLAlchemy does not correlate so far out by itself
    is_open = sa.exists().where(JobQuestionRow.job_id == criteria.job_id, ~has_answer)
    if criteria.ask_below is None:
        return ~is_open
    good_enough = sa.exists().where(
        ScoreRow.image_id == ImageRow.id, ScoreRow.scorer_id == criteria.scorer_id, ScoreRow.score >= criteria.ask_below
    )
    return sa.or_(good_enough, ~is_open)


def insert_items(connection: sa.Connection, job_id: int, ids: Sequence[int]) -> None:
    """Put images into new chunks of a job."""
    so_far = connection.execute(
        sa.select(sa.func.coalesce(sa.func.sum(ChunkRow.size), 0)).where(ChunkRow.job_id == job_id)
    ).scalar()
    done, total = 0, int(so_far or 0)
    chunk_of: dict[int, int] = {}
    while done < len(ids):
        # chunks grow with the job, so that several workers share a small one
        part = ids[done : done + min(CHUNK_SIZE, max(SMALLEST_CHUNK, (total + done) // 8))]
        done += len(part)
        row = {"job_id": job_id, "state": ChunkState.QUEUED, "size": len(part), "scored": 0, "failed": 0}
        chunk_id = connection.execute(sa.insert(ChunkRow).values(row).returning(ChunkRow.id)).scalar_one()
        chunk_of |= dict.fromkeys(part, chunk_id)
    placed = _table(connection, chunk_of)
    same = {"job_id": job_id, "state": ItemState.QUEUED, "quarantine": Quarantine.NONE, "crashes": 0}
    rows = sa.select(
        sa.cast(placed.c.key, RowId), sa.cast(placed.c.value, RowId), *(sa.literal(value) for value in same.values())
    )
    connection.execute(sa.insert(ItemRow).from_select(["image_id", "chunk_id", *same], rows))


def _table(connection: sa.Connection, pairs: Mapping[str, str] | Mapping[int, int]) -> sa.Subquery:
    """Return keys and values as a table with their position, passed as one JSON parameter."""
    document = json.dumps(pairs, ensure_ascii=False)
    if connection.dialect.name == "postgresql":
        each = sa.func.json_each_text(sa.cast(sa.literal(document), sa.JSON()))
        table = each.table_valued("key", "value", with_ordinality="position").render_derived()
        return sa.select(table.c.key, table.c.value, table.c.position).subquery()
    table = sa.func.json_each(document).table_valued("key", "value", "id")
    return sa.select(table.c.key, table.c.value, table.c.id.label("position")).subquery()
