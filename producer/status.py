"""How a job stands: its counts, its pace, its workers, and what holds it up."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Engine

from models.ledger import workers
from models.ledger.workers import WorkerInfo
from models.queries.failures import count_failures
from models.queries.progress import Progress, Silence, job_progress, measure_pace, silent_workers
from producer.formatting import count, duration, per_second, utc
from qsit.states import JobState, Reason, WorkerState

LIVE_S = 60.0
"""A worker seen within this time is taken to live."""


@dataclass(frozen=True)
class Status:
    """What there is to say of a job."""

    progress: Progress
    reasons: dict[Reason, int]
    pace: float | None  # scores a second over the last minutes
    workers: list[WorkerInfo]  # those that live, whatever model they hold
    silences: list[Silence]

    @property
    def serving(self) -> list[WorkerInfo]:
        """The workers that hold or load the model of the job, and take its chunks: the fleet's, or its own."""
        wanted = (self.progress.model, self.progress.revision, self.progress.private)
        return [
            worker
            for worker in self.workers
            if (worker.model, worker.revision, worker.broker != "") == wanted
            and worker.state is not WorkerState.STOPPED
        ]

    @property
    def seconds_left(self) -> float | None:
        """An estimate, once all photos are listed."""
        if not self.pace or not self.progress.is_listed or self.progress.state != JobState.ACTIVE:
            return None
        return self.progress.left / self.pace


def gather(engine: Engine, job_id: int) -> Status:
    """How a job stands now."""
    progress = job_progress(engine, job_id)
    return Status(
        progress=progress,
        reasons=count_failures(engine, job_id),
        pace=measure_pace(engine, job_id) if progress.left else None,
        workers=[
            worker
            for worker in workers.workers(engine, seen_within_s=LIVE_S)
            if worker.state is not WorkerState.STOPPED or worker.notice
        ],
        silences=silent_workers(engine, job_id, LIVE_S),
    )


def obstacles(status: Status) -> Iterator[tuple[str, str]]:
    """
    Why a job does not go on, or not as it could, and what to do, each with a key that stays while the words change.
    What a worker complains of is its notice.
    """
    progress = status.progress
    if progress.state == JobState.PAUSED:
        yield "paused", f"it is paused; to go on: qsit resume {progress.job}"
    if progress.state != JobState.ACTIVE:
        return
    if not progress.is_listed and not progress.is_being_listed:
        yield "unlisted", "its listing was interrupted; the same command takes it up again"
    if progress.left and not status.serving:
        yield "unserved", f"no worker serves it; {_how_to_serve(status)}"
    for silence in status.silences:
        last = "nothing is known" if silence.quiet_s is None else f"nothing was heard for {duration(silence.quiet_s)}"
        yield (
            f"silent {silence.owner}",
            f"{count(silence.chunks, 'chunk')} held by {silence.owner}, of which {last}; "
            f"others take over in {duration(silence.left_s)}",
        )


def _how_to_serve(status: Status) -> str:
    progress = status.progress
    if progress.private:
        return "run the same `qsit score` again"
    revision = ""
    if others := {worker.revision for worker in status.workers if worker.model == progress.model}:
        revision = f"QSIT_REVISION={progress.revision} "
    start = f"start one: {revision}qsit worker --model {progress.model} --root FOLDER"
    return start + (f" (those that live hold revision {', '.join(sorted(others))})" if others else "")


def record(status: Status) -> dict[str, object]:
    """A job's status as JSON has it."""
    progress = status.progress
    left_s = status.seconds_left
    return {
        "job": progress.job,
        "name": progress.name,
        "state": str(progress.state),
        "model": progress.model,
        "revision": progress.revision,
        "procedure": progress.procedure,
        "listing_complete": progress.is_listed,
        "listed": progress.listed,
        "skipped": progress.skipped,
        "skipped_failed": progress.skipped_failed,
        "queued": progress.queued,
        "running": progress.running,
        "scored": progress.scored,
        "failed": progress.failed,
        "cancelled": progress.cancelled,
        "failed_by_reason": {str(reason): number for reason, number in status.reasons.items()},
        "per_second": None if status.pace is None else round(status.pace, 3),
        "seconds_left": None if left_s is None else round(left_s),
        "created_at": utc(progress.created_at),
        "finished_at": None if progress.finished_at is None else utc(progress.finished_at),
        "obstacles": [words for _, words in obstacles(status)],
        "workers": [
            {
                "worker": worker.owner,
                "state": str(worker.state),
                "model": worker.model,
                "revision": worker.revision,
                "device": worker.device,
                "dtype": worker.dtype,
                "notice": worker.notice,
                "seen_s_ago": round(max(0.0, worker.quiet_s), 1),
            }
            for worker in status.workers
        ],
    }


def lines(status: Status) -> Iterator[str]:
    """A job's status as people read it."""
    progress = status.progress
    name = f" ({progress.name})" if progress.name else ""
    listing = "" if progress.is_listed else ", listing not complete"
    yield f"job {progress.job}{name}: {progress.state}{listing}"
    yield f"  model     {progress.model} at {progress.revision}"
    for label, number in (
        ("listed", progress.listed), ("skipped", progress.skipped + progress.skipped_failed),
        ("queued", progress.queued), ("running", progress.running), ("scored", progress.scored),
        ("cancelled", progress.cancelled), ("failed", progress.failed),
    ):  # fmt: skip
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
