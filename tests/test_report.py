"""Words and formats."""

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from models.queries import Given, Progress, Result
from models.questions import Answer
from models.states import JobState, Reason
from producer import exports, report

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

NASTY = 'He said "sharp", 也许\r\n\nor not;\x1b[31m red\u202e\u3000\x07'
ANSWERED = replace(
    RESULT,
    answers=(
        Given(
            name="sharpness", question="How sharp is it?", choices=("low", "high"),
            answer=Answer("low", False, (0.75, 0.25)), dtype="float16", job=8, answered_at=RESULT.scored_at,
        ),
        Given(
            name="Why?", question="Why?", choices=(), answer=Answer(NASTY, True), dtype="float16", job=9,
            answered_at=RESULT.scored_at,
        ),
    ),
)  # fmt: skip


@pytest.mark.parametrize(("scale", "words"), [("0-1", "0.2500"), ("0-5", "1.250"), ("1-5", "2.000"), ("0-100", "25.0")])
def test_scales(scale: str, words: str) -> None:
    assert report.scaled(0.25, scale) == words


def test_json_has_scores_of_0_to_1_whatever_the_scale() -> None:
    output = io.StringIO()

    exports.write_results([RESULT], "jsonl", "0-100", output)

    row = json.loads(output.getvalue())
    assert row["score"] == 0.25
    assert row["scored_at"] == "2026-01-02T03:04:05.000678Z"
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert max(row["probabilities"], key=row["probabilities"].get) == "Bad"


def test_csv_can_be_read_back() -> None:
    output = io.StringIO()

    exports.write_results([RESULT], "csv", "1-5", output)

    (row,) = csv.DictReader(io.StringIO(output.getvalue()))
    assert (row["uri"], row["score"], row["rating"]) == ("file:///p/a%20b.jpg", "2.000", "Bad")


def test_people_read_paths() -> None:
    output = io.StringIO()

    exports.write_results([RESULT], "paths", "0-1", output)
    exports.write_results([RESULT], "table", "0-1", output)

    lines = output.getvalue().splitlines()
    assert lines[0] == "/p/a b.jpg"
    assert lines[-1].split() == ["0.2500", "Bad", "/p/a", "b.jpg"]


def written(form: str, results: list[Result], questions: list[str] | None) -> str:
    output = io.StringIO(newline="")
    exports.write_results(results, form, "0-1", output, questions)
    return output.getvalue()


def test_json_has_answers_when_asked_for() -> None:
    answered, bare = map(json.loads, written("jsonl", [ANSWERED, RESULT], []).splitlines())

    at = "2026-01-02T03:04:05.000678Z"
    assert answered["answers"] == [
        {"question": "sharpness", "text": "How sharp is it?", "answer": "low", "cut": False,
         "probabilities": {"low": 0.75, "high": 0.25}, "answered_at": at, "job": 8},
        {"question": "Why?", "text": "Why?", "answer": NASTY, "cut": True, "answered_at": at, "job": 9},
    ]  # fmt: skip
    assert bare["answers"] == []
    assert "answers" not in json.loads(written("jsonl", [ANSWERED], None))


def test_csv_has_a_column_for_each_question_whatever_is_answered() -> None:
    text = written("csv", [ANSWERED, RESULT], ["Why?", 'other, "one"', "sharpness"])

    answered, bare = csv.DictReader(io.StringIO(text, newline=""))
    assert list(answered)[-4:] == ["job", "answer: Why?", 'answer: other, "one"', "answer: sharpness"]
    assert (answered["answer: Why?"], answered["answer: sharpness"]) == (NASTY, "low")
    assert {answered['answer: other, "one"'], bare["answer: Why?"], bare["answer: sharpness"]} == {""}


def test_csv_has_the_newest_of_answers_with_one_name() -> None:
    old, _ = ANSWERED.answers
    new = replace(old, answer=Answer("high", False, (0.5, 0.5)), answered_at=old.answered_at + timedelta(seconds=1))

    [row] = csv.DictReader(io.StringIO(written("csv", [replace(RESULT, answers=(new, old))], ["sharpness"])))

    assert row["answer: sharpness"] == "high"


def test_a_table_has_answers_below_each_photo_in_one_line_each_and_nothing_that_a_terminal_obeys() -> None:
    lines = written("table", [ANSWERED, RESULT], []).split("\n")

    assert [line.strip() for line in lines[2:4]] == [
        "sharpness: low",
        'Why?: He said "sharp", 也许\\r\\n\\nor not;\\x1b[31m red\\u202e\u3000\\x07 [cut]',
    ]
    assert all(line.startswith(" " * 10) for line in lines[2:4])
    assert len(lines) == 6
    assert all(character.isprintable() or character == "\u3000" for line in lines for character in line)


def test_paths_are_paths_with_answers_too() -> None:
    assert written("paths", [ANSWERED], None) == "/p/a b.jpg\n"


def test_the_summary_has_the_scale_that_is_wanted_and_counts_answers() -> None:
    asking = replace(PROGRESS, asks=True)

    words = "\n".join(
        report.summary(asking, 1087, 10.0, [RESULT], [], {}, "sqlite:///x", "X=y qsit", scale="1-5", answers=2174)
    )

    assert "2.000  Bad" in words
    assert "100 skipped (have their score and answers)" in words
    assert "2,174 answers given; to see them: X=y qsit results --job 7 --answers" in words
    assert "answers" not in "\n".join(report.summary(PROGRESS, 1087, 10.0, [RESULT], [], {}, "sqlite:///x"))


def test_with_nothing_to_do_it_is_said_what_was_done_before() -> None:
    done = replace(PROGRESS, scored=0, failed=0)

    assert "every photo was scored or tried before" in "\n".join(report.summary(done, 0, 1.0, [], [], {}, "x"))
    asked = "\n".join(report.summary(replace(done, asks=True), 0, 1.0, [], [], {}, "x"))
    assert "every photo was scored and asked about or tried before" in asked
    assert "no new answers; to see those of before: qsit results --answers" in asked


def test_times_of_other_zones_are_given_in_utc() -> None:
    assert report.utc(datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))) == "2025-12-31T23:00:00.000000Z"


def test_the_demo_model_is_called_one_wherever_its_scores_appear() -> None:
    assert exports.write_results([replace(RESULT, model="demo")], "paths", "0-1", io.StringIO())
    assert not exports.write_results([RESULT], "paths", "0-1", io.StringIO())
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
