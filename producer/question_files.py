"""The questions of a job: ready ones by name, texts of one's own, and those of a file."""

import os
import re
import tomllib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path

from models.db import sanitize_text
from producer.formatting import in_one_line
from qsit.errors import UsageError
from qsit.questions import BUILTIN_QUESTIONS, LETTERS, MAX_NEW_TOKENS, Question, accepted_replies, check_size

MAX_TEXT, MAX_CHOICE, MAX_NAME = 2000, 200, 100
"""Characters."""
SPECIAL = re.compile(r"<image>|<video>|<\|.*?\|>", re.DOTALL)
"""What tokenizers take for more than text."""
KEYS = ("name", "text", "choices")
"""Of a question in a file."""


def wanted(asked: Sequence[str], file: str | None, max_new_tokens: int | None = None) -> tuple[Question, ...]:
    """
    The questions asked by name or in words, and those of a file, in that order; of those with the same text and
    choices, the first.

    Raises:
        UsageError: when one is no question that can be asked, or two that differ have one name.
    """
    found: dict[tuple[str, tuple[str, ...]], Question] = {}
    names: set[str] = set()
    for question in chain(map(_asked, asked), () if file is None else _of_file(file)):
        if (question.text, question.choices) in found:
            continue
        if question.name in names:
            raise UsageError(f"two different questions are called {_quoted(question.name)}")
        names.add(question.name)
        found[question.text, question.choices] = question
    limit = MAX_NEW_TOKENS if max_new_tokens is None else max_new_tokens
    limited = tuple(replace(question, max_new_tokens=limit) for question in found.values())
    for question in limited:
        check_size(question)
    return limited


def record(question: Question) -> dict[str, object]:
    """A question as JSON has it."""
    return {"name": question.name, "text": question.text, "choices": list(question.choices)}


def lines(questions: Sequence[Question]) -> Iterator[str]:
    """Questions as people read them."""
    yield f"{'name':12} question"
    for question in questions:
        yield f"{question.name:12} {question.text}"
        if question.choices:
            yield f"{'':12} {', '.join(question.choices)}"


def _asked(words: str) -> Question:
    """A ready question, or one that is named by its text."""
    where = f"--ask {_quoted(words)}"
    text = _text(words, where)
    if text in BUILTIN_QUESTIONS:
        return BUILTIN_QUESTIONS[text]
    if re.fullmatch(r"[\w-]+", text, re.ASCII):  # more likely a slip than a question
        raise UsageError(f"{where}: no ready question has that name; there are {', '.join(BUILTIN_QUESTIONS)}")
    return Question(text, text)


def _of_file(name: str) -> Iterator[Question]:
    """The `[[question]]` tables of a TOML file."""
    document = _document(name)
    if unknown := document.keys() - {"question"}:
        raise UsageError(f"{name}: unknown {_listed(unknown)}; a question is a table [[question]]")
    tables = document.get("question", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{name}: question is no list of tables; begin each with [[question]]")
    if not tables:
        raise UsageError(f"{name}: no question is in it; begin each with [[question]]")
    names = set()
    for number, table in enumerate(tables, start=1):
        question = _of_table(table, f"{name}: question {number}")
        if question.name in names:
            raise UsageError(f"{name}: two questions are called {_quoted(question.name)}")
        names.add(question.name)
        yield question


def _document(name: str) -> dict[str, object]:
    try:
        return tomllib.loads(Path(os.path.expanduser(name)).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read the questions {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: it is not in UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name}: it is no TOML: {in_one_line(str(error))}") from error


def _of_table(table: dict[str, object], where: str) -> Question:
    if unknown := table.keys() - set(KEYS):
        raise UsageError(f"{where}: unknown {_listed(unknown)}; there are {', '.join(KEYS)}")
    for key in ("name", "text"):
        if not isinstance(table.get(key), str):
            raise UsageError(f"{where}: {key} is no text" if key in table else f"{where}: it has no {key}")
    name = _cleaned(str(table["name"]))
    if not name or len(name) > MAX_NAME or in_one_line(name) != name:
        raise UsageError(f"{where}: a name is one line of 1 to {MAX_NAME} characters")
    where = f"{where} ({name})"
    choices = _choices(table["choices"], where) if "choices" in table else ()
    return Question(name, _text(str(table["text"]), where), choices)


def _text(text: str, where: str) -> str:
    text = _cleaned(text)
    if not text:
        raise UsageError(f"{where}: it is empty")
    if len(text) > MAX_TEXT:
        raise UsageError(f"{where}: it has {len(text):,} characters; at most {MAX_TEXT:,} can be asked")
    _check(text, where)
    return text


def _choices(choices: object, where: str) -> tuple[str, ...]:
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise UsageError(f"{where}: choices is no list of texts")
    found = tuple(map(_cleaned, choices))
    if not 2 <= len(found) <= len(LETTERS):
        raise UsageError(f"{where}: it has {len(found)} choices; 2 to {len(LETTERS)} can be given")
    for choice in found:
        if not choice:
            raise UsageError(f"{where}: a choice is empty")
        if len(choice) > MAX_CHOICE:
            raise UsageError(f"{where}: a choice has {len(choice):,} characters; at most {MAX_CHOICE} can be given")
        if choice.splitlines() != [choice]:
            raise UsageError(f"{where}: the choice {_quoted(choice)} has more than one line")
        _check(choice, where)
    if len(set(found)) < len(found):
        raise UsageError(f"{where}: two choices are the same")
    question = Question("", "", found)
    for one, other in combinations(range(len(found)), 2):
        if both := {*accepted_replies(question, one)} & {*accepted_replies(question, other)}:
            raise UsageError(f"{where}: the reply {min(both)} would mean two choices: each has a letter, A, B, C, ...")
    return found


def _cleaned(text: str) -> str:
    """Without white space around it, and composed, as tokenizers read it."""
    return unicodedata.normalize("NFC", text.strip())


def _check(text: str, where: str) -> None:
    if sanitize_text(text) != text:
        raise UsageError(f"{where}: it has bytes that are no text")
    if special := SPECIAL.search(text):
        raise UsageError(f"{where}: {_quoted(special[0])} means something else to a model")


def _quoted(text: str) -> str:
    return f'"{in_one_line(text[:60])}{"..." if len(text) > 60 else ""}"'


def _listed(keys: set[str]) -> str:
    return f"key{'' if len(keys) == 1 else 's'} {', '.join(map(in_one_line, sorted(keys)))}"
