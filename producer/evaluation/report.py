"""What an evaluation found, for the command line to print."""

from dataclasses import dataclass


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
