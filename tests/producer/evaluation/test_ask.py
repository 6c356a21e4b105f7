"""Asking each photo its own question: with the demo model, and with a model that fails."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from producer.evaluation.ask import AskedModel, ask_all
from qsit.errors import CheckpointError, ImageError
from qsit.questions import Answer, Question
from qsit.rating import Score
from tests.support.paths import EXAMPLES
from worker.imaging.decode import decode
from worker.inference.tiles import Prepared
from worker.qsit import QSit

CAT = str(EXAMPLES / "cat.jpg")


class FailingModel:
    """Answers with the question in capitals. Fails on some questions, and on batches over `largest`."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.batches: list[int] = []

    def upload(self, images: Sequence[Prepared]) -> Sequence[Prepared]:
        return images

    def score(self, images: Sequence[Prepared]) -> list[Score]:
        raise AssertionError("every photo has a question")

    def prepare(self, image: Any) -> Prepared:
        return Prepared(np.zeros((1, 1, 1, 3), np.uint8), image.width, image.height, 100)

    def look(
        self, images: Sequence[Any], questions: Sequence[Question], *, asks: Callable[[int, Score], Sequence[int]]
    ) -> list[tuple[Score, list[Answer]]]:
        self.batches.append(len(images))
        score = Score(0.5, (), ())
        asked = [[questions[at].text for at in asks(index, score)] for index in range(len(images))]
        texts = [text for some in asked for text in some]
        if len(images) > self.largest or "too large" in texts:
            raise MemoryError("no room")
        if "not finite" in texts:
            raise ValueError("the model gave no finite rating")
        if "no message" in texts:
            raise RuntimeError
        if "<image>" in texts:
            raise CheckpointError("the question contains the image token")
        return [(score, [Answer(text.upper()) for text in some]) for some in asked]


def ask(model: AskedModel, asked: list[tuple[str, Question]], batch_tokens: int) -> dict[int, str]:
    results = ask_all(model, asked, batch_tokens=batch_tokens, loaders=2, max_pixels=10**8, as_stored=False)
    return {index: f"{answer.reason}" if isinstance(answer, ImageError) else answer.text for index, answer in results}


def test_a_failure_costs_only_its_own_question(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    asked = [
        (CAT, "a"),
        (str(tmp_path / "broken.jpg"), "x"),
        (str(tmp_path / "gone.jpg"), "x"),
        (CAT, "b"),
        (CAT, "too large"),
        (CAT, "c"),
        (CAT, "not finite"),
        (CAT, "d"),
        (CAT, "<image>"),
        (CAT, "e"),
        (CAT, "no message"),
    ]

    found = ask(FailingModel(largest=3), [(path, Question("", text)) for path, text in asked], batch_tokens=1000)

    assert list(dict(sorted(found.items())).values()) == [
        "A",
        "not_an_image",
        "unreadable",
        "B",
        "out_of_memory",
        "C",
        "model_error",
        "D",
        "model_error",
        "E",
        "model_error",
    ]


def test_batches_keep_to_the_token_budget() -> None:
    asked = [(CAT, Question("", str(number))) for number in range(7)]
    answers = {number: str(number) for number in range(7)}

    assert ask(model := FailingModel(largest=9), asked, batch_tokens=300) == answers
    assert max(model.batches) <= 3
    assert sum(model.batches) == 7
    assert ask(model := FailingModel(largest=9), asked, batch_tokens=1) == answers
    assert model.batches == [1] * 7
    assert ask(model := FailingModel(largest=9), [], batch_tokens=1) == {}


def test_the_demo_model_is_asked_each_question_about_its_own_photo() -> None:
    model = QSit.load("demo")
    names, texts = ("cat.jpg", "coffee.jpg", "rocket.jpg", "cat.jpg"), ("Is it dark?", "Sharp?", "Noisy?", "Sharp?")
    asked = [
        (str(EXAMPLES / name), Question("", text, max_new_tokens=8)) for name, text in zip(names, texts, strict=True)
    ]

    found = ask(model, asked, batch_tokens=10**6)

    for index, (path, question) in enumerate(asked):
        prepared = model.prepare(decode(Path(path).read_bytes(), max_pixels=10**9))
        [(_, [answer])] = model.look([prepared], [question])
        assert found[index] == answer.text


def test_a_question_that_the_model_refuses_costs_no_other() -> None:
    asked = [(CAT, Question("", text, max_new_tokens=2)) for text in ("Is it dark?", "<image>", "Is it sharp?")]

    found = ask(QSit.load("demo"), asked, batch_tokens=10**6)

    assert [found[index] == "model_error" for index in range(3)] == [False, True, False]
