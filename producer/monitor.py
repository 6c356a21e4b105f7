"""Waiting for a job, with its progress in view."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from sqlalchemy import Engine

from models.ledger import jobs
from models.queries.progress import Progress as JobProgress
from models.queries.progress import job_progress, job_state
from models.retry import retry_while_unavailable
from producer import status
from producer.formatting import duration, per_second
from producer.notices import NoticePrinter
from qsit.states import JobState

POLL_S = 0.25
"""Seconds between two looks at a job's state, which is one row."""
COUNT_S = 1.0
"""Seconds between two sums over a job's chunks."""
NOTICES_S = 2.0
"""Seconds between two looks at what holds the job up."""
TAKE_OVER_S = 5.0
"""Seconds between two attempts to take over a listing that another process began."""
PLAIN_LINES_S = 10.0
"""Seconds between two lines of progress where there is no terminal."""
RATE_S = 30.0
"""Seconds over which the displayed rate is measured."""
ENDED = (JobState.FINISHED, JobState.CANCELLED)

Show = Callable[[JobProgress], None]


@dataclass(frozen=True)
class Counts:
    """What `display` shows of other work than a job."""

    to_do: int
    scored: int
    failed: int
    is_listed: bool = True


@dataclass
class JobMonitor:
    """
    Follows a job: shows its progress, and says once what holds it up and what its workers report.

    broker: the owner of the job's private broker, whose worker alone is reported on; "" for the fleet.
    check: called with each progress; what it raises ends the wait.
    take_over: lists the job; does nothing while the process that lists it lives.
    """

    engine: Engine
    job_id: int
    printer: NoticePrinter
    show: Show
    broker: str = ""
    check: Show = lambda _: None
    take_over: Callable[[], object] = lambda: None

    def wait_until_done(self) -> JobProgress:
        """Wait until the job is finished or cancelled. Waits for the database while it does not answer."""
        self._notices_at = time.monotonic() + NOTICES_S
        self._take_over_at = time.monotonic() + TAKE_OVER_S
        while True:
            progress = retry_while_unavailable(self._look, self.printer.on_outage)
            if progress.state in ENDED:
                return progress
            count_at = time.monotonic() + COUNT_S
            while time.monotonic() < count_at:
                time.sleep(POLL_S)
                state = retry_while_unavailable(lambda: job_state(self.engine, self.job_id), self.printer.on_outage)
                if state in ENDED:
                    break

    def _look(self) -> JobProgress:
        progress = job_progress(self.engine, self.job_id)
        self.show(progress)
        if progress.state in ENDED:
            return progress
        if progress.is_listed and not progress.left:
            jobs.finish_if_done(self.engine, self.job_id)  # its last worker may have died before it could
        if time.monotonic() >= self._notices_at:
            self._show_notices()
            self._notices_at = time.monotonic() + NOTICES_S
        self.check(progress)
        if not progress.is_listed and time.monotonic() >= self._take_over_at:
            self.take_over()
            self._take_over_at = time.monotonic() + TAKE_OVER_S
        return progress

    def _show_notices(self) -> None:
        now = status.gather(self.engine, self.job_id)
        lines = {}
        for worker in now.serving:
            if worker.broker != self.broker:
                continue
            if worker.load_s is not None and self.broker:
                lines[worker.owner] = (
                    f"model {worker.model} at revision {worker.revision} loaded on {worker.device} "
                    f"in {worker.dtype}, in {worker.load_s:.1f} s"
                )
            if worker.notice:
                lines[worker.notice] = worker.notice
        if not self.broker or now.progress.state == JobState.PAUSED:  # a private worker is started by this process
            lines |= {key: f"job {self.job_id}: {words}" for key, words in status.obstacles(now)}
        self.printer.show_new(lines)


@contextmanager
def display(console: Console) -> Iterator[Callable[[JobProgress | Counts], None]]:
    """Show progress as a bar on a terminal and as a line from time to time elsewhere."""
    rate = _Rate()
    if console.is_terminal:
        words = TextColumn("{task.fields[words]}", markup=False)
        with Progress(
            SpinnerColumn(), BarColumn(), MofNCompleteColumn(), words, console=console, transient=True
        ) as bar:
            task = bar.add_task("", total=None, words="listing")

            def show(progress: JobProgress | Counts) -> None:
                total = progress.to_do if progress.is_listed else None
                done = progress.scored + progress.failed
                bar.update(task, total=total, completed=done, words=rate.describe(progress))

            yield show
    else:
        last = time.monotonic()

        def print_line(progress: JobProgress | Counts) -> None:
            nonlocal last
            words = rate.describe(progress)
            if time.monotonic() - last >= PLAIN_LINES_S:
                last = time.monotonic()
                done = progress.scored + progress.failed
                console.print(f"{done:,} of {progress.to_do:,} done, {words}", markup=False, highlight=False)

        yield print_line


class _Rate:
    """Photos per second over the last half minute, and the time left at that rate."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def describe(self, progress: JobProgress | Counts) -> str:
        now, done = time.monotonic(), progress.scored + progress.failed
        self._seen = [(then, count) for then, count in self._seen if now - then < RATE_S]
        if self._seen and self._seen[0][1] == done:
            self._seen.clear()  # nothing is done yet: the time to load the model does not count
        self._seen.append((now, done))
        began, already = self._seen[0]
        words = [f"{progress.failed:,} failed"]
        if done > already:
            rate = (done - already) / (now - began)
            words.append(per_second(rate))
            if progress.is_listed:
                words.append(f"{duration((progress.to_do - done) / rate)} left")
        return ", ".join(words)
