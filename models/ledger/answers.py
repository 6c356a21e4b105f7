"""What jobs ask and what is answered: how it is written down, and found again when the same is asked."""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, column, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from models.claims import Claim
from models.db import sanitize_text
from models.dialects import Ids, one_of, overwriting, rows_of
from models.tables import AnswerRow, JobQuestionRow, QuestionRow, Utc
from qsit.questions import Answer, Question, check_size


def keep_questions(connection: Connection, job_id: int, questions: Sequence[Question]) -> None:
    """
    Write down what a job asks. Questions that get the same answer are one, named as it was said last.

    Raises:
        UsageError: when a question is too long to be kept.
    """
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    rows = map(_row_of, questions)
    unique = {(row["text"], row["choices"], row["generation"]): row for row in rows}
    for position, row in enumerate(unique.values()):
        kept = (
            dialect.insert(QuestionRow)
            .values(row)
            .on_conflict_do_update(index_elements=["text", "choices", "generation"], set_={"name": row["name"]})
            .returning(QuestionRow.id)
        )
        question_id = connection.execute(kept).scalar_one()
        asked = {"job_id": job_id, "question_id": question_id, "position": position}
        connection.execute(insert(JobQuestionRow).values(asked))


def _row_of(question: Question) -> dict[str, Any]:
    choices = tuple(map(sanitize_text, question.choices))
    question = Question(sanitize_text(question.name), sanitize_text(question.text), choices, question.max_new_tokens)
    check_size(question)
    return {
        "name": question.name,
        "text": question.text,
        "choices": json.dumps(choices, ensure_ascii=False),
        "generation": question.generation,
        "max_new_tokens": question.max_new_tokens,
    }


_OF_JOB = (
    select(QuestionRow.id, QuestionRow.name, QuestionRow.text, QuestionRow.choices, QuestionRow.max_new_tokens)
    .join(JobQuestionRow, JobQuestionRow.question_id == QuestionRow.id)
    .where(JobQuestionRow.job_id == bindparam("job"))
    .order_by(JobQuestionRow.position)
)


def questions_of(connection: Connection, job_id: int) -> dict[int, Question]:
    """What a job asks, by id, in the order in which it was said."""
    return {
        row.id: Question(row.name, row.text, tuple(json.loads(row.choices)), row.max_new_tokens)
        for row in connection.execute(_OF_JOB, {"job": job_id})
    }


_ANSWERED = select(AnswerRow.image_id, AnswerRow.question_id).where(
    one_of(AnswerRow.image_id, bindparam("ids", type_=Ids())),
    AnswerRow.scorer_id == bindparam("scorer"),
    one_of(AnswerRow.question_id, bindparam("questions", type_=Ids())),
)


def answered(
    connection: Connection, image_ids: Sequence[int], scorer_id: int, question_ids: Collection[int]
) -> dict[int, frozenset[int]]:
    """Which of the questions have an answer already, by image; asks the database only if there are questions."""
    if not question_ids:
        return {}
    asked = {"ids": list(image_ids), "scorer": scorer_id, "questions": list(question_ids)}
    found = defaultdict(set)
    for image_id, question_id in connection.execute(_ANSWERED, asked):
        found[image_id].add(question_id)
    return {image_id: frozenset(ids) for image_id, ids in found.items()}


_SAME = ("scorer_id", "job_id", "answered_at")
_VARIES = [each for each in AnswerRow.__table__.columns if each.name not in _SAME]
_WRITE = overwriting(sqlite.insert(AnswerRow))
_WRITE_ALL = overwriting(
    postgresql.insert(AnswerRow).from_select(
        [*(each.name for each in _VARIES), *_SAME],
        select(
            rows_of("given", *(column(each.name, each.type) for each in _VARIES)),
            bindparam("scorer_id"),
            bindparam("job_id"),
            bindparam("answered_at", type_=Utc()),
        ),
    )
)


def write_answers(connection: Connection, claim: Claim, given: Mapping[tuple[int, int], tuple[Answer, str]]) -> None:
    """
    Write answers, in the place of those that were there. The caller holds the lease.

    given: by image and question, with the dtype.
    """
    rows = [
        {
            "image_id": image_id, "question_id": question_id, "text": sanitize_text(answer.text), "cut": answer.cut,
            "probabilities": json.dumps(answer.probabilities) if answer.probabilities else None, "dtype": dtype,
        }
        for (image_id, question_id), (answer, dtype) in sorted(given.items())  # in one order for all, as scores
    ]  # fmt: skip
    same = {"scorer_id": claim.scorer_id, "job_id": claim.job_id, "answered_at": datetime.now(UTC)}
    if connection.dialect.name == "postgresql":
        connection.execute(_WRITE_ALL, {"given": json.dumps(rows, ensure_ascii=False), **same})
    else:
        connection.execute(_WRITE, [{**row, **same} for row in rows])
