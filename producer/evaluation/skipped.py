"""What an evaluation leaves out, counted and told."""

from collections.abc import Iterator, Mapping

from producer.formatting import count, in_one_line

SHOWN = 3
"""Names told for each reason."""


class LeftOut:
    """
    Counts what is left out, by reason.

    reasons: by key, in the order in which they are told, what is wrong with those that are left out for it.
    noun: what they are.
    """

    def __init__(self, reasons: Mapping[str, str], noun: str) -> None:
        self._reasons = reasons
        self._noun = noun
        self._names: dict[str, list[str]] = {reason: [] for reason in reasons}

    def add(self, reason: str, name: str) -> None:
        """Leave one out."""
        self._names[reason].append(name)

    def counts(self) -> dict[str, int]:
        """How many for each reason."""
        return {reason: len(names) for reason, names in self._names.items()}

    def lines(self) -> Iterator[str]:
        """A line for each reason that there is, with the first few names."""
        for reason, names in self._names.items():
            if names:
                shown = ", ".join(map(in_one_line, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
                yield f"{count(len(names), self._noun)} left out, {self._reasons[reason]}: {shown}"
