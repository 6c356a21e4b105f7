"""Waiting for a job, with its progress in view."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from sqlalchemy import Engine

from models import fleet, queries
from models.queries import Progress as JobProgress
from models.states import JobState, WorkerState
from producer.report import how_to_serve, per_second

POLL_S = 0.25
PLAIN_LINES_S = 10.0
RATE_S = 30.0
LIVE_S = 60.0
"""A worker seen within this time is taken to live."""

Show = Callable[[JobProgress], None]


class Watch:
    """Follows a job; tells once what each of its workers has to say."""

    def __init__(self, engine: Engine, job_id: int, console: Console, broker: str = "") -> None:
        self._engine = engine
        self._job_id = job_id
        self._console = console
        self._broker = broker
        self._told: set[str] = set()
        self._since = time.monotonic()

    def until_done(self, show: Show, check: Show = lambda _: None) -> JobProgress:
        """
        Wait until the job is finished or cancelled.

        check: called now and then; what it raises ends the waiting.
        """
        while True:
            progress = queries.progress(self._engine, self._job_id)
            show(progress)
            if progress.state in (JobState.FINISHED, JobState.CANCELLED):
                return progress
            self._tell_news(progress)
            check(progress)
            time.sleep(POLL_S)

    def _tell_news(self, progress: JobProgress) -> None:
        workers = fleet.workers(self._engine, broker=self._broker, seen_within_s=LIVE_S)
        serving = [
            worker
            for worker in workers
            if (worker.model, worker.revision) == (progress.model, progress.revision)
            and worker.state is not WorkerState.STOPPED
        ]
        for worker in serving:
            if worker.load_s is not None and self._broker:
                self._tell(
                    f"model {worker.model} at revision {worker.revision} loaded on {worker.device} "
                    f"in {worker.dtype}, in {worker.load_s:.1f} s"
                )
            if worker.notice:
                self._tell(worker.notice)
        if not serving and not self._broker and time.monotonic() - self._since > 2:
            self._tell(f"no worker serves this model yet; {how_to_serve(progress)}")

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def display(console: Console) -> Iterator[Show]:
    """A live bar on a terminal, plain lines now and then elsewhere."""
    rate = _Rate()
    if not console.is_terminal:
        yield _plain_lines(console, rate)
        return
    columns = (
        SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[words]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, words="listing")

        def show(progress: JobProgress) -> None:
            total = progress.to_do if progress.is_listed else None
            done = progress.scored + progress.failed
            bar.update(task, total=total, completed=done, words=rate.words(progress))

        yield show


class _Rate:
    """Photos a second over the last half minute, and what that says about the time left."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def words(self, progress: JobProgress) -> str:
        now, done = time.monotonic(), progress.scored + progress.failed
        self._seen = [(then, count) for then, count in self._seen if now - then < RATE_S]
        if self._seen and self._seen[0][1] == done:
            self._seen.clear()  # nothing done yet: loading the model is no slowness
        self._seen.append((now, done))
        began, already = self._seen[0]
        words = [f"{progress.failed:,} failed"]
        if done > already:
            rate = (done - already) / (now - began)
            words.append(per_second(rate))
            if progress.is_listed:
                words.append(f"{_duration((progress.to_do - done) / rate)} left")
        return ", ".join(words)


def _plain_lines(console: Console, rate: _Rate) -> Show:
    last = time.monotonic()

    def show(progress: JobProgress) -> None:
        nonlocal last
        words = rate.words(progress)
        if time.monotonic() - last >= PLAIN_LINES_S:
            last = time.monotonic()
            done = progress.scored + progress.failed
            console.print(f"{done:,} of {progress.to_do:,} done, {words}", markup=False, highlight=False)

    return show


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
