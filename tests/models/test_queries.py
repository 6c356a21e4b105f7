"""Results in every order, by pages."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert

from models.claims import Scored
from models.db import writing
from models.ledger import leases, scheduling
from models.queries import pagination
from models.queries.pagination import ResultFilter, Sort
from models.queries.results import find_results
from models.tables import AnswerRow, Base, ImageRow, JobRow, QuestionRow, ScoreRow, ScorerRow
from qsit import process_id
from tests.support.ledger import QUEUE, SPEC, listed, photos, score_all


@pytest.fixture
def library(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Thirty scores with many ties, read in pages of seven."""
    monkeypatch.setattr(pagination, "PAGE", 7)
    listed(engine, [*photos(20), *photos(10, "file:///q/")])
    while messages := scheduling.stage_chunks(engine, QUEUE, ahead=4, lease_s=60):
        for message in messages:
            claim = leases.claim(engine, message.chunk_id, QUEUE, process_id.identity(), 60)
            assert claim is not None
            logits = (0.0, 0.0, 0.0, 0.0, 0.0)
            scores = [Scored(item.image_id, item.image_id % 5 / 4, logits, "float32") for item in claim.items]
            leases.record(engine, claim, scores, 60)
            leases.release(engine, claim)
    return engine


@pytest.mark.parametrize("sort", ["score", "-score", "uri", "-scored_at"])
def test_every_order_gives_every_row_once(library: Engine, sort: Sort) -> None:
    rows = list(find_results(library, ResultFilter(sort=sort)))

    assert len({row.uri for row in rows}) == len(rows) == 30
    key = sort.removeprefix("-")
    values = [getattr(row, key) for row in rows]
    assert values == sorted(values, reverse=sort.startswith("-"))


@pytest.mark.parametrize("limit", [1, 7, 8, 14, 30, 99])
def test_limit_limits_the_results(library: Engine, limit: int) -> None:
    every = list(find_results(library, ResultFilter()))

    assert list(find_results(library, ResultFilter(limit=limit))) == every[:limit]


def test_filters(library: Engine) -> None:
    def count(wanted: ResultFilter) -> int:
        return len(list(find_results(library, wanted)))

    assert count(ResultFilter(under="file:///q/")) == 10
    assert count(ResultFilter(under="file:///p/00001*")) == 10
    assert count(ResultFilter(min_score=0.5, max_score=0.75)) == 12
    assert count(ResultFilter(job=1)) == 30
    assert count(ResultFilter(job=2)) == 0
    assert count(ResultFilter(model="demo")) == 30
    assert count(ResultFilter(model="other")) == 0


def test_two_scorers_of_one_photo_are_two_results(library: Engine) -> None:
    listed(library, photos(20), replace(SPEC, procedure="rating-1/as-stored-1"))
    score_all(library)

    rows = list(find_results(library, ResultFilter(sort="uri", under="file:///p/")))

    assert len(rows) == 40
    assert len({(row.uri, row.procedure) for row in rows}) == 40


MOMENTS = [datetime(2026, 1, 1, 12, 0, 0, micro, UTC) for micro in (0, 1, 999_999)]
SCORES = [0.0, 0.25, 0.5, 1.0]


@st.composite
def libraries(draw: st.DrawFn) -> list[dict[str, Any]]:
    """
    Images of a few folders in some versions, each scored by some of three scorers; two models, four jobs, which have
    asked about some.
    """
    versions: dict[str, list[bool]] = draw(
        st.dictionaries(
            st.builds(
                "{}/{}".format,
                st.sampled_from(["s3://b/a", "s3://b/a-b", "s3://b/ab", "s3://b/ä", "s3://c"]),
                st.integers(0, 9),
            ),
            st.sampled_from([[True], [False], [True, False], [False, False, True]]),
            max_size=30,
        )
    )
    images = [(uri, number, current) for uri, found in versions.items() for number, current in enumerate(found)]
    return [
        {
            "image_id": image_id,
            "uri": uri,
            "version": str(number),
            "current": current,
            "scorer_id": job % 3 + 1,
            "model": ["x", "y", "x"][job % 3],
            "job": job + 1,
            "score": draw(st.sampled_from(SCORES)),
            "scored_at": draw(st.sampled_from(MOMENTS)),
            "asked_by": draw(st.lists(st.sampled_from([1, 4] if job % 3 == 0 else [job + 1]), max_size=2)),
        }
        for image_id, (uri, number, current) in enumerate(draw(st.permutations(images)), 1)
        for job in draw(st.sampled_from([[0], [3], [0, 1], [1, 2], [0, 1, 2], [3, 1]]))
    ]


wanteds = st.builds(
    ResultFilter,
    job=st.sampled_from([None, None, 1, 2, 4, 9]),
    model=st.sampled_from([None, None, "x", "y", "z"]),
    under=st.sampled_from([None, "s3://b", "s3://b/", "s3://b/a", "s3://b/a*", "s3://b/a/*", "s3://b/ä", "s3://b/a/3"]),
    min_score=st.sampled_from([None, None, 0.25, 0.3]),
    max_score=st.sampled_from([None, None, 0.5, 0.1]),
    all_versions=st.booleans(),
    sort=st.sampled_from(["score", "-score", "uri", "-scored_at"]),
    limit=st.sampled_from([None, 1, 5, 20]),
    answers=st.booleans(),
)


def is_under(uri: str, pattern: str) -> bool:
    if pattern.endswith("*"):
        return uri.startswith(pattern[:-1])
    return uri == pattern or uri.startswith(pattern.removesuffix("/") + "/")


def expected(library: list[dict[str, Any]], wanted: ResultFilter) -> list[tuple[int, int, list[int]]]:
    """Return what a plain filter and sort gives: image, scorer, and the jobs of the answers."""
    rows = [
        row
        for row in library
        if (row["current"] or wanted.all_versions)
        and wanted.job in (None, row["job"], *(row["asked_by"] if wanted.answers else []))
        and wanted.model in (None, row["model"])
        and (wanted.under is None or is_under(row["uri"], wanted.under))
        and (wanted.min_score is None or row["score"] >= wanted.min_score)
        and (wanted.max_score is None or row["score"] <= wanted.max_score)
    ]
    rows.sort(key=lambda row: (row["image_id"], row["scorer_id"]))
    rows.sort(key=lambda row: row[wanted.sort.removeprefix("-")], reverse=wanted.sort.startswith("-"))
    return [
        (row["image_id"], row["scorer_id"], row["asked_by"] if wanted.answers else []) for row in rows[: wanted.limit]
    ]


def fill(engine: Engine, library: list[dict[str, Any]]) -> None:
    now = datetime.now(UTC)
    nothing = dict.fromkeys(("excellent", "good", "fair", "poor", "bad"), 0.0)
    with writing(engine) as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(delete(table))
        for number, model in enumerate("xyx", 1):
            row = {"id": number, "model": model, "revision": str(number), "procedure": "p"}
            connection.execute(insert(ScorerRow).values(row))
        for number in range(1, 5):
            row = {
                "id": number,
                "key": "k",
                "scorer_id": (number - 1) % 3 + 1,
                "state": "finished",
                "private": False,
                "rescore": False,
                "priority": 0,
                "max_failed": "0",
                "skipped": 0,
                "skipped_failed": 0,
                "created_at": now,
                "last_dispatched_at": 0.0,
            }
            connection.execute(insert(JobRow).values(row))
        for image_id, row in {row["image_id"]: row for row in library}.items():
            columns = {column: row[column] for column in ("uri", "version", "current")}
            connection.execute(insert(ImageRow).values(id=image_id, **columns))
        for row in library:
            columns = {column: row[column] for column in ("image_id", "scorer_id", "score", "scored_at")}
            connection.execute(insert(ScoreRow).values(**columns, **nothing, dtype="float32", job_id=row["job"]))
        for number in (1, 2):
            row = {"text": str(number), "choices": "[]", "generation": "g", "max_new_tokens": 1}
            connection.execute(insert(QuestionRow).values(id=number, name="q", **row))
        answers = [
            {
                "image_id": row["image_id"],
                "scorer_id": row["scorer_id"],
                "question_id": question,
                "text": "yes",
                "cut": False,
                "dtype": "float32",
                "job_id": job,
                "answered_at": now,
            }
            for row in library
            for question, job in enumerate(row["asked_by"], 1)
        ]
        if answers:
            connection.execute(insert(AnswerRow), answers)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],  # each example starts empty
)
@given(library=libraries(), asked=st.lists(wanteds, min_size=10, max_size=10), page=st.integers(1, 6), data=st.data())
def test_results_equal_a_plain_filter_and_sort(
    engine: Engine, library: list[dict[str, Any]], asked: list[ResultFilter], page: int, data: st.DataObject
) -> None:
    fill(engine, library)
    for wanted in asked:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(pagination, "PAGE", page)
            patched.setattr(pagination, "ROW_BUDGET", data.draw(st.integers(1, 12)))
            found = [
                (result.image_id, result.scorer_id, [each.job for each in result.answers])
                for result in find_results(engine, wanted)
            ]
        assert found == expected(library, wanted), wanted
