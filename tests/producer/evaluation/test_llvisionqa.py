"""The questions of LLVisionQA: reading them, asking them, and counting right answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from producer.cli.main import run
from producer.evaluation.llvisionqa import Item, Tally, read_items
from producer.evaluation.report import QuestionSkip, Skipped
from qsit.errors import SourceError
from qsit.questions import Question
from tests.support.paths import EXAMPLES
from worker.imaging.decode import decode
from worker.qsit import QSit

ENTRY: dict[str, Any] = {
    "img_path": "cat.jpg",
    "type": 2,
    "concern": 0,
    "question": "How is the sharpness of this image?",
    "candidates": ["Good", "Fair", "Very poor"],
    "correct_ans": "Fair",
}
"""An entry like those of the published files."""


def write(folder: Path, entries: object) -> str:
    file = folder / "llvisionqa.json"
    file.write_text(json.dumps(entries))
    return str(file)


def read(folder: Path, entries: object) -> tuple[list[Item], dict[str, int]]:
    skipped = Skipped(QuestionSkip, "question")
    items = read_items(write(folder, entries), skipped)
    return items, {reason: number for reason, number in skipped.counts().items() if number}


def test_an_entry_becomes_a_question_with_its_choices_listed(tmp_path: Path) -> None:
    (item,), skipped = read(tmp_path, [ENTRY | {"unknown": [1]}])

    assert item.prompt == Question("", "How is the sharpness of this image?\nA. Good\nB. Fair\nC. Very poor")
    assert (item.image, item.right, item.kinds) == ("cat.jpg", 1, {"type": "2", "concern": "0"})
    assert skipped == {}


def test_unusable_entries_are_skipped_and_counted(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"img_path": " "},
        {"question": None},
        {"question": " "},
        {"candidates": "Fair"},
        {"candidates": []},
        {"candidates": [1, "Fair"]},
        {"candidates": ["Fair"] * 27},
    ]
    number = {"img_path": 3, "question": "?", "candidates": ["a"], "correct_ans": "a"}
    unreadable = [7, {}, number, *(ENTRY | changed for changed in changes)]
    without_key = [ENTRY | {"correct_ans": None}, ENTRY | {"correct_ans": ""}]
    not_listed = [ENTRY | {"correct_ans": "Excellent"}, ENTRY | {"correct_ans": ["Fair"]}, ENTRY | {"correct_ans": 1}]

    items, skipped = read(tmp_path, [*unreadable, *without_key, ENTRY, *not_listed])

    assert len(items) == 1
    assert skipped == {"unreadable": 10, "no_key": 2, "key_not_listed": 3}


@pytest.mark.parametrize("content", [b'{"a": 1}', b"no json", b"[" * 100_000, b"\xff\xfe"])
def test_a_file_that_is_not_a_json_list_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "q.json").write_bytes(content)

    with pytest.raises(SourceError, match="cannot read the questions"):
        read_items(str(tmp_path / "q.json"), Skipped(QuestionSkip, "question"))


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("B", 1),
        ("B.", 1),
        ("Fair", 1),
        ("fair", 1),
        ("b", 1),
        (" FAIR \n", 1),
        ("A", 0),
        ("c.", 2),
        ("very poor", 2),
        ("B. Fair", None),
        ("Fair.", None),
        ("D", None),
        ("", None),
        ("The sharpness is fair", None),
        ("poor", None),
    ],
)
def test_a_reply_names_a_choice_by_letter_or_words(tmp_path: Path, reply: str, choice: int | None) -> None:
    (item,), _ = read(tmp_path, [ENTRY])

    assert item.find_choice(reply) == choice


def test_right_answers_are_counted_by_kind(tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [{"type": 0}, {"type": 0}, {"type": 2}, {"type": None, "concern": "x"}]
    items, _ = read(tmp_path, [ENTRY | changed for changed in kinds])
    tally = Tally()
    assert tally.accuracy is None

    for item, reply in zip(items, ["B", "A", "fair", "who knows"], strict=True):
        tally.add(item, reply)

    assert (tally.asked, tally.right, tally.unclear, tally.accuracy) == (4, 2, 1, 0.5)
    assert tally.by_kind() == {
        "type": {"0": {"n": 2, "accuracy": 0.5}, "2": {"n": 1, "accuracy": 1.0}},
        "concern": {"0": {"n": 3, "accuracy": 2 / 3}, "x": {"n": 1, "accuracy": 0.0}},
    }


def test_the_demo_model_answers_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    questions = [ENTRY | {"type": 0}, ENTRY | {"question": "Is it noisy?"}, ENTRY | {"img_path": "coffee.jpg"}]
    unusable = [
        {"img_path": "cat.jpg"},
        ENTRY | {"img_path": "gone.jpg"},
        ENTRY | {"img_path": f"{tmp_path}/broken.jpg"},
    ]
    file = write(tmp_path, [*questions, *unusable])
    arguments = ["evaluate", "--llvisionqa", file, "--images", str(EXAMPLES), "--model", "demo", "--device", "cpu"]

    assert run([*arguments, "--format", "json"]) == 0

    found = json.loads(capfd.readouterr().out)
    model, tally = QSit.load("demo"), Tally()
    for item in read(tmp_path, questions)[0]:
        prepared = model.prepare(decode((EXAMPLES / item.image).read_bytes(), max_pixels=10**9))
        [(_, [answer])] = model.look([prepared], [item.prompt])
        tally.add(item, answer.text)
    assert (found["n"], found["right"], found["unclear"]) == (3, tally.right, tally.unclear)
    assert (found["accuracy"], found["by"]) == (tally.accuracy, tally.by_kind())
    assert {reason: n for reason, n in found["left_out"].items() if n} == {"unreadable": 1, "missing": 1, "broken": 1}
    assert (found["model"], found["published"]["q-sit-mini"]) == ("demo", 0.6488)


def test_people_read_a_table_and_what_was_skipped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, [ENTRY | {"img_path": "gone.jpg"}, ENTRY, ENTRY])

    arguments = ["--images", str(EXAMPLES), "--model", "demo", "--device", "cpu", "--limit", "2"]
    assert run(["evaluate", "--llvisionqa", file, *arguments]) == 0

    printed = capfd.readouterr()
    out = printed.out.splitlines()
    assert out[2].split()[:2] == ["here", "1"]
    assert out[-2:] == ["q-sit-mini, published             64.88 %", "q-sit, published                  75.65 %"]
    assert "1 question skipped (photo not found): gone.jpg" in printed.err


@pytest.mark.parametrize(
    ("entries", "options", "status", "words"),
    [
        ([], [], 1, "no question could be asked"),
        ([ENTRY | {"img_path": "gone.jpg"}], [], 1, "1 question skipped (photo not found): gone.jpg"),
        ([ENTRY], ["--images", "s3://bucket"], 2, "must be a folder"),
        ([ENTRY], ["--images", str(EXAMPLES), "--device", "cuda:7"], 2, "--device cuda:7: found"),
        ([ENTRY], ["--images", str(EXAMPLES), "--revision", "other"], 1, "leave --revision out"),
        ([ENTRY], ["--images", str(EXAMPLES), "--model", "/no/model"], 1, "there is no model folder /no/model"),
    ],
)
def test_a_run_without_questions_fails_with_a_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], entries: object, options: list[str], status: int, words: str
) -> None:
    assert run(["evaluate", "--llvisionqa", write(tmp_path, entries), "--model", "demo", *options]) == status

    assert words in capfd.readouterr().err
