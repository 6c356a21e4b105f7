"""Which models have scored photos, and the scores of one of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, func, literal_column, select

from models.db import reading
from models.tables import ImageRow, JobRow, ScoreRow, ScorerRow

AT_ONCE = 500
"""Photos looked up by one query."""


@dataclass(frozen=True)
class ScorerInUse:
    """A model at a revision with a procedure, and the time of its newest score."""

    id: int
    model: str
    revision: str
    procedure: str
    newest: datetime


def in_use(engine: Engine, *, job: int | None = None) -> list[ScorerInUse]:
    """Return every scorer that has scores, or that of a job. The one with the newest score comes first."""
    newest = select(func.max(ScoreRow.scored_at)).where(ScoreRow.scorer_id == ScorerRow.id).scalar_subquery()
    query = select(ScorerRow.id, ScorerRow.model, ScorerRow.revision, ScorerRow.procedure, newest.label("newest"))
    if job is not None:
        query = query.where(ScorerRow.id == select(JobRow.scorer_id).where(JobRow.id == job).scalar_subquery())
    with reading(engine) as connection:
        found = [ScorerInUse(*row) for row in connection.execute(query) if row.newest is not None]
    return sorted(found, key=lambda scorer: (scorer.newest, scorer.id), reverse=True)


def scores_of(engine: Engine, scorer_id: int, uris: Sequence[str]) -> dict[str, float]:
    """Return the scores of the current versions of these photos, by URI."""
    scores: dict[str, float] = {}
    # wrapped, so that no planner walks all scores of the scorer
    scorer = func.coalesce(ScoreRow.scorer_id, ScoreRow.scorer_id)
    for start in range(0, len(uris), AT_ONCE):
        some = uris[start : start + AT_ONCE]
        query = (
            select(ImageRow.uri, ScoreRow.score)
            .join(ScoreRow, ScoreRow.image_id == ImageRow.id)
            .where(literal_column("images.current"), ImageRow.uri.in_(some), scorer == scorer_id)
        )
        with reading(engine) as connection:
            scores.update((row.uri, row.score) for row in connection.execute(query))
    return scores
