"""What jobs ask and what models answer: how it is stored, and found again when the same is asked."""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from models.claims import Claim
from models.db import sanitize_text
from models.dialects import Ids, one_of, overwriting
from models.tables import AnswerRow, JobQuestionRow, QuestionRow
from qsit.questions import Answer, Question, check_size


def keep_questions(connection: Connection, job_id: int, questions: Sequence[Question]) -> None:
    """
    Store the questions of a job. Questions with the same text and choices are one; the latest name counts.

    Raises UsageError when a question is too long.
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
    """Return the questions of a job by id, in the order given."""
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
    """Return which of the questions are answered already, by image. Without questions, the database is not asked."""
    if not question_ids:
        return {}
    asked = {"ids": list(image_ids), "scorer": scorer_id, "questions": list(question_ids)}
    found = defaultdict(set)
    for image_id, question_id in connection.execute(_ANSWERED, asked):
        found[image_id].add(question_id)
    return {image_id: frozenset(ids) for image_id, ids in found.items()}


_WRITE = {dialect.dialect.name: overwriting(dialect.insert(AnswerRow)) for dialect in (postgresql, sqlite)}


def write_answers(connection: Connection, claim: Claim, found: Mapping[tuple[int, int], tuple[Answer, str]]) -> None:
    """
    Write answers, replacing earlier ones. The caller holds the lease.

    found: answer and dtype, by image and question.
    """
    shared = {"scorer_id": claim.scorer_id, "job_id": claim.job_id, "answered_at": datetime.now(UTC)}
    rows = [
        {
            "image_id": image_id,
            "question_id": question_id,
            "text": sanitize_text(answer.text),
            "cut": answer.cut,
            "probabilities": json.dumps(answer.probabilities) if answer.probabilities else None,
            "dtype": dtype,
            **shared,
        }
        for (image_id, question_id), (answer, dtype) in sorted(found.items())  # in one order for all, as scores
    ]
    connection.execute(_WRITE[connection.dialect.name], rows)
