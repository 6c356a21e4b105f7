"""How results and progress are put into words."""

import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime

from models.ledger.jobs import OpenedJob
from models.queries.results import Progress, Result
from qsit.checkpoints import DEMO
from qsit.rating import WORDS
from qsit.sources.local import path_of
from qsit.sources.source import Listing
from qsit.states import Reason

SCALES = {"0-1": (0.0, 1.0), "0-5": (0.0, 5.0), "1-5": (1.0, 5.0), "0-100": (0.0, 100.0)}
DEMO_NOTE = "model demo is a demo, trained on synthetic distortions: its scores are no substitute for Q-SiT's"


def place(uri: str) -> str:
    """A URI as people write it: local ones as paths."""
    return str(path_of(uri)) if uri.startswith("file://") else uri


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


def counts(progress: Progress) -> str:
    """What became of a job's photos, in one line."""
    parts = [f"{progress.scored:,} scored"]
    if progress.skipped:
        parts.append(f"{progress.skipped:,} skipped (have their score{' and answers' if progress.asks else ''})")
    if progress.skipped_failed:
        parts.append(f"{progress.skipped_failed:,} skipped (failed before, unchanged)")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.cancelled:
        parts.append(f"{progress.cancelled:,} cancelled")
    if progress.left:
        parts.append(f"{progress.left:,} left")
    return f"{count(progress.listed, 'photo')}: {', '.join(parts)}"


def summary(
    progress: Progress,
    scored_now: int,
    seconds: float,
    worst: list[Result],
    best: list[Result],
    reasons: dict[Reason, int],
    database: str,
    command: str = "qsit",
    *,
    scale: str = "0-1",
    answers: int = 0,
) -> Iterator[str]:
    """The lines that `qsit score` ends with."""
    yield f"job {progress.job}, {counts(progress)}"
    if scored_now:
        yield f"{count(scored_now, 'photo')} scored now, in {seconds:.1f} s: {per_second(scored_now / seconds)}"
    if not progress.to_do:
        asked, again = (" and asked about", " and asks about them") if progress.asks else ("", "")
        yield f"nothing to do: every photo was scored{asked} or tried before (--rescore scores them{again} again)"
    for title, rows in (("worst", worst), ("best", best)):
        for index, result in enumerate(rows):
            yield f"{title if index == 0 else '':6}{row(result, scale)}"
    if reasons:
        listed = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items())
        yield f"failed: {listed}; see: qsit failures {progress.job}"
    if progress.asks and answers:
        yield f"{count(answers, 'answer')} given; to see them: {command} results --job {progress.job} --answers"
    elif progress.asks:
        yield f"no new answers; to see those of before: {command} results --answers"
    yield f"results are in {database}; query them: {command} results"
    if progress.model == DEMO:
        yield f"note: {DEMO_NOTE}"


def listing_notes(job: OpenedJob, listing: Listing, *, listed: bool) -> Iterator[str]:
    """What a listing passed over, and what was not listed anew."""
    if not listed and not job.is_new:
        yield f"job {job.id} is there already" + ("" if job.is_listed else ", and another process lists it")
    if listing.ignored:
        kinds = ", ".join(f"{number} {ending}" for ending, number in listing.ignored.most_common(5))
        yield f"passed over files that are no photos by their names: {kinds}"
    for problem in listing.unreadable[:5]:
        yield f"could not list {problem}"
    if (more := len(listing.unreadable) - 5) > 0:
        yield f"could not list {more} further folders"
