"""What an evaluation found and what it skipped, for the command line to print."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from producer.formatting import count, in_one_line

SHOWN_NAMES = 3
"""Names that are printed for each reason."""


@dataclass(frozen=True)
class Report:
    """
    table: lines for people. record: the same for JSON. notes: lines for stderr. has_figures: False when nothing could
    be computed.
    """

    table: list[str]
    record: dict[str, object]
    notes: list[str]
    has_figures: bool


class RowSkip(Enum):
    """Why a row of labels does not count. The name is the field in JSON, the value is what people read."""

    NO_PATH = "no photo is named"
    NO_LABEL = "no label"
    NOT_A_NUMBER = "the label is not a number"
    MISSING = "photo not found"
    NOT_SCORED = "the photo has no such score"
    REPEATED = "the photo already has this label"
    CONTRADICTORY = "the photo has different labels"


class QuestionSkip(Enum):
    """Why a question does not count, likewise."""

    UNREADABLE = "no image, no question or no list of candidates"
    NO_KEY = "no right answer"
    KEY_NOT_LISTED = "the right answer is not among the candidates"
    MISSING = "photo not found"
    BROKEN = "the photo cannot be read"
    FAILED = "the model failed"


class Skipped:
    """Counts what is skipped, by reason. noun: what is skipped."""

    def __init__(self, reasons: type[Enum], noun: str) -> None:
        self._names: dict[Enum, list[str]] = {reason: [] for reason in reasons}
        self._noun = noun

    def add(self, reason: Enum, name: str) -> None:
        """Count one."""
        self._names[reason].append(name)

    def counts(self) -> dict[str, int]:
        """Return how many were skipped for each reason."""
        return {reason.name.lower(): len(names) for reason, names in self._names.items()}

    def lines(self) -> Iterator[str]:
        """Yield a line for each reason that occurred, with the first few names."""
        for reason, names in self._names.items():
            if names:
                shown = ", ".join(map(in_one_line, names[:SHOWN_NAMES])) + (", ..." if len(names) > SHOWN_NAMES else "")
                yield f"{count(len(names), self._noun)} skipped ({reason.value}): {shown}"


def table_line(name: str, n: str, *cells: str) -> str:
    """Return a line of the table of an evaluation."""
    return f"{name:22}{n:>9}" + "".join(f"{cell:>10}" for cell in cells)
