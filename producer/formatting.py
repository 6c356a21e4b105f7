"""Results and numbers as text."""

import unicodedata
from datetime import UTC, datetime

from models.queries.results import Result
from qsit.rating import WORDS
from qsit.sources.uris import path_or_uri

SCALES = {"0-1": (0.0, 1.0), "0-5": (0.0, 5.0), "1-5": (1.0, 5.0)}
DEMO_NOTE = "the model demo is trained on synthetic distortions: its scores are no substitute for Q-SiT's"


def escaped_name(uri: str) -> str:
    """Return the path or URI of a photo in one line that no terminal obeys."""
    return in_one_line(path_or_uri(uri))


def in_one_line(text: str) -> str:
    """Return text with line breaks, control characters and bidi marks escaped as in Python."""
    return "".join(
        each if each.isprintable() or unicodedata.category(each) == "Zs" else repr(each)[1:-1] for each in text
    )


def utc(moment: datetime) -> str:
    """Return a time in ISO 8601: UTC, with microseconds and a Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def scaled(score: float, scale: str) -> str:
    """Return a score of 0..1 on another scale."""
    low, high = SCALES[scale]
    return f"{low + score * (high - low):.{4 if scale == '0-1' else 3}f}"


def rating(result: Result) -> str:
    """Return the likeliest rating word."""
    return WORDS[max(range(len(WORDS)), key=result.logits.__getitem__)]


def row(result: Result, scale: str) -> str:
    """Return a result as a line of a table."""
    return f"{scaled(result.score, scale):>8}  {rating(result):9}  {escaped_name(result.uri)}"


def per_second(rate: float) -> str:
    """Return a rate with two significant digits or none after the point."""
    return f"{rate:.0f} per second" if rate >= 10 else f"{rate:.2g} per second"


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 photo, 2 photos."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
