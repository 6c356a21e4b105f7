"""`qsit score`: submit, work, wait and sum up, in one command."""

import time
from contextlib import ExitStack

from rich.console import Console
from sqlalchemy import Engine

from migrations.upgrade import upgrade
from models import db, fleet, ledger, queries
from models.ledger import Lane
from models.queries import Progress, Wanted
from producer import report
from producer.interrupts import Interrupted
from producer.local import LocalRun, local_run
from producer.submit import Lister, Request, opened
from producer.watch import Watch, display
from worker import dispatch
from worker.app import app
from worker.settings import Settings

SHOWN = 3
"""Worst and best photos in the summary."""


def score(chosen: Settings, request: Request, console: Console) -> int:
    """
    Score the photos of a request, and tell how it went. The exit status: 0, or 3 when more failed than allowed.

    Raises:
        QsitError: when it could not run; what is done is kept.
    """
    began = time.monotonic()
    private = chosen.broker_url is None
    engine = _own_database(chosen)
    if not private:
        dispatch.check_broker(app)
    ledger.free_the_dead(engine)
    with opened(engine, request, private=private) as lister:
        scored_before = queries.progress(engine, lister.job.id).scored
        try:
            progress = _work(engine, chosen, lister, console, private=private)
        except Interrupted:
            _say_how_to_go_on(engine, lister, console)
            raise
    _sum_up(engine, progress, progress.scored - scored_before, time.monotonic() - began, console)
    return 0 if progress.tolerated else 3


def _own_database(chosen: Settings) -> Engine:
    """The ledger; a SQLite one is made and migrated on the way."""
    if db.parse_url(chosen.database_url).drivername.startswith("sqlite"):
        db.connect(chosen.database_url, create=True)
        upgrade(chosen.database_url)
    engine = db.connect(chosen.database_url)
    db.check_schema(engine)
    return engine


def _work(engine: Engine, chosen: Settings, lister: Lister, console: Console, *, private: bool) -> Progress:
    """List, and wait until the job is done; the private worker starts with the first photo to score."""
    job = lister.job
    lane = Lane(job.model, job.revision, fleet.identity(), job.id) if private else Lane(job.model, job.revision)
    run: LocalRun | None = None
    with ExitStack() as stack:
        show = stack.enter_context(display(console))

        def work_begins() -> None:
            nonlocal run
            if private and run is None:
                run = stack.enter_context(local_run(chosen, job.id, job.model, job.revision, lister.roots()))
                app.conf.broker_url = run.url
            dispatch.top_up(engine, app, lane, chosen.lease_s)

        def after_batch(queued: int) -> None:
            show(queries.progress(engine, job.id))
            if queued:
                work_begins()

        listed = lister.list(after_batch)
        for line in report.listing_notes(job, lister.listing, listed=listed):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        progress = queries.progress(engine, job.id)
        if progress.queued + progress.running or not progress.is_listed:
            work_begins()
        check = run.check if run else lambda: None
        return Watch(engine, job.id, console, lane.broker).until_done(show, check)


def _say_how_to_go_on(engine: Engine, lister: Lister, console: Console) -> None:
    progress = queries.progress(engine, lister.job.id)
    console.print(
        f"interrupted: {report.counts(progress)}; nothing is lost, run the same command again to go on",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def _sum_up(engine: Engine, progress: Progress, scored_now: int, seconds: float, console: Console) -> None:
    best = list(queries.results(engine, Wanted(job=progress.job, sort="-score", limit=SHOWN)))
    worst = list(queries.results(engine, Wanted(job=progress.job, sort="score", limit=SHOWN)))
    shown_as_worst = {result.uri for result in worst}
    best = [result for result in best if result.uri not in shown_as_worst]
    reasons = queries.failures_by_reason(engine, progress.job)
    database = engine.url.render_as_string()
    for line in report.summary(progress, scored_now, seconds, worst, best, reasons, database):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
