"""The questions of a job: ready ones by name, texts from the command line, and a TOML file."""

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
"""Text that tokenizers turn into special tokens."""


def parse_questions(asked: Sequence[str], file: str | None, max_new_tokens: int | None = None) -> tuple[Question, ...]:
    """
    Return the questions from the command line, then those of a file. Drop those whose text and choices came before.
    Raises UsageError when a question cannot be asked, or two different questions have the same name.
    """
    found: dict[tuple[str, tuple[str, ...]], Question] = {}
    names: set[str] = set()
    for question in chain(map(_parse_argument, asked), () if file is None else _read_file(file)):
        if (question.text, question.choices) in found:
            continue
        if question.name in names:
            raise UsageError(f"two different questions have the name {_quoted(question.name)}")
        names.add(question.name)
        limited = replace(question, max_new_tokens=max_new_tokens or MAX_NEW_TOKENS)
        check_size(limited)
        found[question.text, question.choices] = limited
    return tuple(found.values())


def _parse_argument(words: str) -> Question:
    """Return the ready question of that name, or a question that is named by its text."""
    where = f"--ask {_quoted(words)}"
    text = _check_text(words, where)
    if text in BUILTIN_QUESTIONS:
        return BUILTIN_QUESTIONS[text]
    if re.fullmatch(r"[\w-]+", text, re.ASCII):  # a misspelt name rather than a question
        raise UsageError(f"{where}: no ready question has this name; choose from {', '.join(BUILTIN_QUESTIONS)}")
    return Question(text, text)


def _read_file(name: str) -> Iterator[Question]:
    """Yield the `[[question]]` tables of a TOML file."""
    document = _read_toml(name)
    if unknown := document.keys() - {"question"}:
        raise UsageError(f"{name}: unknown {_listed(unknown)}; write each question as a table [[question]]")
    tables = document.get("question", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{name}: question is not a list of tables; begin each with [[question]]")
    if not tables:
        raise UsageError(f"{name}: the file has no question; begin each with [[question]]")
    names = set()
    for number, table in enumerate(tables, start=1):
        question = _parse_table(table, f"{name}: question {number}")
        if question.name in names:
            raise UsageError(f"{name}: two questions have the name {_quoted(question.name)}")
        names.add(question.name)
        yield question


def _read_toml(name: str) -> dict[str, object]:
    try:
        return tomllib.loads(Path(os.path.expanduser(name)).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"cannot read the questions in {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: the file is not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name}: the file is not valid TOML: {in_one_line(str(error))}") from error


def _parse_table(table: dict[str, object], where: str) -> Question:
    if unknown := table.keys() - {"name", "text", "choices"}:
        raise UsageError(f"{where}: unknown {_listed(unknown)}; the keys are name, text, choices")
    for key in ("name", "text"):
        if not isinstance(table.get(key), str):
            raise UsageError(f"{where}: {key} is not a string" if key in table else f"{where}: {key} is missing")
    name = _normalize(str(table["name"]))
    if not name or len(name) > MAX_NAME or in_one_line(name) != name:
        raise UsageError(f"{where}: a name must be one line of 1 to {MAX_NAME} characters")
    where = f"{where} ({name})"
    choices = _check_choices(table["choices"], where) if "choices" in table else ()
    return Question(name, _check_text(str(table["text"]), where), choices)


def _check_choices(choices: object, where: str) -> tuple[str, ...]:
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise UsageError(f"{where}: choices is not a list of strings")
    if not 2 <= len(choices) <= len(LETTERS):
        raise UsageError(f"{where}: the question has {len(choices)} choices; write 2 to {len(LETTERS)}")
    found = tuple(_check_text(choice, where, "a choice", MAX_CHOICE) for choice in choices)
    for choice in found:
        if choice.splitlines() != [choice]:
            raise UsageError(f"{where}: the choice {_quoted(choice)} has more than one line")
    if len(set(found)) < len(found):
        raise UsageError(f"{where}: two choices are the same")
    replies = [{*accepted_replies(Question("", "", found), index)} for index in range(len(found))]
    for one, other in combinations(replies, 2):
        if both := one & other:
            raise UsageError(f"{where}: the reply {min(both)} would mean two choices: each also has a letter A, B, C")
    return found


def _normalize(text: str) -> str:
    """Strip text and compose its characters (NFC), as tokenizers read it."""
    return unicodedata.normalize("NFC", text.strip())


def _check_text(text: str, where: str, what: str = "the question", longest: int = MAX_TEXT) -> str:
    text = _normalize(text)
    if not text:
        raise UsageError(f"{where}: {what} is empty")
    if len(text) > longest:
        raise UsageError(f"{where}: {what} has {len(text):,} characters, more than {longest:,}")
    if sanitize_text(text) != text:
        raise UsageError(f"{where}: the text contains a NUL character or invalid UTF-8")
    if special := SPECIAL.search(text):
        raise UsageError(f"{where}: {_quoted(special[0])} is a special token of the model")
    return text


def _quoted(text: str) -> str:
    return f'"{in_one_line(text[:60])}{"..." if len(text) > 60 else ""}"'


def _listed(keys: set[str]) -> str:
    return f"key{'' if len(keys) == 1 else 's'} {', '.join(map(in_one_line, sorted(keys)))}"
