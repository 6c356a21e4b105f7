"""The answers about the photos of a page of results."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, bindparam, select

from models.db import reading
from models.dialects import Ids, one_of
from models.tables import AnswerRow, QuestionRow
from qsit.questions import Answer


@dataclass(frozen=True)
class AnswerRecord:
    """
    A stored answer.

    name: the question's latest name. question: its text. job: the job that asked.
    """

    name: str
    question: str
    choices: tuple[str, ...]
    answer: Answer
    dtype: str
    job: int
    answered_at: datetime


_ANSWERS = (
    select(*AnswerRow.__table__.columns, QuestionRow.name, QuestionRow.text.label("question"), QuestionRow.choices)
    .join(QuestionRow, QuestionRow.id == AnswerRow.question_id)
    .where(one_of(AnswerRow.image_id, bindparam("ids", type_=Ids())), AnswerRow.scorer_id == bindparam("scorer"))
    .order_by(AnswerRow.image_id, AnswerRow.question_id)
)


def answers_for(engine: Engine, image_ids: Sequence[int], scorer_id: int) -> dict[int, tuple[AnswerRecord, ...]]:
    """Return the answers about images, by image, in the order of their questions' ids."""
    with reading(engine) as connection:
        rows = connection.execute(_ANSWERS, {"ids": list(image_ids), "scorer": scorer_id}).all()
    found = defaultdict[int, list[AnswerRecord]](list)
    for row in rows:
        answer = Answer(row.text, row.cut, tuple(json.loads(row.probabilities or "[]")))
        choices = tuple(json.loads(row.choices))
        found[row.image_id].append(
            AnswerRecord(row.name, row.question, choices, answer, row.dtype, row.job_id, row.answered_at)
        )
    return {image_id: tuple(of_image) for image_id, of_image in found.items()}
