"""Results with their answers, and failures, in every format."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import IO

from models.queries.answers import AnswerRecord
from models.queries.failures import Failure
from models.queries.results import Result
from producer.formatting import escaped_name, in_one_line, rating, row, scaled, utc
from qsit.rating import WORDS, score_of
from qsit.sources.uris import path_or_uri

COLUMNS = (
    *("uri", "score", "rating", *map(str.lower, WORDS), "model", "revision", "scored_at", "job"),
    *("procedure", "dtype", "version"),
)
"""Of CSV; answers follow."""


def write_results(
    results: Iterable[Result], form: str, scale: str, output: IO[str], questions: Sequence[str] | None = None
) -> set[str]:
    """
    Write results in a format, and return the models that they are by.

    scale: of the scores in tables and CSV.
    questions: the names that get a column in CSV; None for results without answers.
    """
    models = set()
    writer = csv.writer(output)
    if form == "csv":
        writer.writerow([*COLUMNS, *(f"answer: {name}" for name in questions or ())])
    elif form == "table":
        output.write(f"{'score':>8}  {'rating':9}  photo\n")
    for result in results:
        models.add(result.model)
        if form == "jsonl":
            output.write(json.dumps(result_record(result, with_answers=questions is not None)) + "\n")
        elif form == "csv":
            writer.writerow(_cells(result, scale, questions or ()))
        elif form == "paths":
            output.write(path_or_uri(result.uri) + "\n")
        else:
            output.write(row(result, scale) + "\n")
            for given in result.answers:
                words = f"{in_one_line(given.name)}: {in_one_line(given.answer.text)}"
                output.write(f"{'':10}{words}{' [cut]' if given.answer.cut else ''}\n")
    return models


def result_record(result: Result, *, with_answers: bool) -> dict[str, object]:
    """Return a result as in JSON, with a score of 0..1."""
    record: dict[str, object] = {
        "uri": result.uri,
        "score": result.score,
        "rating": rating(result),
        "probabilities": dict(zip(WORDS, score_of(result.logits).probabilities, strict=True)),
        "model": result.model,
        "revision": result.revision,
        "procedure": result.procedure,
        "dtype": result.dtype,
        "version": result.version,
        "scored_at": utc(result.scored_at),
        "job": result.job,
    }
    if with_answers:
        record["answers"] = [_answer_record(given) for given in result.answers]
    return record


def _answer_record(given: AnswerRecord) -> dict[str, object]:
    answer = given.answer
    record: dict[str, object] = {"question": given.name, "text": given.question}
    record |= {"answer": answer.text, "cut": answer.cut}
    if given.choices:
        record["probabilities"] = dict(zip(given.choices, answer.probabilities, strict=True))
    return record | {"answered_at": utc(given.answered_at), "job": given.job}


def _cells(result: Result, scale: str, questions: Sequence[str]) -> list[object]:
    """Return the cells of CSV: the fields of JSON, with a column for each probability."""
    cells = result_record(result, with_answers=False) | {"score": scaled(result.score, scale)}
    for word, probability in zip(WORDS, score_of(result.logits).probabilities, strict=True):
        cells[word.lower()] = f"{probability:.6f}"
    answers = {given.name: given.answer.text for given in sorted(result.answers, key=lambda given: given.answered_at)}
    newest = (answers.get(name, "") for name in questions)  # of those with one name
    return [*(cells[column] for column in COLUMNS), *newest]


def write_failures(failures: Iterable[Failure], form: str, output: IO[str]) -> None:
    """Write failures in a format."""
    writer = csv.writer(output)
    if form == "csv":
        writer.writerow(field.name for field in fields(Failure))
    for failure in failures:
        cells = asdict(failure)
        if form == "jsonl":
            output.write(json.dumps(cells) + "\n")
        elif form == "csv":
            writer.writerow(cells.values())
        else:
            output.write(f"{failure.reason:14} {escaped_name(failure.uri)}: {in_one_line(failure.message)}\n")
