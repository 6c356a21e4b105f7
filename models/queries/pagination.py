"""Find results page by page among millions.

A query walks the scores of one scorer along the index of the wanted order and skips what the filter excludes. When
another index leaves only a few rows, it gathers those and sorts them. Each query lets the planner see one index only:
the planner's statistics may be old, and a wrong plan takes minutes at ten million rows (see benchmarks/README.md).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import aliased

from models.db import reading
from models.tables import AnswerRow, ImageRow, ScoreRow

PAGE = 1000
"""Rows fetched at a time."""
ROW_BUDGET = 10_000
"""Rows that one way may read, walking or gathering, before the other is tried with ten times as many."""
LAST_ID = 2**63 - 1
Position = tuple[float | str | datetime, int]
"""A page begins after this key and image."""
SHOWN = ("score", "excellent", "good", "fair", "poor", "bad", "dtype", "scored_at", "job_id")
"""The columns of scores that results show."""

Sort = Literal["score", "-score", "uri", "-scored_at"]
IndexKey = Literal["score", "uri", "scored_at", "job"]


@dataclass(frozen=True)
class ResultFilter:
    """
    Which results, in which order. Scores are 0..1. A field that is None filters nothing.

    job: results whose score it computed; with answers, also results about which it got an answer.
    """

    job: int | None = None
    model: str | None = None
    under: str | None = None  # this URI and all below it; with a * at its end, those that begin so
    min_score: float | None = None
    max_score: float | None = None
    all_versions: bool = False
    sort: Sort = "score"
    limit: int | None = None
    answers: bool = False

    @property
    def by_answers(self) -> bool:
        """Whether results count as the job's because of an answer."""
        return self.job is not None and self.answers

    @property
    def order_index(self) -> IndexKey:
        """The index that has the wanted order."""
        columns: dict[Sort, IndexKey] = {"score": "score", "-score": "score", "uri": "uri", "-scored_at": "scored_at"}
        return columns[self.sort]

    @property
    def is_filtered(self) -> bool:
        """Whether the walk along the order meets scores that the filter excludes."""
        by_score = self.job is not None or self.min_score is not None or self.max_score is not None
        by_others = self.order_index == "uri" or self.under is not None or self.by_answers
        return by_others or (self.order_index == "scored_at" and by_score)


def pages_of_scorer(engine: sa.Engine, wanted: ResultFilter, scorer_id: int) -> Iterator[Sequence[sa.Row[Any]]]:
    """Yield the wanted scores of one scorer in order, each with its image, page by page."""
    left = wanted.limit
    is_long = left is None or left > PAGE
    after: Position | None = None
    row_budget = ROW_BUDGET
    index_key: IndexKey | None = None
    end: Any = None  # the key up to which this page may walk
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        with reading(engine) as connection:
            if index_key is None:
                index_key = _index(connection, wanted, scorer_id, row_budget)
            if end is None and wanted.is_filtered and index_key == wanted.order_index:
                end = connection.execute(_walk(wanted, scorer_id, after).offset(row_budget).limit(1)).scalar()
            page = connection.execute(_page(wanted, scorer_id, index_key, after, end, size)).all()
        yield page
        left = None if left is None else left - len(page)
        if len(page) == size:
            after = (page[-1].key, page[-1].image_id)
        elif end is None:
            return
        else:
            after, end = (end, LAST_ID), None
            if not is_long:  # for a long list, walking on costs least
                index_key, row_budget = None, row_budget * 10


def _index(connection: sa.Connection, wanted: ResultFilter, scorer_id: int, row_budget: int) -> IndexKey:
    """Choose the index to read: that of the order, unless another one leaves few rows to sort."""
    others: list[IndexKey] = ["score"] if wanted.under is None else ["uri", "score"]
    if wanted.by_answers:
        others.append("job")
    for index_key in others:
        if wanted.is_filtered and index_key != wanted.order_index:
            some = _of_index(wanted, scorer_id, index_key).limit(row_budget).subquery()
            if connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one() < row_budget:
                return index_key
    return wanted.order_index


def _of_index(wanted: ResultFilter, scorer_id: int, index_key: IndexKey) -> sa.Select[Any]:
    """Select key and image by what one index alone can filter."""
    if index_key == "uri":
        return sa.select(*_columns(ImageRow.uri, ImageRow.id)).where(*_of_images(wanted))
    if index_key == "job":
        of_job = _of_job(wanted).subquery()
        return sa.select(*_columns(of_job.c.image_id, of_job.c.image_id))
    key: Any = ScoreRow.score if index_key == "score" else ScoreRow.scored_at
    conditions = _of_scores(wanted, scorer_id) if index_key == "score" else [ScoreRow.scorer_id == scorer_id]
    return sa.select(*_columns(key, ScoreRow.image_id)).where(*conditions)


def _columns(key: Any, image_id: Any) -> list[sa.ColumnElement[Any]]:
    return [key.label("key"), image_id.label("image_id")]


def _walk(wanted: ResultFilter, scorer_id: int, after: Position | None) -> sa.Select[Any]:
    return _ordered(_of_index(wanted, scorer_id, wanted.order_index), wanted, after, no_index=False)


def _page(
    wanted: ResultFilter, scorer_id: int, index_key: IndexKey, after: Position | None, end: Any, size: int
) -> sa.Select[Any]:
    gathers = index_key != wanted.order_index
    key: Any = {"score": ScoreRow.score, "uri": ImageRow.uri, "scored_at": ScoreRow.scored_at}[wanted.order_index]
    found = sa.select(*_columns(key, ScoreRow.image_id)).join(ImageRow, ImageRow.id == ScoreRow.image_id)
    beside: Any = None
    if index_key == "job":
        of_job = sa.select(_of_job(wanted).subquery().c.image_id).distinct().subquery()
        beside = of_job.c.image_id
        found = found.join(of_job, beside == ScoreRow.image_id)
    elif wanted.by_answers:
        found = found.where(_is_of_job(wanted))
    of_scores = _of_scores(wanted, scorer_id, no_index=index_key != "score", beside=beside)
    found = found.where(*_of_images(wanted, no_index=index_key != "uri"), *of_scores)
    if index_key == "scored_at":
        found = found.where(ScoreRow.scorer_id == scorer_id)
    if end is not None:
        found = found.where(key >= end if wanted.sort.startswith("-") else key <= end)
    picked = _ordered(found, wanted, after, no_index=gathers).limit(size).subquery()
    score, image = aliased(ScoreRow), aliased(ImageRow)
    order = picked.c.key.desc() if wanted.sort.startswith("-") else picked.c.key
    return (
        sa.select(picked.c.key, picked.c.image_id, image.uri, image.version, *(getattr(score, name) for name in SHOWN))
        .join(image, image.id == picked.c.image_id)
        .join(score, sa.and_(score.image_id == picked.c.image_id, _no_index(score.scorer_id) == scorer_id))
        .order_by(order, picked.c.image_id)
    )


def _ordered(query: sa.Select[Any], wanted: ResultFilter, after: Position | None, *, no_index: bool) -> sa.Select[Any]:
    """Order a query, and start it after a position."""
    columns = query.selected_columns
    key, image_id = (_no_index(columns.key) if no_index else columns.key), columns.image_id
    descending = wanted.sort.startswith("-")
    if after is not None:
        after_key, after_id = after
        further = key < after_key if descending else key > after_key
        from_there = key <= after_key if descending else key >= after_key  # redundant, but an index can use it
        query = query.where(from_there, sa.or_(further, image_id > after_id))
    return query.order_by(key.desc() if descending else key, image_id)


def _of_images(wanted: ResultFilter, *, no_index: bool = False) -> list[sa.ColumnElement[bool]]:
    # SQLite uses its partial index of current versions for these exact words only
    conditions: list[sa.ColumnElement[bool]] = [] if wanted.all_versions else [sa.literal_column("images.current")]
    if wanted.under is not None:
        uri: Any = _no_index(ImageRow.uri) if no_index else ImageRow.uri
        conditions += _is_under(uri, wanted.under)
    return conditions


def _of_scores(
    wanted: ResultFilter, scorer_id: int, *, no_index: bool = False, beside: Any = None
) -> list[sa.ColumnElement[bool]]:
    def column(plain: Any) -> Any:
        return _no_index(plain, beside) if no_index else plain

    # a job has one scorer, and its own index
    by_job = wanted.job is not None and not wanted.by_answers
    conditions = [column(ScoreRow.job_id) == wanted.job if by_job else column(ScoreRow.scorer_id) == scorer_id]
    if wanted.min_score is not None:
        conditions.append(column(ScoreRow.score) >= wanted.min_score)
    if wanted.max_score is not None:
        conditions.append(column(ScoreRow.score) <= wanted.max_score)
    return conditions


def _of_job(wanted: ResultFilter) -> sa.CompoundSelect[Any]:
    """Select the images that a job scored or asked about; some appear twice."""
    scored = sa.select(ScoreRow.image_id).where(ScoreRow.job_id == wanted.job)
    return sa.union_all(scored, sa.select(AnswerRow.image_id).where(AnswerRow.job_id == wanted.job))


def _is_of_job(wanted: ResultFilter) -> sa.ColumnElement[bool]:
    """Test one score at a time, written so that no planner reads all answers."""
    of_image = sa.and_(AnswerRow.image_id == ScoreRow.image_id, AnswerRow.scorer_id == ScoreRow.scorer_id)
    asked = sa.select(AnswerRow.job_id).where(of_image).correlate(ScoreRow)
    return sa.or_(_no_index(ScoreRow.job_id) == wanted.job, sa.literal(wanted.job).in_(asked))


def _no_index(column: Any, beside: Any = None) -> sa.ColumnElement[Any]:
    """
    Return a column wrapped so that the planner uses no index for it. With another table's column as second argument,
    it cannot read the whole table first either, as it does with tables that it believes to be small.
    """
    return sa.func.coalesce(column, column if beside is None else beside)


def _is_under(uri: Any, pattern: str) -> list[sa.ColumnElement[bool]]:
    """Return the conditions as one range, which an index can use, and a rest."""
    if pattern.endswith("*"):
        return [uri >= pattern[:-1], uri < _after_prefix(pattern[:-1])]
    folder = pattern if pattern.endswith("/") else pattern + "/"
    return [uri >= pattern, uri < _after_prefix(folder), sa.or_(uri == pattern, uri >= folder)]


def _after_prefix(prefix: str) -> str:
    """Return the least text that is greater than every text with this prefix."""
    return prefix + "\U0010ffff"
