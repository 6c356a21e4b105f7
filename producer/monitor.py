"""Waiting for a job, with its progress in view."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from sqlalchemy import Engine

from models.ledger import jobs
from models.queries.progress import Progress as JobProgress
from models.queries.progress import job_progress
from models.retry import retry_while_unavailable
from producer import status
from producer.formatting import duration, per_second
from qsit.errors import DatabaseUnavailable
from qsit.states import JobState

POLL_S = 0.25
NEWS_S = 2.0
LISTER_CHECK_S = 5.0
"""How often to look whether a job that another process lists has lost it."""
PLAIN_LINES_S = 10.0
RATE_S = 30.0

Show = Callable[[JobProgress], None]


class Counts(Protocol):
    """The counts that `display` shows, of a job or of other work."""

    @property
    def is_listed(self) -> bool: ...
    @property
    def to_do(self) -> int: ...
    @property
    def scored(self) -> int: ...
    @property
    def failed(self) -> int: ...


class NoticePrinter:
    """Says what is new: each thing once, and again when it comes back."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._current: set[str] = set()
        self._away = ""

    def news(self, lines: dict[str, str]) -> None:
        """Say the lines whose keys were not among the last."""
        for key, line in lines.items():
            if key not in self._current:
                self._say(line)
        self._current = set(lines)

    def away(self, error: DatabaseUnavailable | None) -> None:
        """Say that the database is waited for, and why."""
        words = "" if error is None else f"{error}; waiting until it answers"
        if words and words != self._away:
            self._say(words)
        self._away = words

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class JobMonitor:
    """Follows a job; tells once what holds it up, and what each of its workers has to say."""

    def __init__(self, engine: Engine, job_id: int, teller: NoticePrinter, broker: str = "") -> None:
        self._engine = engine
        self._job_id = job_id
        self._broker = broker
        self._teller = teller
        self._news_at = time.monotonic() + NEWS_S

    def until_done(self, show: Show, check: Show = lambda _: None) -> JobProgress:
        """
        Wait until the job is finished or cancelled; and for the database, while it is away.

        check: called now and then; what it raises ends the waiting.
        """
        while True:
            progress = retry_while_unavailable(lambda: self._look(show, check), self._teller.away)
            if progress.state in (JobState.FINISHED, JobState.CANCELLED):
                return progress
            time.sleep(POLL_S)

    def _look(self, show: Show, check: Show) -> JobProgress:
        progress = job_progress(self._engine, self._job_id)
        show(progress)
        if progress.state in (JobState.FINISHED, JobState.CANCELLED):
            return progress
        if progress.is_listed and not progress.left:
            jobs.finish_if_done(self._engine, self._job_id)  # whose last worker ended before it could
        if time.monotonic() >= self._news_at:
            self._tell_news()
            self._news_at = time.monotonic() + NEWS_S
        check(progress)
        return progress

    def _tell_news(self) -> None:
        now = status.gather(self._engine, self._job_id)
        lines = {}
        for worker in now.serving:
            if worker.broker != self._broker:
                continue
            if worker.load_s is not None and self._broker:
                lines[worker.owner] = (
                    f"model {worker.model} at revision {worker.revision} loaded on {worker.device} "
                    f"in {worker.dtype}, in {worker.load_s:.1f} s"
                )
            if worker.notice:
                lines[worker.notice] = worker.notice
        if not self._broker or now.progress.state == JobState.PAUSED:  # a worker of its own is on its way
            lines |= {key: f"job {self._job_id}: {words}" for key, words in status.obstacles(now)}
        self._teller.news(lines)


@contextmanager
def display(console: Console) -> Iterator[Callable[[Counts], None]]:
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

        def show(progress: Counts) -> None:
            total = progress.to_do if progress.is_listed else None
            done = progress.scored + progress.failed
            bar.update(task, total=total, completed=done, words=rate.words(progress))

        yield show


class _Rate:
    """Photos a second over the last half minute, and what that says about the time left."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def words(self, progress: Counts) -> str:
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
                words.append(f"{duration((progress.to_do - done) / rate)} left")
        return ", ".join(words)


def _plain_lines(console: Console, rate: _Rate) -> Callable[[Counts], None]:
    last = time.monotonic()

    def show(progress: Counts) -> None:
        nonlocal last
        words = rate.words(progress)
        if time.monotonic() - last >= PLAIN_LINES_S:
            last = time.monotonic()
            done = progress.scored + progress.failed
            console.print(f"{done:,} of {progress.to_do:,} done, {words}", markup=False, highlight=False)

    return show
