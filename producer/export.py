"""Results with their answers, and failures, in every format."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from models.queries.answers import AnswerRecord
from models.queries.failures import Failure
from models.queries.results import Result
from producer.formatting import in_one_line, place, rating, row, scaled, utc
from qsit.checkpoints import DEMO
from qsit.rating import WORDS, score_of


def write_results(
    results: Iterable[Result], form: str, scale: str, output: IO[str], questions: Sequence[str] | None = None
) -> bool:
    """
    Write results in a format; whether any was made with the demo model.

    questions: the names that get a column in CSV; None where no answers are wanted.
    """
    demo = False
    writer = csv.writer(output)
    if form == "csv":
        columns = ["uri", "score", "rating", *map(str.lower, WORDS), "model", "revision", "scored_at", "job"]
        writer.writerow([*columns, *(f"answer: {name}" for name in questions or ())])
    elif form == "table":
        output.write(f"{'score':>8}  {'rating':9}  photo\n")
    for result in results:
        demo = demo or result.model == DEMO
        if form == "jsonl":
            output.write(json.dumps(result_record(result, with_answers=questions is not None)) + "\n")
        elif form == "csv":
            writer.writerow([*_cells(result, scale), *_answer_cells(result.answers, questions or ())])
        elif form == "paths":
            output.write(place(result.uri) + "\n")
        else:
            output.write(row(result, scale) + "\n")
            output.writelines(f"{line}\n" for line in _answer_lines(result.answers))
    return demo


def result_record(result: Result, *, with_answers: bool) -> dict[str, object]:
    """A result as JSON has it; its score is 0..1."""
    probabilities = score_of(result.logits).probabilities
    record = {
        "uri": result.uri,
        "score": result.score,
        "probabilities": dict(zip(WORDS, probabilities, strict=True)),
        "model": result.model,
        "revision": result.revision,
        "procedure": result.procedure,
        "dtype": result.dtype,
        "version": result.version,
        "scored_at": utc(result.scored_at),
        "job": result.job,
    }
    if with_answers:
        record["answers"] = [answer_record(given) for given in result.answers]
    return record


def answer_record(given: AnswerRecord) -> dict[str, object]:
    """An answer as JSON has it; its probabilities are by choice."""
    record: dict[str, object] = {
        "question": given.name, "text": given.question, "answer": given.answer.text, "cut": given.answer.cut,
    }  # fmt: skip
    if given.choices:
        record["probabilities"] = dict(zip(given.choices, given.answer.probabilities, strict=True))
    return record | {"answered_at": utc(given.answered_at), "job": given.job}


def _cells(result: Result, scale: str) -> Iterator[object]:
    yield from (result.uri, scaled(result.score, scale), rating(result))
    yield from (f"{probability:.6f}" for probability in score_of(result.logits).probabilities)
    yield from (result.model, result.revision, utc(result.scored_at), result.job)


def _answer_cells(answers: Sequence[AnswerRecord], questions: Sequence[str]) -> list[str]:
    """The answer to each question, the newest of those that have its name."""
    by_name = {given.name: given.answer.text for given in sorted(answers, key=lambda given: given.answered_at)}
    return [by_name.get(name, "") for name in questions]


def _answer_lines(answers: Sequence[AnswerRecord]) -> Iterator[str]:
    for given in answers:
        words = f"{in_one_line(given.name)}: {in_one_line(given.answer.text)}"
        yield f"{'':10}{words}{' [cut]' if given.answer.cut else ''}"


def write_failures(failures: Iterable[Failure], form: str, output: IO[str]) -> None:
    """Write failures in a format."""
    writer = csv.writer(output)
    if form == "csv":
        writer.writerow(["uri", "reason", "message", "job"])
    for failure in failures:
        cells = {"uri": failure.uri, "reason": str(failure.reason), "message": failure.message, "job": failure.job}
        if form == "jsonl":
            output.write(json.dumps(cells) + "\n")
        elif form == "csv":
            writer.writerow(cells.values())
        else:
            output.write(f"{failure.reason:14} {place(failure.uri)}: {failure.message}\n")
