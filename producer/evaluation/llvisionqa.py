"""The questions of LLVisionQA (https://github.com/Q-Future/Q-Bench), and how replies to them are counted."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from producer.evaluation.skipped import LeftOut
from qsit.errors import SourceError
from qsit.questions import LETTERS, Question, accepted_replies, render_prompt

NAMES = ("img_path", "image_path", "image", "img", "image_name", "filename")
"""What the field with the image may be called; the published files have the first."""
KINDS = {"type": ("type", "question_type"), "concern": ("concern", "question_concern")}
"""Fields by which the questions are told apart, under their names."""

REASONS = {
    "unreadable": "it has no image, question or list of candidates",
    "no_key": "it has no right answer",
    "key_not_listed": "the right answer is not among the candidates",
}
"""Why an entry is no item."""


@dataclass(frozen=True)
class Item:
    """
    A question with its right answer.

    image: as the file names it; right: the place of the right choice; kinds: the values of KINDS that it has.
    """

    image: str
    question: Question
    right: int
    kinds: Mapping[str, str]

    @property
    def asked(self) -> Question:
        """What the model is asked: to say what it says, to the question with its choices listed."""
        return Question("", render_prompt(self.question))

    def choice_of(self, reply: str) -> int | None:
        """The choice that a reply means, capitals or not: its letter, its letter and a dot, or its words."""
        plain = reply.strip().casefold()
        choices: list[int] = [self.right, *range(len(self.question.choices))]
        for choice in choices:
            if any(plain == form.strip().casefold() for form in accepted_replies(self.question, choice)):
                return choice
        return None


def read(name: str, left_out: LeftOut) -> list[Item]:
    """
    The items of a file.

    Raises:
        SourceError: when it cannot be read, or is no JSON list.
    """
    try:
        entries = json.loads(Path(name).expanduser().read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise SourceError(f"cannot read the questions {name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"cannot read the questions {name}: it is no JSON: {error}") from error
    if not isinstance(entries, list):
        raise SourceError(f"cannot read the questions {name}: it is JSON, but no list")
    return list(_items(entries, left_out))


def _items(entries: Iterable[object], left_out: LeftOut) -> Iterator[Item]:
    for number, entry in enumerate(entries, start=1):
        fields = entry if isinstance(entry, dict) else {}
        image = next((fields[name] for name in NAMES if isinstance(fields.get(name), str)), "").strip()
        text, choices, right = fields.get("question"), fields.get("candidates"), fields.get("correct_ans")
        listed = choices if isinstance(choices, list) else []
        named = f"{number} ({image})" if image else f"{number}"
        is_whole = isinstance(text, str) and text.strip() and all(isinstance(choice, str) for choice in listed)
        if not image or not is_whole or not 0 < len(listed) <= len(LETTERS):
            left_out.add("unreadable", named)
        elif right is None or right == "":
            left_out.add("no_key", named)
        elif right not in listed:
            left_out.add("key_not_listed", named)
        else:
            question = Question("", str(text), tuple(listed))
            yield Item(image, question, listed.index(right), _kinds(fields))


def _kinds(fields: Mapping[str, object]) -> dict[str, str]:
    found = {}
    for kind, names in KINDS.items():
        value = next((fields[name] for name in names if fields.get(name) is not None), None)
        if isinstance(value, str | int):
            found[kind] = str(value)
    return found


class Tally:
    """Counts right answers: of all, and by kind of question."""

    def __init__(self) -> None:
        self.asked = 0
        self.right = 0
        self.unclear = 0  # replies that are none of the choices, and so wrong
        self._by_kind: dict[str, tuple[Counter[str], Counter[str]]] = {kind: (Counter(), Counter()) for kind in KINDS}

    def add(self, item: Item, reply: str) -> None:
        """Count a reply."""
        choice = item.choice_of(reply)
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
        """Of each kind that there is, by its values: how many questions, and the share of right answers."""
        return {
            kind: {value: {"n": asked[value], "accuracy": right[value] / asked[value]} for value in sorted(asked)}
            for kind, (asked, right) in self._by_kind.items()
            if asked
        }
