"""
A worker whose model needs no torch: `python -m tests.support.null_worker`.

All else is real: Celery, its processes, the ledger, reading and decoding. The processes of the pool import this module
as their main module, and so get the same model.
"""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np
from PIL import Image

from qsit.questions import Answer, Question
from qsit.rating import Score, score_of
from worker.inference.tiles import Prepared

DEADLY = (255, 0, 254)
"""A photo of this colour alone kills the process that cuts it."""

ENDLESS = (0, 255, 253)
"""Cutting a photo of this colour alone never ends."""

FREEZING = (254, 0, 255)
"""Cutting a photo of this colour alone never ends, and holds the interpreter's lock."""

SLOW = (253, 255, 0)
"""Cutting a photo of this colour alone takes half a second."""

TOKENS = 1024
"""The tokens of every photo: with QSIT_BATCH_TOKENS=8192, a batch has eight."""


class QSit:
    """Scores a photo by the mean of its pixels. A batch takes NULL_BATCH_S seconds, noted in the file NULL_LOG."""

    batch_tokens = 8192

    @classmethod
    def load(cls, model: str, *, device: str = "cpu", dtype: str | None = None, revision: str | None = None) -> "QSit":
        return cls()

    def prepare(self, image: Image.Image) -> Prepared:
        pixels = np.asarray(image)
        if (pixels == FREEZING).all():
            re.fullmatch("(a|a)*b", "a" * 80)  # does not release the interpreter, and never ends
        if (pixels == DEADLY).all():
            os.kill(os.getpid(), signal.SIGKILL)
        while (pixels == ENDLESS).all():
            time.sleep(60)
        if (pixels == SLOW).all():
            time.sleep(0.5)
        return Prepared(pixels[None], *image.size, TOKENS)

    def upload(self, images: Sequence[Prepared]) -> Sequence[Prepared]:
        return images

    def score(self, images: Sequence[Prepared]) -> list[Score]:
        began = time.monotonic()
        time.sleep(float(os.environ.get("NULL_BATCH_S", "0.02")))
        if "torch" in sys.modules:
            raise RuntimeError("the null model has imported torch")
        scores = [score_of((float(image.tiles.mean()) / 64, 0.0, 0.0, 0.0, 0.0)) for image in images]
        if "NULL_LOG" in os.environ:
            with open(os.environ["NULL_LOG"], "a") as log:
                print(os.getpid(), began, time.monotonic(), len(images), file=log)
        return scores

    def look(
        self, images: Sequence[Prepared], questions: Sequence[Question], *, asks: Callable[[int, Score], Sequence[int]]
    ) -> list[tuple[Score, list[Answer]]]:
        """Answer a question by its text and the score, or by its first choice."""

        def answer(question: Question, score: Score) -> Answer:
            if question.choices:
                rest = [0.0] * (len(question.choices) - 1)
                return Answer(question.choices[0], probabilities=(1.0, *rest))
            return Answer(f"{question.text} {score.value:.4f}")

        scores = self.score(images)
        return [
            (score, [answer(questions[number], score) for number in asks(place, score)])
            for place, score in enumerate(scores)
        ]


def default_dtype(device: str) -> str:
    return "float32"


if __name__ in ("__main__", "__mp_main__"):  # not where the colours alone are imported
    qsit = ModuleType("worker.qsit")
    qsit.__dict__.update(QSit=QSit, default_dtype=default_dtype)
    sys.modules["worker.qsit"] = qsit
    if "NULL_FROZEN_S" in os.environ:
        from worker import heartbeat

        heartbeat.FROZEN_S = heartbeat.STALLED_S = float(os.environ["NULL_FROZEN_S"])

if __name__ == "__main__":
    from worker.__main__ import main

    if "NULL_LOOP_BUG" in os.environ:
        from worker.consumer import Consumer

        Consumer.loop = lambda *_: {}["a bug in the loop"]  # in place of Celery's

    main()
