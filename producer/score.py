"""`qsit score`: submit, work, wait and sum up, in one command."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from rich.console import Console
from sqlalchemy import Engine

from models import db
from models.claims import QueueKey
from models.ledger import rescue
from models.queries.failures import count_failures
from models.queries.pagination import ResultFilter
from models.queries.progress import Progress, count_answers, job_progress
from models.queries.results import find_results
from producer import summary
from producer.exit_codes import ExitCode, Interrupted, exit_status
from producer.listing.lister import Lister
from producer.monitor import JobMonitor, Show, display
from producer.notices import NoticePrinter
from producer.private_run import PrivateRun, start_private_run
from producer.submit import Request, opened
from qsit import process_id
from qsit.errors import BrokerUnavailable, DatabaseUnavailable, SchemaMismatch
from qsit.settings import Settings
from worker import dispatch
from worker.app import app

SHOWN = 3
"""Worst and best photos in the summary."""


def score(chosen: Settings, request: Request, console: Console, scale: str) -> ExitCode:
    """Score the photos of a request and print a summary. Raises QsitError when it could not run; results are kept."""
    began = time.monotonic()
    private = chosen.broker_url is None
    engine = _open_or_create(chosen.database_url)
    if not private:
        dispatch.check_broker(app)
    rescue.requeue_of_dead(engine)
    printer = NoticePrinter(console)
    with opened(engine, request, printer.on_outage, private=private, endpoint_url=chosen.s3_endpoint_url) as lister:
        scored_before = job_progress(engine, lister.job.id).scored
        run = ScoreRun(engine, lister, printer, chosen.lease_s, chosen.database_url if private else None)
        try:
            progress = run.work()
        except Interrupted:
            run.say_interrupted()
            raise
    seconds = time.monotonic() - began
    is_set = "database_url" in chosen.model_fields_set
    for line in _summary(engine, progress, progress.scored - scored_before, seconds, scale, name_database=is_set):
        printer.say(line)
    return exit_status(progress)


def _open_or_create(database_url: str) -> Engine:
    """Open the ledger. Create and migrate it if it is in SQLite."""
    engine = db.connect(database_url, create=True)
    try:
        db.check_schema(engine)
    except SchemaMismatch:
        if engine.dialect.name != "sqlite":
            raise
        from migrations.upgrade import upgrade

        upgrade(database_url)
    return engine


@dataclass
class ScoreRun:
    """
    Lists a job and waits until it is done. Its workers are the fleet's, or a private one that starts with the first
    photo to score.

    private_url: the database of the private worker; None for the fleet.
    """

    engine: Engine
    lister: Lister
    printer: NoticePrinter
    lease_s: float
    private_url: str | None

    def __post_init__(self) -> None:
        self._queue = QueueKey(self.lister.job.model, self.lister.job.revision)
        if self.private_url is not None:
            self._queue = replace(self._queue, broker=process_id.identity(), job_id=self.lister.job.id)
        self._top_up_fleet = dispatch.BestEffortTopUp(self.engine, app, self._queue, self.lease_s, self.printer.say)
        self._run: PrivateRun | None = None
        self._stack = ExitStack()  # ends the private run, then the display
        self._show: Show = lambda _: None

    def work(self) -> Progress:
        """List the job and wait until it is done."""
        job = self.lister.job
        with self._stack:
            self._show = self._stack.enter_context(display(self.printer.console))
            try:
                listed = self._list()
                for line in summary.listing_notes(job, self.lister.listing, listed=listed):
                    self.printer.say(line)
                progress = job_progress(self.engine, job.id)
                if progress.left or not progress.is_listed:
                    self._top_up()
                broker, check = self._queue.broker, self._restart_dead
                monitor = JobMonitor(self.engine, job.id, self.printer, self._show, broker, check, self._list)
                return monitor.wait_until_done()
            except Interrupted:
                if self._run is not None:
                    self.printer.say("the worker returns its photos; interrupt again to stop at once")
                raise

    def say_interrupted(self) -> None:
        """Say what is done, and how to continue."""
        counts = ""
        with suppress(DatabaseUnavailable):
            counts = f"{summary.counts(job_progress(self.engine, self.lister.job.id))}; "
        self.printer.say(f"interrupted: {counts}nothing is lost, run the same command again to continue")

    def _list(self) -> bool:
        return self.lister.list(self._after_batch)

    def _after_batch(self, queued: int) -> None:
        progress = job_progress(self.engine, self.lister.job.id)
        self._show(progress)
        self._restart_dead(progress)
        if queued:
            self._top_up()

    def _top_up(self) -> None:
        if self.private_url is None:
            self._top_up_fleet()
            return
        if self._run is None:
            private = start_private_run(self._queue, self.private_url, self.lister.roots())
            self._run = self._stack.enter_context(private)
            app.conf.broker_url = self._run.url
        with suppress(BrokerUnavailable):  # the broker may have died just now; `_restart_dead` starts it again
            dispatch.top_up(self.engine, app, self._queue, self.lease_s)

    def _restart_dead(self, progress: Progress) -> None:
        if self._run is None:
            return
        message = self._run.restart_dead(progress.scored + progress.failed)
        if message is not None:
            self.printer.say(message)
            rescue.requeue_of_dead(self.engine)


def _summary(
    engine: Engine, progress: Progress, scored_now: int, seconds: float, scale: str, *, name_database: bool
) -> Iterator[str]:
    of_job = ResultFilter(job=progress.job, answers=progress.asks, limit=SHOWN)  # also photos that it only asked about
    best = list(find_results(engine, replace(of_job, sort="-score")))
    worst = list(find_results(engine, replace(of_job, sort="score")))
    shown_as_worst = {result.uri for result in worst}
    best = [result for result in best if result.uri not in shown_as_worst]
    reasons = count_failures(engine, progress.job)
    database = db.redacted(engine.url)
    command = f"QSIT_DATABASE_URL={database} qsit" if name_database and engine.url.password is None else "qsit"
    answers = count_answers(engine, progress.job) if progress.asks else 0
    return summary.summary(
        progress, scored_now, seconds, worst, best, reasons, database, command, scale=scale, answers=answers
    )
