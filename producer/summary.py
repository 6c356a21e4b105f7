"""The lines that `qsit score` and `qsit submit` end with."""

from collections.abc import Iterator

from models.ledger.jobs import OpenedJob
from models.queries.progress import Progress
from models.queries.results import Result
from producer.formatting import DEMO_NOTE, count, per_second, row
from qsit.checkpoints import DEMO
from qsit.sources.listing import Listing
from qsit.states import Reason

SHOWN_ENTRIES = 5
"""Entries of a listing that are named one by one."""


def counts(progress: Progress) -> str:
    """Return what became of a job's photos, in one line."""
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
    """
    Yield the lines that `qsit score` ends with.

    seconds: how long the command took to score `scored_now` photos.
    command: how to call qsit on this database.
    answers: how many the job was given.
    """
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
        yield f"failed: {listed}; to list them: {command} failures {progress.job}"
    if progress.asks and answers:
        yield f"{count(answers, 'answer')} given; to see them: {command} results --job {progress.job} --answers"
    elif progress.asks:
        yield f"no new answers; to see earlier ones: {command} results --answers"
    yield f"results are in {database}; to query them: {command} results"
    if progress.model == DEMO:
        yield f"note: {DEMO_NOTE}"


def listing_notes(job: OpenedJob, listing: Listing, *, listed: bool) -> Iterator[str]:
    """Yield what a listing passed over, or that the job was listed before."""
    if not listed and not job.is_new:
        why = "was listed before, without photos added since" if job.is_listed else "is listed by another process"
        yield f"job {job.id} exists already: it {why}"
    if listing.ignored:
        kinds = ", ".join(f"{number} {ending}" for ending, number in listing.ignored.most_common(5))
        yield f"skipped files whose names are not those of photos: {kinds}"
    for entry in listing.unreadable[:SHOWN_ENTRIES]:
        yield f"could not list {entry}"
    if (more := len(listing.unreadable) - SHOWN_ENTRIES) > 0:
        yield f"could not list {more} further entr{'y' if more == 1 else 'ies'}"
