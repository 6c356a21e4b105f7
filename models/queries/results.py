"""Scores with their answers, in order, among millions."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from sqlalchemy import Engine, Select, select

from models.db import reading
from models.queries import pagination
from models.queries.answers import AnswerRecord, answers_for
from models.queries.pagination import ResultFilter, Sort
from models.tables import AnswerRow, JobQuestionRow, JobRow, QuestionRow, ScorerRow

LAST_MOMENT = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Result:
    """A stored score. logits: Excellent, Good, Fair, Poor, Bad. answers: of all jobs, if they were asked for."""

    image_id: int
    scorer_id: int
    uri: str
    version: str
    score: float
    logits: tuple[float, ...]
    model: str
    revision: str
    procedure: str
    dtype: str
    scored_at: datetime
    job: int
    answers: tuple[AnswerRecord, ...] = ()


def find_results(engine: Engine, wanted: ResultFilter) -> Iterator[Result]:
    """Yield results in order, fetched page by page."""
    with reading(engine) as connection:
        found = connection.execute(_scorers(wanted)).all()
    streams = [_of_scorer(engine, wanted, scorer) for scorer in found]
    return islice(heapq.merge(*streams, key=lambda result: _place(result, wanted.sort)), wanted.limit)


def _scorers(wanted: ResultFilter) -> Select[int, str, str, str]:
    scorers = select(ScorerRow.id, ScorerRow.model, ScorerRow.revision, ScorerRow.procedure)
    if wanted.model is not None:
        scorers = scorers.where(ScorerRow.model == wanted.model)
    if wanted.job is not None:
        scorers = scorers.where(
            ScorerRow.id == select(JobRow.scorer_id).where(JobRow.id == wanted.job).scalar_subquery()
        )
    return scorers


def _of_scorer(engine: Engine, wanted: ResultFilter, scorer: Any) -> Iterator[Result]:
    for page in pagination.pages_of_scorer(engine, wanted, scorer.id):
        answers = answers_for(engine, [row.image_id for row in page], scorer.id) if wanted.answers else {}
        for row in page:
            logits = (row.excellent, row.good, row.fair, row.poor, row.bad)
            image = (row.image_id, scorer.id, row.uri, row.version, row.score, logits)
            made_by = (scorer.model, scorer.revision, scorer.procedure, row.dtype, row.scored_at, row.job_id)
            yield Result(*image, *made_by, answers.get(row.image_id, ()))


def _place(result: Result, sort: Sort) -> tuple[Any, int, int]:
    """Return what results are ordered by."""
    keys = {"score": result.score, "-score": -result.score, "uri": result.uri}
    key = LAST_MOMENT - result.scored_at if sort == "-scored_at" else keys[sort]
    return key, result.image_id, result.scorer_id


def question_names(engine: Engine, wanted: ResultFilter) -> list[str]:
    """Return the names of the questions that the wanted scorers answered, in the order of their ids."""
    scorers = _scorers(wanted).with_only_columns(ScorerRow.id)
    answer = select(AnswerRow.job_id).where(
        AnswerRow.job_id == JobQuestionRow.job_id, AnswerRow.question_id == JobQuestionRow.question_id
    )
    query = (
        select(QuestionRow.name)
        .join(JobQuestionRow, JobQuestionRow.question_id == QuestionRow.id)
        .join(JobRow, JobRow.id == JobQuestionRow.job_id)
        .where(JobRow.scorer_id.in_(scorers))
        .where(answer.limit(1).scalar_subquery().is_not(None))  # as EXISTS, a planner may look at all answers
        .order_by(QuestionRow.id)
    )
    with reading(engine) as connection:
        return list(dict.fromkeys(connection.execute(query).scalars()))
