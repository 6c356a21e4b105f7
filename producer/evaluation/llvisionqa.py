"""The questions of LLVisionQA (https://github.com/Q-Future/Q-Bench), and counting the right replies."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from producer.evaluation.report import QuestionSkip, Skipped
from qsit.errors import SourceError
from qsit.questions import LETTERS, Question, accepted_replies, render_prompt

KINDS = ("type", "concern")
"""Fields that classify questions."""


@dataclass(frozen=True)
class Item:
    """
    A question about a photo, as the file names it, with the index of its right choice. kinds: the values of those KINDS
    that it has.
    """

    image: str
    question: Question
    right: int
    kinds: Mapping[str, str]

    @property
    def prompt(self) -> Question:
        """What the model is asked: an open question, with the choices listed in its text."""
        return Question("", render_prompt(self.question))

    def find_choice(self, reply: str) -> int | None:
        """Return the choice that a reply names by its letter, its letter and a dot, or its words, in any case."""
        plain = reply.strip().casefold()
        choices: list[int] = [self.right, *range(len(self.question.choices))]
        for choice in choices:
            if plain in (form.strip().casefold() for form in accepted_replies(self.question, choice)):
                return choice
        return None


def read_items(name: str, skipped: Skipped) -> list[Item]:
    """Read the items of a file. Raises SourceError when it cannot be read or is not a JSON list."""
    try:
        entries = json.loads(Path(name).expanduser().read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise SourceError(f"cannot read the questions {name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"cannot read the questions {name}: it is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise SourceError(f"cannot read the questions {name}: it is JSON but not a list")
    return list(_parse(entries, skipped))


def _parse(entries: Iterable[object], skipped: Skipped) -> Iterator[Item]:
    for number, entry in enumerate(entries, start=1):
        fields = entry if isinstance(entry, dict) else {}
        texts = {key: value.strip() for key, value in fields.items() if isinstance(value, str)}
        image, text, right = texts.get("img_path"), texts.get("question"), fields.get("correct_ans")
        listed = fields["candidates"] if isinstance(fields.get("candidates"), list) else []
        name = f"{number} ({image})" if image else f"{number}"
        is_whole = all(isinstance(choice, str) for choice in listed) and 0 < len(listed) <= len(LETTERS)
        if not image or not text or not is_whole:
            skipped.add(QuestionSkip.UNREADABLE, name)
        elif right is None or right == "":
            skipped.add(QuestionSkip.NO_KEY, name)
        elif right not in listed:
            skipped.add(QuestionSkip.KEY_NOT_LISTED, name)
        else:
            kinds = {kind: str(fields[kind]) for kind in KINDS if isinstance(fields.get(kind), str | int)}
            yield Item(image, Question("", text, tuple(listed)), listed.index(right), kinds)


class Tally:
    """Counts right answers, in all and by kind of question."""

    def __init__(self) -> None:
        self.asked = 0
        self.right = 0
        self.unclear = 0  # replies that name no choice, and count as wrong
        self._by_kind: dict[str, tuple[Counter[str], Counter[str]]] = {kind: (Counter(), Counter()) for kind in KINDS}

    def add(self, item: Item, reply: str) -> None:
        """Count a reply."""
        choice = item.find_choice(reply)
        is_right = choice == item.right
        self.asked += 1
        self.right += is_right
        self.unclear += choice is None
        for kind, value in item.kinds.items():
            asked, right = self._by_kind[kind]
            asked[value] += 1
            right[value] += is_right

    @property
    def accuracy(self) -> float | None:
        """The share of right answers; None when nothing was asked."""
        return self.right / self.asked if self.asked else None

    def by_kind(self) -> dict[str, dict[str, dict[str, int | float]]]:
        """Return the number of questions and the share of right answers, by kind and value."""
        return {
            kind: {value: {"n": asked[value], "accuracy": right[value] / asked[value]} for value in sorted(asked)}
            for kind, (asked, right) in self._by_kind.items()
            if asked
        }
