"""What an evaluation skips, and why."""

from collections.abc import Iterable, Iterator
from enum import StrEnum

from producer.formatting import count, in_one_line

SHOWN_NAMES = 3
"""Names that are printed for each reason."""


class SkipReason(StrEnum):
    """Why a row or a question does not count. The value is the field in JSON, the sentence is what people read."""

    sentence: str

    def __new__(cls, value: str, sentence: str) -> "SkipReason":
        member = str.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member

    NO_PATH = "no_path", "no photo is named"
    NO_LABEL = "no_label", "no label"
    NOT_A_NUMBER = "not_a_number", "the label is not a number"
    UNREADABLE = "unreadable", "no image, no question or no list of candidates"
    NO_KEY = "no_key", "no right answer"
    KEY_NOT_LISTED = "key_not_listed", "the right answer is not among the candidates"
    MISSING = "missing", "photo not found"
    NOT_SCORED = "not_scored", "the photo has no such score"
    REPEATED = "repeated", "the photo already has this label"
    CONTRADICTORY = "contradictory", "the photo has different labels"
    BROKEN = "broken", "the photo cannot be read"
    FAILED = "failed", "the model failed"


class Skipped:
    """
    Counts what is skipped, by reason.

    reasons: those that can occur. noun: what is skipped.
    """

    def __init__(self, reasons: Iterable[SkipReason], noun: str) -> None:
        self._names: dict[SkipReason, list[str]] = {reason: [] for reason in reasons}
        self._noun = noun

    def add(self, reason: SkipReason, name: str) -> None:
        """Count one."""
        self._names[reason].append(name)

    def counts(self) -> dict[str, int]:
        """Return how many were skipped for each reason."""
        return {reason.value: len(names) for reason, names in self._names.items()}

    def lines(self) -> Iterator[str]:
        """Yield a line for each reason that occurred, with the first few names."""
        for reason, names in self._names.items():
            if names:
                shown = ", ".join(map(in_one_line, names[:SHOWN_NAMES])) + (", ..." if len(names) > SHOWN_NAMES else "")
                yield f"{count(len(names), self._noun)} skipped ({reason.sentence}): {shown}"
