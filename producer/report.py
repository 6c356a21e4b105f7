"""How results, failures and progress are put into words and formats."""

import csv
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import IO

from models.jobs import OpenedJob
from models.queries import Failure, Progress, Result
from models.states import Reason
from worker.checkpoint import DEMO
from worker.files import path_of
from worker.procedure import WORDS, score_of
from worker.sources import Listing

SCALES = {"0-1": (0.0, 1.0), "0-5": (0.0, 5.0), "1-5": (1.0, 5.0), "0-100": (0.0, 100.0)}
DEMO_NOTE = "model demo is a tiny stand-in with random weights: its scores mean nothing"


def place(uri: str) -> str:
    """A URI as people write it: local ones as paths."""
    return str(path_of(uri)) if uri.startswith("file://") else uri


def utc(moment: datetime) -> str:
    """UTC with microseconds and a Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def scaled(score: float, scale: str) -> str:
    """A score of 0..1 on the scale that the reader wants."""
    low, high = SCALES[scale]
    return f"{low + score * (high - low):.{1 if scale == '0-100' else 4 if scale == '0-1' else 3}f}"


def result_record(result: Result) -> dict[str, object]:
    """A result as JSON has it; its score is 0..1."""
    probabilities = score_of(result.logits).probabilities
    return {
        "uri": result.uri,
        "score": result.score,
        "probabilities": dict(zip(WORDS, probabilities, strict=True)),
        "model": result.model,
        "revision": result.revision,
        "procedure": result.procedure,
        "dtype": result.dtype,
        "version": result.version,
        "scored_at": utc(result.scored_at),
        "job": result.job,
    }


def rating(result: Result) -> str:
    """The word the model finds likeliest."""
    return WORDS[max(range(len(WORDS)), key=result.logits.__getitem__)]


def write_results(results: Iterable[Result], form: str, scale: str, output: IO[str]) -> bool:
    """Write results in a format; whether any was made with the demo model."""
    demo = False
    writer = csv.writer(output)
    if form == "csv":
        writer.writerow(["uri", "score", "rating", *map(str.lower, WORDS), "model", "revision", "scored_at", "job"])
    elif form == "table":
        output.write(f"{'score':>8}  {'rating':9}  photo\n")
    for result in results:
        demo = demo or result.model == DEMO
        if form == "jsonl":
            output.write(json.dumps(result_record(result)) + "\n")
        elif form == "csv":
            probabilities = (f"{probability:.6f}" for probability in score_of(result.logits).probabilities)
            writer.writerow([
                result.uri, scaled(result.score, scale), rating(result), *probabilities, result.model,
                result.revision, utc(result.scored_at), result.job,
            ])  # fmt: skip
        elif form == "paths":
            output.write(place(result.uri) + "\n")
        else:
            output.write(_row(result, scale) + "\n")
    return demo


def _row(result: Result, scale: str) -> str:
    return f"{scaled(result.score, scale):>8}  {rating(result):9}  {place(result.uri)}"


def write_failures(failures: Iterable[Failure], form: str, output: IO[str]) -> None:
    """Write failures in a format."""
    writer = csv.writer(output)
    if form == "csv":
        writer.writerow(["uri", "reason", "message", "job"])
    for failure in failures:
        row = {"uri": failure.uri, "reason": str(failure.reason), "message": failure.message, "job": failure.job}
        if form == "jsonl":
            output.write(json.dumps(row) + "\n")
        elif form == "csv":
            writer.writerow(row.values())
        else:
            output.write(f"{failure.reason:14} {place(failure.uri)}: {failure.message}\n")


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
        parts.append(f"{progress.skipped:,} skipped (have their score)")
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
) -> Iterator[str]:
    """The lines that `qsit score` ends with."""
    yield f"job {progress.job}, {counts(progress)}"
    if scored_now:
        yield f"{count(scored_now, 'photo')} scored now, in {seconds:.1f} s: {per_second(scored_now / seconds)}"
    if not progress.to_do:
        yield "nothing to do: every photo was scored or tried before (--rescore scores them again)"
    for title, rows in (("worst", worst), ("best", best)):
        for index, result in enumerate(rows):
            yield f"{title if index == 0 else '':6}{_row(result, '0-1')}"
    if reasons:
        listed = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items())
        yield f"failed: {listed}; see: qsit failures {progress.job}"
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
