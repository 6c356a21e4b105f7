"""`qsit score`: submit, work, wait and sum up, in one command."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial

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
from producer.exit_codes import exit_status
from producer.interrupts import Interrupted
from producer.monitor import LISTER_CHECK_S, JobMonitor, NoticePrinter, display
from producer.private_run import LocalRun, local_run
from producer.submit import Lister, Request, opened
from qsit import process_id
from qsit.errors import BrokerUnavailable, DatabaseUnavailable, SchemaMismatch
from qsit.settings import Settings
from worker import dispatch
from worker.app import app

SHOWN = 3
"""Worst and best photos in the summary."""


def score(chosen: Settings, request: Request, console: Console, scale: str) -> int:
    """
    Score the photos of a request, and tell how it went. Returns the exit status.

    Raises:
        QsitError: when it could not run; what is done is kept.
    """
    began = time.monotonic()
    private = chosen.broker_url is None
    engine = _own_database(chosen)
    if not private:
        dispatch.check_broker(app)
    rescue.requeue_of_dead(engine)
    teller = NoticePrinter(console)
    with opened(engine, request, teller.away, private=private, endpoint_url=chosen.s3_endpoint_url) as lister:
        scored_before = job_progress(engine, lister.job.id).scored
        try:
            progress = _work(engine, chosen, lister, console, teller, private=private)
        except Interrupted:
            _say_how_to_go_on(engine, lister, console)
            raise
    seconds = time.monotonic() - began
    for line in _summary(engine, chosen, progress, progress.scored - scored_before, seconds, scale):
        _say(console, line)
    return exit_status(progress)


def _own_database(chosen: Settings) -> Engine:
    """The ledger; a SQLite one is made and migrated on the way."""
    engine = db.connect(chosen.database_url, create=True)
    try:
        db.check_schema(engine)
    except SchemaMismatch:
        if engine.dialect.name != "sqlite":
            raise
        from migrations.upgrade import upgrade

        upgrade(chosen.database_url)
    return engine


def _work(
    engine: Engine, chosen: Settings, lister: Lister, console: Console, teller: NoticePrinter, *, private: bool
) -> Progress:
    """List, and wait until the job is done; the private worker starts with the first photo to score."""
    job = lister.job
    lane = (
        QueueKey(job.model, job.revision, process_id.identity(), job.id)
        if private
        else QueueKey(job.model, job.revision)
    )
    run: LocalRun | None = None
    looked = time.monotonic()
    top_up_fleet = dispatch.BestEffortTopUp(engine, app, lane, chosen.lease_s, partial(_say, console))

    def work_begins() -> None:
        nonlocal run
        if not private:
            top_up_fleet()
            return
        if run is None:
            run = stack.enter_context(local_run(chosen, job.id, job.model, job.revision, lister.roots()))
            app.conf.broker_url = run.url
        with suppress(BrokerUnavailable):  # should it have died just now
            dispatch.top_up(engine, app, lane, chosen.lease_s)

    def heal(progress: Progress) -> None:
        if run is not None and (news := run.check(progress.scored + progress.failed)) is not None:
            _say(console, news)
            rescue.requeue_of_dead(engine)

    def after_batch(queued: int) -> None:
        progress = job_progress(engine, job.id)
        show(progress)
        heal(progress)
        if queued:
            work_begins()

    def check(progress: Progress) -> None:
        nonlocal looked
        heal(progress)
        if not progress.is_listed and time.monotonic() - looked > LISTER_CHECK_S:
            lister.list(after_batch)  # which does nothing while the process that lists the job lives
            looked = time.monotonic()

    with ExitStack() as stack:
        show = stack.enter_context(display(console))
        try:
            listed = lister.list(after_batch)
            for line in summary.listing_notes(job, lister.listing, listed=listed):
                _say(console, line)
            progress = job_progress(engine, job.id)
            if progress.queued + progress.running or not progress.is_listed:
                work_begins()
            return JobMonitor(engine, job.id, teller, lane.broker).until_done(show, check)
        except Interrupted:
            if run is not None:
                _say(console, "handing back what is in work; interrupt again to stop at once")
            raise


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _say_how_to_go_on(engine: Engine, lister: Lister, console: Console) -> None:
    done = ""
    with suppress(DatabaseUnavailable):
        done = f"{summary.counts(job_progress(engine, lister.job.id))}; "
    _say(console, f"interrupted: {done}nothing is lost, run the same command again to go on")


def _summary(
    engine: Engine, chosen: Settings, progress: Progress, scored_now: int, seconds: float, scale: str
) -> Iterator[str]:
    of_job = ResultFilter(job=progress.job, answers=progress.asks, limit=SHOWN)  # with what it has only asked about
    best = list(find_results(engine, replace(of_job, sort="-score")))
    worst = list(find_results(engine, replace(of_job, sort="score")))
    shown_as_worst = {result.uri for result in worst}
    best = [result for result in best if result.uri not in shown_as_worst]
    reasons = count_failures(engine, progress.job)
    answers = count_answers(engine, progress.job) if progress.asks else 0
    database = db.redacted(engine.url)
    named = "database_url" in chosen.model_fields_set and engine.url.password is None
    command = f"QSIT_DATABASE_URL={database} qsit" if named else "qsit"
    return summary.summary(
        progress, scored_now, seconds, worst, best, reasons, database, command, scale=scale, answers=answers
    )
