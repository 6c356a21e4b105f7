"""The questions of LLVisionQA: reading, asking, counting; with the tiny model, and with one that fails."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from producer.cli.main import run
from producer.evaluation import ask, llvisionqa
from producer.evaluation.answers import REASONS
from producer.evaluation.llvisionqa import Item, Tally
from producer.evaluation.skipped import LeftOut
from qsit.errors import CheckpointError, ImageError, SourceError
from qsit.questions import Answer, Question, render_prompt
from qsit.rating import Score
from tests.support.paths import EXAMPLES
from worker.imaging.decode import decode
from worker.inference.tiles import Prepared
from worker.qsit import QSit

ENTRY: dict[str, Any] = {
    "img_path": "cat.jpg",
    "type": 2,
    "concern": 0,
    "question": "How is the sharpness of this image?",
    "candidates": ["Good", "Fair", "Very poor"],
    "correct_ans": "Fair",
}
"""As in the published files."""


def written(folder: Path, entries: object) -> str:
    file = folder / "llvisionqa.json"
    file.write_text(json.dumps(entries))
    return str(file)


def read(folder: Path, entries: object) -> tuple[list[Item], dict[str, int]]:
    left_out = LeftOut(REASONS, "question")
    items = llvisionqa.read(written(folder, entries), left_out)
    return items, {reason: number for reason, number in left_out.counts().items() if number}


def test_an_entry_is_a_question_with_its_choices_listed(tmp_path: Path) -> None:
    (item,), left_out = read(tmp_path, [ENTRY | {"unknown": [1]}])

    assert item.asked == Question("", "How is the sharpness of this image?\nA. Good\nB. Fair\nC. Very poor")
    assert (item.image, item.right, item.kinds) == ("cat.jpg", 1, {"type": "2", "concern": "0"})
    assert left_out == {}


def test_entries_that_are_no_questions_are_counted(tmp_path: Path) -> None:
    unreadable: list[object] = [
        7,
        {},
        {"image": 3, "question": "?", "candidates": ["a"], "correct_ans": "a"},
        *(ENTRY | changed for changed in (
            {"img_path": " "}, {"question": None}, {"question": " "}, {"candidates": "Fair"}, {"candidates": []},
            {"candidates": [1, "Fair"]}, {"candidates": ["Fair"] * 27},
        )),
    ]  # fmt: skip
    without_key = [ENTRY | {"correct_ans": None}, ENTRY | {"correct_ans": ""}]
    not_listed = [ENTRY | {"correct_ans": "Excellent"}, ENTRY | {"correct_ans": ["Fair"]}, ENTRY | {"correct_ans": 1}]

    items, left_out = read(tmp_path, [*unreadable, *without_key, ENTRY, *not_listed])

    assert len(items) == 1
    assert left_out == {"unreadable": 10, "no_key": 2, "key_not_listed": 3}


@pytest.mark.parametrize("content", [b'{"a": 1}', b"no json", b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_list_is_told_in_a_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "q.json").write_bytes(content)

    with pytest.raises(SourceError, match="cannot read the questions"):
        llvisionqa.read(str(tmp_path / "q.json"), LeftOut(REASONS, "question"))


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("B", 1), ("B.", 1), ("Fair", 1), ("fair", 1), ("b", 1), (" FAIR \n", 1), ("A", 0), ("c.", 2), ("very poor", 2),
        ("B. Fair", None), ("Fair.", None), ("D", None), ("", None), ("The sharpness is fair", None), ("poor", None),
    ],
)  # fmt: skip
def test_a_reply_is_a_letter_a_letter_with_a_dot_or_the_words(tmp_path: Path, reply: str, choice: int | None) -> None:
    (item,), _ = read(tmp_path, [ENTRY])

    assert item.choice_of(reply) == choice


def test_right_answers_are_counted_by_kind(tmp_path: Path) -> None:
    kinds = [{"type": 0}, {"type": 0}, {"type": 2}, {"type": None, "concern": "x"}]
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


class Failing:
    """Answers with the question in capitals; fails on questions that say so, and on batches that are too large."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.batches: list[int] = []

    def prepare(self, image: Any) -> Prepared:
        return Prepared(np.zeros((1, 1, 1, 3), np.uint8), image.width, image.height, 100)

    def look(
        self,
        images: Sequence[Prepared],
        questions: Sequence[str | Question],
        *,
        asks: Callable[[int, Score], Sequence[int]] | None = None,
    ) -> list[tuple[Score, list[Answer]]]:
        self.batches.append(len(images))
        texts = [question.text for question in questions if isinstance(question, Question)]
        if len(images) > self.most or "too large" in texts:
            raise MemoryError("no room")
        if "not finite" in texts:
            raise ValueError("the model gave no finite rating")
        if "odd" in texts:
            raise RuntimeError
        if "<image>" in texts:
            raise CheckpointError("a question holds the sign for an image")
        score = Score(0.5, (), ())
        assert asks is not None
        return [(score, [Answer(texts[at].upper()) for at in asks(place, score)]) for place in range(len(images))]


def ask_all(model: Failing, asked: list[tuple[Path, Question]], batch_tokens: int) -> dict[int, str]:
    answers = ask.ask(
        model, asked, batch_tokens=batch_tokens, loaders=2, max_pixels=10**8, as_stored=False
    )  # fmt: skip
    return {place: f"{answer.reason}" if isinstance(answer, ImageError) else answer.text for place, answer in answers}


def test_what_fails_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    texts = ["a", "b", "too large", "c", "not finite", "d", "<image>", "e", "odd"]
    asked = [(EXAMPLES / "cat.jpg", Question("", text)) for text in texts]
    asked[1:1] = [(tmp_path / "broken.jpg", Question("", "x")), (tmp_path / "gone.jpg", Question("", "x"))]

    found = ask_all(Failing(most=3), asked, batch_tokens=1000)

    assert [found[place] for place in range(11)] == [
        "A", "not_an_image", "unreadable", "B", "out_of_memory", "C", "model_error", "D", "model_error", "E",
        "model_error",
    ]  # fmt: skip


def test_batches_are_cut_by_tokens() -> None:
    asked = [(EXAMPLES / "cat.jpg", Question("", str(number))) for number in range(7)]

    assert ask_all(model := Failing(most=9), asked, batch_tokens=300) == {number: str(number) for number in range(7)}
    assert model.batches == [3, 3, 1]
    assert ask_all(model := Failing(most=9), asked, batch_tokens=1) == {number: str(number) for number in range(7)}
    assert model.batches == [1] * 7
    assert ask_all(model := Failing(most=9), [], batch_tokens=1) == {}


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_told(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr(ask, "PLAIN_LINES_S", 0)
    console = Console(file=(output := io.StringIO()), force_terminal=terminal, width=100)

    with ask.progress(console, 2000) as show:
        show(1)
        show(1000)

    assert ("1000/2000" if terminal else "1 of 2,000 asked\n1,000 of 2,000 asked") in output.getvalue()


def briefly(item: Item) -> Question:
    """As it is asked, but for a short answer: random weights never come to an end."""
    return Question("", render_prompt(item.question), max_new_tokens=8)


def test_the_tiny_model_is_asked_each_question_about_its_own_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Counted are the replies that the model gives to one photo and one question at a time."""
    names = ["cat.jpg", "coffee.jpg", "rocket.jpg"]
    entries = [ENTRY | {"img_path": f"{'sub/' * place}{name}", "type": place} for place, name in enumerate(names)]
    entries += [ENTRY | {"question": "Is it noisy?"}, ENTRY | {"img_path": "gone.jpg"}, {"img_path": "cat.jpg"}]
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    entries += [ENTRY | {"img_path": str(tmp_path / "broken.jpg")}]
    file = written(tmp_path, entries)
    heard: dict[tuple[str, str], str] = {}
    add = Tally.add

    def hear(tally: Tally, item: Item, reply: str) -> None:
        heard[Path(item.image).name, item.asked.text] = reply
        add(tally, item, reply)

    monkeypatch.setattr(Tally, "add", hear)
    monkeypatch.setattr(Item, "asked", property(briefly))
    arguments = ["evaluate", "--llvisionqa", file, "--images", str(EXAMPLES), "--model", "demo", "--device", "cpu"]

    assert run([*arguments, "--format", "json"]) == 0

    words = capfd.readouterr()
    found = json.loads(words.out)
    model = QSit.load("demo")
    right = unclear = 0
    items, _ = read(tmp_path, [entry for entry in entries if "question" in entry])
    for item in items:
        if (photo := EXAMPLES / Path(item.image).name).exists():
            prepared = model.prepare(decode(photo.read_bytes(), max_pixels=10**9))
            ((_, (answer,)),) = model.look([prepared], [item.asked])
            assert heard.pop((photo.name, item.asked.text)) == answer.text
            right += item.choice_of(answer.text) == item.right
            unclear += item.choice_of(answer.text) is None
    assert heard == {}
    assert (found["n"], found["right"], found["unclear"], found["accuracy"]) == (4, right, unclear, right / 4)
    assert {kind: figures["n"] for kind, figures in found["by"]["type"].items()} == {"0": 1, "1": 1, "2": 2}
    assert {reason: n for reason, n in found["left_out"].items() if n} == {"unreadable": 1, "missing": 1, "broken": 1}
    assert (found["model"], found["published"]["q-sit-mini"]) == ("demo", 0.6488)
    assert "1 question left out, the image is not there: gone.jpg" in words.err
    assert f"1 question left out, the image cannot be read: {tmp_path}/broken.jpg (" in words.err

    assert run([*arguments, "--limit", "2"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out[2].split()[:2] == ["here", "2"]
    assert out[-2:] == ["q-sit-mini, published             64.88 %", "q-sit, published                  75.65 %"]


@pytest.mark.parametrize(
    ("entries", "options", "status", "words"),
    [
        ([], [], 1, "no question could be asked"),
        ([ENTRY | {"img_path": "gone.jpg"}], [], 1, "1 question left out, the image is not there: gone.jpg"),
        ([ENTRY], ["--images", "s3://b"], 2, "photos in a folder"),
        ([ENTRY], ["--images", str(EXAMPLES), "--device", "cuda:7"], 2, "--device cuda:7: found"),
        ([ENTRY], ["--images", str(EXAMPLES), "--revision", "other"], 1, "leave --revision out"),
        ([ENTRY], ["--images", str(EXAMPLES), "--model", "/no/model"], 1, "there is no model folder /no/model"),
    ],
)
def test_what_cannot_be_asked_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], entries: object, options: list[str], status: int, words: str
) -> None:
    assert run(["evaluate", "--llvisionqa", written(tmp_path, entries), "--model", "demo", *options]) == status

    assert words in capfd.readouterr().err
