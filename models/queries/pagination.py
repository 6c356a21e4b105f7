"""How the results that somebody wants are found, page by page, among millions.

The scores of one scorer are walked along an index that has them in the wanted order, and what is not wanted is passed
over. Where another index leaves but few of them, those are gathered there and sorted instead. Each query uses one
index: the planner, which may know little of the tables, sees no other column.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Engine,
    Row,
    Select,
    and_,
    func,
    literal,
    literal_column,
    or_,
    select,
    union_all,
)
from sqlalchemy.orm import aliased

from models.db import reading
from models.tables import AnswerRow, Image, Score

PAGE = 1000
"""Rows fetched at a time."""
EFFORT = 10_000
"""Rows that are walked past, or gathered and sorted, before the other is tried, with ten times as many."""
LAST_ID = 2**63 - 1

Sort = Literal["score", "-score", "uri", "-scored_at"]
Along = Literal["score", "uri", "scored_at", "job"]


@dataclass(frozen=True)
class Wanted:
    """
    Which results, in which order: scores 0..1, all of them where nothing is said.

    job: those whose score it computed; with answers, also those about which it got an answer.
    """

    job: int | None = None
    model: str | None = None
    under: str | None = None  # URIs that begin with this
    least: float | None = None
    most: float | None = None
    all_versions: bool = False
    sort: Sort = "score"
    limit: int | None = None
    answers: bool = False

    @property
    def by_answers(self) -> bool:
        """Whether a job has results whose score it did not compute."""
        return self.job is not None and self.answers

    @property
    def along(self) -> Along:
        """The column of the order."""
        columns: dict[Sort, Along] = {"score": "score", "-score": "score", "uri": "uri", "-scored_at": "scored_at"}
        return columns[self.sort]

    @property
    def passes_over(self) -> bool:
        """Whether scores that are not wanted stand between the others in the order."""
        by_score = self.job is not None or self.least is not None or self.most is not None
        by_others = self.along == "uri" or self.under is not None or self.by_answers
        return by_others or (self.along == "scored_at" and by_score)


@dataclass(frozen=True)
class Position:
    """Where a page begins: behind this key and image."""

    key: float | str | datetime
    image_id: int


def of_scorer(engine: Engine, wanted: Wanted, scorer_id: int) -> Iterator[Sequence[Row[Any]]]:
    """The wanted scores of one scorer in order, each with its image, page by page."""
    left = wanted.limit
    is_long = left is None or left > PAGE
    behind: Position | None = None
    effort = EFFORT
    along: Along | None = None
    end: Any = None  # the key up to which is walked
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        with reading(engine) as connection:
            if along is None:
                along = _index(connection, wanted, scorer_id, effort)
            if end is None and wanted.passes_over and along == wanted.along:
                end = connection.execute(_walk(wanted, scorer_id, behind).offset(effort).limit(1)).scalar()
            page = connection.execute(_page(wanted, scorer_id, along, behind, end, size)).all()
        yield page
        left = None if left is None else left - len(page)
        if len(page) == size:
            behind = Position(page[-1].key, page[-1].image_id)
        elif end is None:
            return
        else:
            behind, end = Position(end, LAST_ID), None
            if not is_long:  # a long list is best walked to its end
                along, effort = None, effort * 10


def _index(connection: Connection, wanted: Wanted, scorer_id: int, effort: int) -> Along:
    """Along what to look: the order itself, unless another index leaves but few to sort."""
    others: list[Along] = ["score"] if wanted.under is None else ["uri", "score"]
    if wanted.by_answers:
        others.append("job")
    for along in others:
        if wanted.passes_over and along != wanted.along:
            some = _of_index(wanted, scorer_id, along).limit(effort).subquery()
            if connection.execute(select(func.count()).select_from(some)).scalar_one() < effort:
                return along
    return wanted.along


def _of_index(wanted: Wanted, scorer_id: int, along: Along) -> Select[Any]:
    """What an index alone can tell of what is wanted: the key and the image."""
    if along == "uri":
        return select(*_columns(Image.uri, Image.id)).where(*_of_images(wanted))
    if along == "job":
        of_job = _of_job(wanted).subquery()
        return select(*_columns(of_job.c.image_id, of_job.c.image_id))
    key: Any = Score.score if along == "score" else Score.scored_at
    conditions = _of_scores(wanted, scorer_id) if along == "score" else [Score.scorer_id == scorer_id]
    return select(*_columns(key, Score.image_id)).where(*conditions)


def _columns(key: Any, image_id: Any) -> list[ColumnElement[Any]]:
    return [key.label("key"), image_id.label("image_id")]


def _walk(wanted: Wanted, scorer_id: int, behind: Position | None) -> Select[Any]:
    return _ordered(_of_index(wanted, scorer_id, wanted.along), wanted, behind, hide=False)


def _page(wanted: Wanted, scorer_id: int, along: Along, behind: Position | None, end: Any, size: int) -> Select[Any]:
    gathers = along != wanted.along
    key: Any = {"score": Score.score, "uri": Image.uri, "scored_at": Score.scored_at}[wanted.along]
    found = select(*_columns(key, Score.image_id)).join(Image, Image.id == Score.image_id)
    beside: Any = None
    if along == "job":
        of_job = select(_of_job(wanted).subquery().c.image_id).distinct().subquery()
        beside = of_job.c.image_id
        found = found.join(of_job, beside == Score.image_id)
    elif wanted.by_answers:
        found = found.where(_is_of_job(wanted))
    of_scores = _of_scores(wanted, scorer_id, hide=along != "score", beside=beside)
    found = found.where(*_of_images(wanted, hide=along != "uri"), *of_scores)
    if along == "scored_at":
        found = found.where(Score.scorer_id == scorer_id)
    if end is not None:
        found = found.where(key >= end if wanted.sort.startswith("-") else key <= end)
    picked = _ordered(found, wanted, behind, hide=gathers).limit(size).subquery()
    score, image = aliased(Score), aliased(Image)
    order = picked.c.key.desc() if wanted.sort.startswith("-") else picked.c.key
    return (
        select(
            picked.c.key, picked.c.image_id, image.uri, image.version, score.score, score.excellent, score.good,
            score.fair, score.poor, score.bad, score.dtype, score.scored_at, score.job_id,
        )
        .join(image, image.id == picked.c.image_id)
        .join(score, and_(score.image_id == picked.c.image_id, _hidden(score.scorer_id) == scorer_id))
        .order_by(order, picked.c.image_id)
    )  # fmt: skip


def _ordered(query: Select[Any], wanted: Wanted, behind: Position | None, *, hide: bool) -> Select[Any]:
    """What is behind a position, in the wanted order."""
    columns = query.selected_columns
    key, image_id = (_hidden(columns.key) if hide else columns.key), columns.image_id
    descending = wanted.sort.startswith("-")
    if behind is not None:
        further = key < behind.key if descending else key > behind.key
        from_there = key <= behind.key if descending else key >= behind.key  # says the same, in a way an index can use
        query = query.where(from_there, or_(further, image_id > behind.image_id))
    return query.order_by(key.desc() if descending else key, image_id)


def _of_images(wanted: Wanted, *, hide: bool = False) -> list[ColumnElement[bool]]:
    # in these words SQLite sees that its index of current versions will do
    conditions: list[ColumnElement[bool]] = [] if wanted.all_versions else [literal_column("images.current")]
    if wanted.under is not None:
        uri: Any = _hidden(Image.uri) if hide else Image.uri
        conditions += [uri >= wanted.under, uri < _after_prefix(wanted.under)]
    return conditions


def _of_scores(wanted: Wanted, scorer_id: int, *, hide: bool = False, beside: Any = None) -> list[ColumnElement[bool]]:
    def column(plain: Any) -> Any:
        return _hidden(plain, beside) if hide else plain

    # a job has one scorer, and an index of its own
    by_job = wanted.job is not None and not wanted.by_answers
    conditions = [column(Score.job_id) == wanted.job if by_job else column(Score.scorer_id) == scorer_id]
    if wanted.least is not None:
        conditions.append(column(Score.score) >= wanted.least)
    if wanted.most is not None:
        conditions.append(column(Score.score) <= wanted.most)
    return conditions


def _of_job(wanted: Wanted) -> CompoundSelect[Any]:
    """The images that got score or answers by a job, some more than once."""
    scored = select(Score.image_id).where(Score.job_id == wanted.job)
    return union_all(scored, select(AnswerRow.image_id).where(AnswerRow.job_id == wanted.job))


def _is_of_job(wanted: Wanted) -> ColumnElement[bool]:
    """The same of one score at a time, in words that no planner turns into a look at all answers."""
    of_image = and_(AnswerRow.image_id == Score.image_id, AnswerRow.scorer_id == Score.scorer_id)
    asked = select(AnswerRow.job_id).where(of_image).correlate(Score)
    return or_(_hidden(Score.job_id) == wanted.job, literal(wanted.job).in_(asked))


def _hidden(column: Any, beside: Any = None) -> ColumnElement[Any]:
    """
    The column's value, of which the planner knows no index. With another table's column beside it, nor can it read all
    of the one table first, which it does when it takes it for small.
    """
    return func.coalesce(column, column if beside is None else beside)


def _after_prefix(prefix: str) -> str:
    """The least text that is greater than everything that begins with `prefix`."""
    return prefix + "\U0010ffff"
