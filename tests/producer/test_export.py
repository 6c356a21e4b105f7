"""Results with their answers, and failures, in every format."""

import csv
import io
import json
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from models.queries.answers import AnswerRecord
from models.queries.failures import Failure
from models.queries.results import Result
from producer import export
from qsit.questions import Answer
from qsit.rating import WORDS
from qsit.sources.uris import uri_of
from qsit.states import Reason
from tests.support.asking import ASKING, WHY, answer_to, score_and_answer
from tests.support.ledger import listed, photos
from tests.support.programs import QSIT, environment, run
from tests.support.records import HOSTILE, RESULT

NASTY = 'He said "sharp", 也许\r\n\nor not;\x1b[31m red\u202e\u3000\x07'
ANSWERED = replace(
    RESULT,
    answers=(
        AnswerRecord(
            name="sharpness",
            question="How sharp is it?",
            choices=("low", "high"),
            answer=Answer("low", False, (0.75, 0.25)),
            dtype="float16",
            job=8,
            answered_at=RESULT.scored_at,
        ),
        AnswerRecord(
            name="Why?",
            question="Why?",
            choices=(),
            answer=Answer(NASTY, True),
            dtype="float16",
            job=9,
            answered_at=RESULT.scored_at,
        ),
    ),
)
HOSTILE_RESULT = replace(RESULT, uri=uri_of("/p/" + HOSTILE))
HOSTILE_FAILURE = Failure(HOSTILE_RESULT.uri, Reason.CORRUPT, f"cannot decode {HOSTILE}", 7)


def written(form: str, results: list[Result], questions: list[str] | None = None, scale: str = "0-1") -> str:
    output = io.StringIO(newline="")
    export.write_results(results, form, scale, output, questions)
    return output.getvalue()


def failures_as(form: str) -> str:
    output = io.StringIO(newline="")
    export.write_failures([HOSTILE_FAILURE], form, output)
    return output.getvalue()


def test_json_has_scores_of_0_to_1_on_every_scale() -> None:
    row = json.loads(written("jsonl", [RESULT], scale="1-5"))

    assert row["score"] == 0.25
    assert row["scored_at"] == "2026-01-02T03:04:05.000678Z"
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert max(row["probabilities"], key=row["probabilities"].get) == row["rating"] == "Bad"


def test_csv_and_json_have_the_same_fields() -> None:
    record = json.loads(written("jsonl", [RESULT]))
    (row,) = csv.DictReader(io.StringIO(written("csv", [RESULT])))

    probabilities = record.pop("probabilities")
    assert row.keys() == record.keys() | {word.lower() for word in probabilities}
    assert {name: row[name] for name in record} == {name: str(value) for name, value in record.items()} | {
        "score": "0.2500"
    }
    assert {word: float(row[word.lower()]) for word in WORDS} == pytest.approx(probabilities, abs=1e-6)


def test_csv_has_its_columns_in_a_fixed_order() -> None:
    [header, row] = csv.reader(io.StringIO(written("csv", [RESULT], scale="1-5")))

    assert header == [
        *("uri", "score", "rating", "excellent", "good", "fair", "poor", "bad"),
        *("model", "revision", "scored_at", "job", "procedure", "dtype", "version"),
    ]
    assert row[:3] == ["file:///p/a%20b.jpg", "2.000", "Bad"]


def test_tables_and_paths_have_paths() -> None:
    assert written("paths", [RESULT]) == "/p/a b.jpg\n"
    assert written("table", [RESULT]).splitlines()[-1].split() == ["0.2500", "Bad", "/p/a", "b.jpg"]


def test_a_table_shows_a_hostile_file_name_in_one_line_that_no_terminal_obeys() -> None:
    for table, rows in ((written("table", [HOSTILE_RESULT]), 2), (failures_as("table"), 1)):
        lines = table.removesuffix("\n").split("\n")
        assert len(lines) == rows
        assert all(line.isprintable() for line in lines)


def test_other_formats_give_a_hostile_file_name_back_as_it_is() -> None:
    assert written("paths", [HOSTILE_RESULT]) == f"/p/{HOSTILE}\n"
    assert json.loads(written("jsonl", [HOSTILE_RESULT]))["uri"] == HOSTILE_RESULT.uri
    [row] = csv.DictReader(io.StringIO(written("csv", [HOSTILE_RESULT]), newline=""))
    assert row["uri"] == HOSTILE_RESULT.uri
    for cells in (json.loads(failures_as("jsonl")), *csv.DictReader(io.StringIO(failures_as("csv"), newline=""))):
        assert (cells["uri"], cells["reason"]) == (HOSTILE_FAILURE.uri, "corrupt")
        assert cells["message"] == HOSTILE_FAILURE.message


def test_json_has_answers_when_asked_for() -> None:
    answered, bare = map(json.loads, written("jsonl", [ANSWERED, RESULT], []).splitlines())

    at = "2026-01-02T03:04:05.000678Z"
    assert answered["answers"] == [
        {
            "question": "sharpness",
            "text": "How sharp is it?",
            "answer": "low",
            "cut": False,
            "probabilities": {"low": 0.75, "high": 0.25},
            "answered_at": at,
            "job": 8,
        },
        {"question": "Why?", "text": "Why?", "answer": NASTY, "cut": True, "answered_at": at, "job": 9},
    ]
    assert bare["answers"] == []
    assert "answers" not in json.loads(written("jsonl", [ANSWERED], None))


def test_csv_has_a_last_column_for_each_question() -> None:
    text = written("csv", [ANSWERED, RESULT], ["Why?", 'other, "one"', "sharpness"])

    answered, bare = csv.DictReader(io.StringIO(text, newline=""))
    assert list(answered)[-4:] == ["version", "answer: Why?", 'answer: other, "one"', "answer: sharpness"]
    assert (answered["answer: Why?"], answered["answer: sharpness"]) == (NASTY, "low")
    assert {answered['answer: other, "one"'], bare["answer: Why?"], bare["answer: sharpness"]} == {""}


def test_csv_has_the_newest_answer_to_questions_with_the_same_name() -> None:
    old, _ = ANSWERED.answers
    new = replace(old, answer=Answer("high", False, (0.5, 0.5)), answered_at=old.answered_at + timedelta(seconds=1))

    [row] = csv.DictReader(io.StringIO(written("csv", [replace(RESULT, answers=(new, old))], ["sharpness"])))

    assert row["answer: sharpness"] == "high"


def test_a_table_has_each_answer_in_one_line_that_no_terminal_obeys() -> None:
    lines = written("table", [ANSWERED, RESULT], []).split("\n")

    assert [line.strip() for line in lines[2:4]] == [
        "sharpness: low",
        'Why?: He said "sharp", 也许\\r\\n\\nor not;\\x1b[31m red\\u202e\u3000\\x07 [cut]',
    ]
    assert all(line.startswith(" " * 10) for line in lines[2:4])
    assert len(lines) == 6
    assert all(character.isprintable() or character == "\u3000" for line in lines for character in line)


def test_paths_have_no_answers() -> None:
    assert written("paths", [ANSWERED], None) == "/p/a b.jpg\n"


def test_answers_in_any_language_are_written_in_any_locale(engine: Engine, database_url: str, tmp_path: Path) -> None:
    listed(engine, photos(3), replace(ASKING, ask_below=0.5))
    score_and_answer(
        engine,
        lambda uri: 0.9 if "0002" in uri else 0.1,
        lambda asked: Answer(NASTY) if asked == WHY else answer_to(asked),
    )

    done = subprocess.run(
        [QSIT, "results", "--answers", "--format", "csv"],
        env=environment(database_url, {"PYTHONIOENCODING": "ascii"}),
        capture_output=True,
        check=True,
    )
    run("results", "--answers", "--format", "csv", "--output", f"{tmp_path}/file", database_url=database_url)

    assert done.stdout == (tmp_path / "file").read_bytes()
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode(), newline="")))
    assert [(row["answer: overall"], row["answer: sharpness"]) for row in rows] == [(NASTY, "low")] * 2 + [("", "")]
    table = run("results", "--answers", "--job", "1", database_url=database_url).stdout
    assert table.count("overall: He said") == table.count("sharpness: low") == 2
    lines = run("results", "--answers", "--format", "jsonl", database_url=database_url).stdout.splitlines()
    assert [len(json.loads(line)["answers"]) for line in lines] == [2, 2, 0]
