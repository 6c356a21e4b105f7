"""Results with their answers in every format."""

import csv
import io
import json
import re
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from models.db import reading
from models.queries.answers import AnswerRecord
from models.queries.results import Result
from producer import export
from qsit.questions import LEVELS, Answer
from tests.producer.test_cli import README
from tests.producer.test_formatting import RESULT
from tests.support.asking import ASKING, SHARP, WHY, answer_to, score_and_answer
from tests.support.ledger import listed, photos
from tests.support.programs import QSIT, environment, run

NASTY = 'He said "sharp", 也许\r\n\nor not;\x1b[31m red\u202e\u3000\x07'
ANSWERED = replace(
    RESULT,
    answers=(
        AnswerRecord(
            name="sharpness", question="How sharp is it?", choices=("low", "high"),
            answer=Answer("low", False, (0.75, 0.25)), dtype="float16", job=8, answered_at=RESULT.scored_at,
        ),
        AnswerRecord(
            name="Why?", question="Why?", choices=(), answer=Answer(NASTY, True), dtype="float16", job=9,
            answered_at=RESULT.scored_at,
        ),
    ),
)  # fmt: skip


def test_json_has_scores_of_0_to_1_whatever_the_scale() -> None:
    output = io.StringIO()

    export.write_results([RESULT], "jsonl", "0-100", output)

    row = json.loads(output.getvalue())
    assert row["score"] == 0.25
    assert row["scored_at"] == "2026-01-02T03:04:05.000678Z"
    assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert max(row["probabilities"], key=row["probabilities"].get) == "Bad"


def test_csv_can_be_read_back() -> None:
    output = io.StringIO()

    export.write_results([RESULT], "csv", "1-5", output)

    (row,) = csv.DictReader(io.StringIO(output.getvalue()))
    assert (row["uri"], row["score"], row["rating"]) == ("file:///p/a%20b.jpg", "2.000", "Bad")


def test_people_read_paths() -> None:
    output = io.StringIO()

    export.write_results([RESULT], "paths", "0-1", output)
    export.write_results([RESULT], "table", "0-1", output)

    lines = output.getvalue().splitlines()
    assert lines[0] == "/p/a b.jpg"
    assert lines[-1].split() == ["0.2500", "Bad", "/p/a", "b.jpg"]


def written(form: str, results: list[Result], questions: list[str] | None) -> str:
    output = io.StringIO(newline="")
    export.write_results(results, form, "0-1", output, questions)
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


def test_the_program_writes_answers_in_any_language_wherever_it_is(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    listed(engine, photos(3), replace(ASKING, ask_below=0.5))
    score_and_answer(
        engine,
        lambda uri: 0.9 if "0002" in uri else 0.1,
        lambda asked: Answer(NASTY) if asked == WHY else answer_to(asked),
    )

    done = subprocess.run(
        [QSIT, "results", "--answers", "--format", "csv"],
        env=environment(database_url, {"PYTHONIOENCODING": "ascii"}), capture_output=True, check=True,
    )  # fmt: skip
    run("results", "--answers", "--format", "csv", "--output", f"{tmp_path}/file", database_url=database_url)

    assert done.stdout == (tmp_path / "file").read_bytes()
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode(), newline="")))
    assert [(row["answer: overall"], row["answer: sharpness"]) for row in rows] == [(NASTY, "low")] * 2 + [("", "")]
    table = run("results", "--answers", "--job", "1", database_url=database_url).stdout
    assert table.count("overall: He said") == table.count("sharpness: low") == 2
    lines = run("results", "--answers", "--format", "jsonl", database_url=database_url).stdout.splitlines()
    assert [len(json.loads(line)["answers"]) for line in lines] == [2, 2, 0]


def test_the_sql_of_the_readme_finds_what_it_says(engine: Engine) -> None:
    [example] = re.findall(r"```sql\n(.*?)```", README, re.S)
    listed(engine, photos(2), ASKING)
    asked = replace(SHARP, choices=LEVELS)
    listed(engine, photos(3), replace(ASKING, key="levels", questions=(asked,)))
    score_and_answer(engine, answer=lambda each: Answer("acceptable" if each == asked else "low", probabilities=(1.0,)))
    with reading(engine) as connection:
        rows = connection.execute(text(example)).all()

    assert [row.answer for row in rows] == ["low", "low"]
