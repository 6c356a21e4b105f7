"""Results and progress in words."""

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from models.queries.progress import Progress
from models.queries.results import Result
from producer import export, formatting, summary
from qsit.states import JobState, Reason

RESULT = Result(
    1, 1, "file:///p/a%20b.jpg", "1", 0.25, (0.0, 1.0, 2.0, 3.0, 4.0), "zhangzicheng/q-sit-mini", "abc",
    "rating-1/upright-1", "float16", datetime(2026, 1, 2, 3, 4, 5, 678, UTC), 7,
)  # fmt: skip
PROGRESS = Progress(
    job=7, name=None, state=JobState.FINISHED, model="m", revision="r", procedure="p", is_listed=True,
    skipped=100, skipped_failed=3, queued=0, running=0, scored=1087, failed=10, cancelled=0, max_failed="0",
    private=False, is_being_listed=False,
    created_at=RESULT.scored_at, finished_at=RESULT.scored_at,
)  # fmt: skip


@pytest.mark.parametrize(("scale", "words"), [("0-1", "0.2500"), ("0-5", "1.250"), ("1-5", "2.000"), ("0-100", "25.0")])
def test_scales(scale: str, words: str) -> None:
    assert formatting.scaled(0.25, scale) == words


def test_the_summary_has_the_scale_that_is_wanted_and_counts_answers() -> None:
    asking = replace(PROGRESS, asks=True)

    words = "\n".join(
        summary.summary(asking, 1087, 10.0, [RESULT], [], {}, "sqlite:///x", "X=y qsit", scale="1-5", answers=2174)
    )

    assert "2.000  Bad" in words
    assert "100 skipped (have their score and answers)" in words
    assert "2,174 answers given; to see them: X=y qsit results --job 7 --answers" in words
    assert "answers" not in "\n".join(summary.summary(PROGRESS, 1087, 10.0, [RESULT], [], {}, "sqlite:///x"))


def test_with_nothing_to_do_it_is_said_what_was_done_before() -> None:
    done = replace(PROGRESS, scored=0, failed=0)

    assert "every photo was scored or tried before" in "\n".join(summary.summary(done, 0, 1.0, [], [], {}, "x"))
    asked = "\n".join(summary.summary(replace(done, asks=True), 0, 1.0, [], [], {}, "x"))
    assert "every photo was scored and asked about or tried before" in asked
    assert "no new answers; to see those of before: qsit results --answers" in asked


def test_times_of_other_zones_are_given_in_utc() -> None:
    assert formatting.utc(datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))) == "2025-12-31T23:00:00.000000Z"


def test_the_demo_model_is_called_one_wherever_its_scores_appear() -> None:
    assert export.write_results([replace(RESULT, model="demo")], "paths", "0-1", io.StringIO())
    assert not export.write_results([RESULT], "paths", "0-1", io.StringIO())
    lines = list(summary.summary(replace(PROGRESS, model="demo"), 5, 1.0, [RESULT], [], {}, "sqlite:///x"))
    assert "no substitute" in lines[-1]


def test_the_summary_counts_and_points_on() -> None:
    words = "\n".join(summary.summary(PROGRESS, 1087, 10.0, [RESULT], [], {Reason.CORRUPT: 10}, "sqlite:///x"))

    assert "1,200 photos: 1,087 scored, 100 skipped" in words
    assert "10 corrupt; see: qsit failures 7" in words
    assert "1.1e+02" not in words
    assert "109 a second" in words


@pytest.mark.parametrize(
    ("allowed", "failed", "tolerated"),
    [("0", 0, True), ("0", 1, False), ("3", 3, True), ("1%", 10, True), ("1%", 11, False)],
)
def test_failures_within_what_is_allowed(allowed: str, failed: int, tolerated: bool) -> None:
    progress = replace(PROGRESS, scored=1000 - failed, failed=failed, max_failed=allowed)

    assert progress.tolerated is tolerated
