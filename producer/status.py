"""The status of a job: its counts, pace and workers, and what holds it up."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Engine

from models.ledger import workers
from models.ledger.workers import WorkerInfo
from models.queries.failures import count_failures
from models.queries.progress import Progress, Silence, job_progress, measure_pace, silent_workers
from producer.formatting import count, duration, in_one_line, per_second, utc
from qsit.states import JobState, Reason, WorkerState

LIVE_S = 60.0
"""Seconds without a sign of life after which a worker counts as gone."""
COUNTS = ("listed", "skipped", "skipped_failed", "queued", "running", "scored", "failed", "cancelled")


@dataclass(frozen=True)
class Status:
    """Everything that `qsit status` shows of a job."""

    progress: Progress
    reasons: dict[Reason, int]
    pace: float | None  # scores per second over the last minutes
    workers: list[WorkerInfo]  # every live worker, with any model
    silences: list[Silence]

    @property
    def serving(self) -> list[WorkerInfo]:
        """The workers that take the chunks of the job: those with its model in the fleet, or its private one."""
        wanted = (self.progress.model, self.progress.revision, self.progress.private)
        alive = (worker for worker in self.workers if worker.state is not WorkerState.STOPPED)
        return [worker for worker in alive if (worker.model, worker.revision, worker.broker != "") == wanted]

    @property
    def seconds_left(self) -> float | None:
        """The time left at the present pace; None until all photos are listed."""
        if not self.pace or not self.progress.is_listed or self.progress.state != JobState.ACTIVE:
            return None
        return self.progress.left / self.pace


def gather(engine: Engine, job_id: int) -> Status:
    """Read the status of a job."""
    progress = job_progress(engine, job_id)
    pace = measure_pace(engine, job_id) if progress.left else None
    seen = workers.workers(engine, seen_within_s=LIVE_S)
    shown = [worker for worker in seen if worker.state is not WorkerState.STOPPED or worker.notice]
    return Status(progress, count_failures(engine, job_id), pace, shown, silent_workers(engine, job_id, LIVE_S))


def obstacles(status: Status) -> Iterator[tuple[str, str]]:
    """
    Yield why a job makes no progress, or less than it could, and what to do. Each message has a key that stays the same
    while the message changes. What keeps one worker from working is in its notice.
    """
    progress = status.progress
    if progress.state == JobState.PAUSED:
        yield "paused", f"the job is paused; to resume it: qsit resume {progress.job}"
    if progress.state != JobState.ACTIVE:
        return
    if not progress.is_listed and not progress.is_being_listed:
        yield "unlisted", "its listing was interrupted; run the same command again to complete it"
    if progress.left and not status.serving:
        yield "unserved", f"no worker serves the job; {_how_to_serve(status)}"
    for silence in status.silences:
        heard = "is unknown" if silence.quiet_s is None else f"has been silent for {duration(silence.quiet_s)}"
        chunks = count(silence.chunks, "chunk")
        left = duration(silence.left_s)
        yield f"silent {silence.owner}", f"worker {silence.owner} {heard}; other workers get its {chunks} in {left}"


def _how_to_serve(status: Status) -> str:
    progress = status.progress
    if progress.private:
        return "run the same `qsit score` again"
    revision = ""
    if others := {worker.revision for worker in status.workers if worker.model == progress.model}:
        revision = f"QSIT_REVISION={progress.revision} "
    start = f"start one: {revision}qsit worker --model {progress.model} --root FOLDER"
    return start + (f" (live workers hold revision {', '.join(sorted(others))})" if others else "")


def record(status: Status) -> dict[str, object]:
    """Return a status as in JSON."""
    progress = status.progress
    left_s = status.seconds_left
    of_job = ("job", "name", "state", "model", "revision", "procedure")
    of_worker = ("state", "model", "revision", "device", "dtype", "notice")
    return {
        **{field: getattr(progress, field) for field in of_job},
        "listing_complete": progress.is_listed,
        **{field: getattr(progress, field) for field in COUNTS},
        "failed_by_reason": status.reasons,
        "per_second": None if status.pace is None else round(status.pace, 3),
        "seconds_left": None if left_s is None else round(left_s),
        "created_at": utc(progress.created_at),
        "finished_at": None if progress.finished_at is None else utc(progress.finished_at),
        "obstacles": [words for _, words in obstacles(status)],
        "workers": [
            {"worker": worker.owner}
            | {field: getattr(worker, field) for field in of_worker}
            | {"seen_s_ago": round(max(0.0, worker.quiet_s), 1)}
            for worker in status.workers
        ],
    }


def lines(status: Status) -> Iterator[str]:
    """Yield a status as people read it, in lines that no terminal obeys."""
    return map(in_one_line, _lines(status))


def _lines(status: Status) -> Iterator[str]:
    progress = status.progress
    name = f" ({progress.name})" if progress.name else ""
    listing = "" if progress.is_listed else ", listing not complete"
    yield f"job {progress.job}{name}: {progress.state}{listing}"
    yield f"  model     {progress.model} at {progress.revision}"
    counts = {name: getattr(progress, name) for name in COUNTS}
    counts["skipped"] += counts.pop("skipped_failed")
    counts["failed"] = counts.pop("failed")  # the last, before its reasons
    for label, number in counts.items():
        if number or label != "cancelled":
            yield f"  {label:9} {number:,}"
    for reason, number in status.reasons.items():
        yield f"            {number:,} {reason}"
    if status.pace:
        left = "" if status.seconds_left is None else f", about {duration(status.seconds_left)} left"
        yield f"  pace      {per_second(status.pace)}{left}"
    for worker in status.workers:
        yield f"  worker    {worker.owner}: {worker.state} on {worker.device} in {worker.dtype}, {worker.model}"
        if worker.notice:
            yield f"            {worker.notice}"
    for _, words in obstacles(status):
        yield f"  stuck     {words}"
