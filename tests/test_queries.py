"""Results in every order, by pages."""

from dataclasses import replace

import pytest
from sqlalchemy import Engine

from models import backlog, fleet, ledger, pages, queries
from models.ledger import Scored
from models.queries import Sort, Wanted
from tests.test_jobs import LANE, SPEC, listed, photos, score_all


@pytest.fixture
def library(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Thirty scores with many ties, read in pages of seven."""
    monkeypatch.setattr(pages, "PAGE", 7)
    listed(engine, [*photos(20), *photos(10, "file:///q/")])
    while messages := backlog.send(engine, LANE, ahead=4, lease_s=60):
        for message in messages:
            claim = ledger.claim(engine, message.chunk_id, LANE, fleet.identity(), 60)
            assert claim is not None
            logits = (0.0, 0.0, 0.0, 0.0, 0.0)
            scores = [Scored(item.image_id, item.image_id % 5 / 4, logits, "float32") for item in claim.items]
            ledger.record(engine, claim, scores, 60)
            ledger.hand_back(engine, claim)
    return engine


@pytest.mark.parametrize("sort", ["score", "-score", "uri", "-scored_at"])
def test_every_order_gives_every_row_once(library: Engine, sort: Sort) -> None:
    rows = list(queries.results(library, Wanted(sort=sort)))

    assert len({row.uri for row in rows}) == len(rows) == 30
    key = sort.removeprefix("-")
    values = [getattr(row, key) for row in rows]
    assert values == sorted(values, reverse=sort.startswith("-"))


@pytest.mark.parametrize("limit", [1, 7, 8, 14, 30, 99])
def test_a_limit_is_kept(library: Engine, limit: int) -> None:
    every = list(queries.results(library, Wanted()))

    assert list(queries.results(library, Wanted(limit=limit))) == every[:limit]


def test_filters(library: Engine) -> None:
    def count(wanted: Wanted) -> int:
        return len(list(queries.results(library, wanted)))

    assert count(Wanted(under="file:///q/")) == 10
    assert count(Wanted(under="file:///p/00001")) == 10
    assert count(Wanted(least=0.5, most=0.75)) == 12
    assert count(Wanted(job=1)) == 30
    assert count(Wanted(job=2)) == 0
    assert count(Wanted(model="demo")) == 30
    assert count(Wanted(model="other")) == 0


def test_two_scorers_of_one_photo_are_two_results(library: Engine) -> None:
    listed(library, photos(20), replace(SPEC, procedure="rating-1/as-stored-1"))
    score_all(library)

    rows = list(queries.results(library, Wanted(sort="uri", under="file:///p/")))

    assert len(rows) == 40
    assert len({(row.uri, row.procedure) for row in rows}) == 40
