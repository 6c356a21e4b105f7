"""How results and progress are put into words."""

import unicodedata
from datetime import UTC, datetime

from models.queries.results import Result
from qsit.rating import WORDS
from qsit.sources.uris import path_or_uri

SCALES = {"0-1": (0.0, 1.0), "0-5": (0.0, 5.0), "1-5": (1.0, 5.0), "0-100": (0.0, 100.0)}
DEMO_NOTE = "model demo is a demo, trained on synthetic distortions: its scores are no substitute for Q-SiT's"


def place(uri: str) -> str:
    """A URI as people write it: local ones as paths."""
    return path_or_uri(uri)


def in_one_line(text: str) -> str:
    """Text with its line breaks, and whatever else a terminal would obey, spelled out."""
    return "".join(
        each if each.isprintable() or unicodedata.category(each) == "Zs" else repr(each)[1:-1] for each in text
    )


def utc(moment: datetime) -> str:
    """UTC with microseconds and a Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def scaled(score: float, scale: str) -> str:
    """A score of 0..1 on the scale that the reader wants."""
    low, high = SCALES[scale]
    return f"{low + score * (high - low):.{1 if scale == '0-100' else 4 if scale == '0-1' else 3}f}"


def rating(result: Result) -> str:
    """The word the model finds likeliest."""
    return WORDS[max(range(len(WORDS)), key=result.logits.__getitem__)]


def row(result: Result, scale: str) -> str:
    """A result as a line of a table."""
    return f"{scaled(result.score, scale):>8}  {rating(result):9}  {place(result.uri)}"


def per_second(rate: float) -> str:
    """A rate in the digits that tell something."""
    return f"{rate:.0f} a second" if rate >= 10 else f"{rate:.2g} a second"


def duration(seconds: float) -> str:
    """A length of time in the units that people use for it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def count(number: int, noun: str) -> str:
    """1 photo, 2 photos."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
