"""Words and formats."""

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from models.queries import Progress, Result
from models.states import JobState, Reason
from producer import report

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
    assert report.scaled(0.25, scale) == words


def test_json_has_scores_of_0_to_1_whatever_the_scale() -> None:
    output = io.StringIO()

    report.write_results([RESULT], "jsonl", "0-100", output)

    row = json.loads(output.getvalue())
    assert row["score"] == 0.25
    assert row["scored_at"] == "2026-01-02T03:04:05.000678Z"
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert max(row["probabilities"], key=row["probabilities"].get) == "Bad"


def test_csv_can_be_read_back() -> None:
    output = io.StringIO()

    report.write_results([RESULT], "csv", "1-5", output)

    (row,) = csv.DictReader(io.StringIO(output.getvalue()))
    assert (row["uri"], row["score"], row["rating"]) == ("file:///p/a%20b.jpg", "2.000", "Bad")


def test_people_read_paths() -> None:
    output = io.StringIO()

    report.write_results([RESULT], "paths", "0-1", output)
    report.write_results([RESULT], "table", "0-1", output)

    lines = output.getvalue().splitlines()
    assert lines[0] == "/p/a b.jpg"
    assert lines[-1].split() == ["0.2500", "Bad", "/p/a", "b.jpg"]


def test_times_of_other_zones_are_given_in_utc() -> None:
    assert report.utc(datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))) == "2025-12-31T23:00:00.000000Z"


def test_the_demo_model_is_called_one_wherever_its_scores_appear() -> None:
    assert report.write_results([replace(RESULT, model="demo")], "paths", "0-1", io.StringIO())
    assert not report.write_results([RESULT], "paths", "0-1", io.StringIO())
    lines = list(report.summary(replace(PROGRESS, model="demo"), 5, 1.0, [RESULT], [], {}, "sqlite:///x"))
    assert "mean nothing" in lines[-1]


def test_the_summary_counts_and_points_on() -> None:
    words = "\n".join(report.summary(PROGRESS, 1087, 10.0, [RESULT], [], {Reason.CORRUPT: 10}, "sqlite:///x"))

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
