"""A library that has one of everything that the reference describes."""

from dataclasses import replace

import pytest
from sqlalchemy import Engine

from models.claims import Failed
from models.ledger import leases, workers
from models.tables import WorkerRow
from qsit.questions import LEVELS, Answer, Question
from qsit.states import Reason, WorkerState
from tests.support.ledger import HERE, SPEC, claimed, good, listed, photos

SHARP = Question("sharpness", "How sharp is it?", LEVELS)


@pytest.fixture
def library(engine: Engine) -> Engine:
    """A photo with an answer, one with another answer, one that failed, and a live worker."""
    listed(engine, photos(3), replace(SPEC, name="night", questions=(SHARP,)))
    claim = claimed(engine)
    (question,) = claim.questions
    low, fine, broken = (item.image_id for item in claim.items)
    answers = {
        low: Answer("low", probabilities=(0.2, 0.5, 0.2, 0.1)),
        fine: Answer("acceptable", probabilities=(0.1, 0.2, 0.5, 0.2)),
    }
    found = [replace(good(image), answers={question: answers[image]}) for image in (low, fine)]
    leases.record(engine, claim, [*found, Failed(broken, Reason.CORRUPT, "file is truncated")], 60)
    row = WorkerRow(
        owner=HERE, broker="", model="demo", revision="r1", device="cpu", dtype="float32", state=WorkerState.READY
    )
    workers.register(engine, row)
    return engine
