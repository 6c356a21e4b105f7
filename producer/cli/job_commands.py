"""The commands that change existing jobs."""

from datetime import timedelta

import click
from sqlalchemy import Engine

from models import db
from models.ledger import control, jobs, rescue, scheduling
from models.queries.progress import job_progress
from producer.cli import options
from producer.formatting import count
from producer.notices import NoticePrinter
from producer.summary import counts
from qsit import settings
from qsit.states import JobState, Reason


@click.command()
@options.job
def pause(job: str | None) -> None:
    """Pause a job (default: the latest).

    Workers finish the batch in hand and return the rest.
    """
    engine, job_id = options.find_job(job)
    control.pause(engine, job_id)
    NoticePrinter().say(f"job {job_id} is paused; to resume it: qsit resume {job_id}")


@click.command()
@options.job
def resume(job: str | None) -> None:
    """Resume a paused job (default: the latest)."""
    engine, job_id = options.find_job(job)
    control.resume(engine, job_id)
    NoticePrinter().say(f"job {job_id} is resumed{_hint(engine, job_id)}")


@click.command()
@options.job
def cancel(job: str | None) -> None:
    """Cancel a job (default: the latest) for good. Its scores stay."""
    engine, job_id = options.find_job(job)
    control.cancel(engine, job_id)
    NoticePrinter().say(f"job {job_id} is cancelled; {counts(job_progress(engine, job_id))}")


@click.command()
@options.job
@click.option(
    "--reason",
    "reasons",
    multiple=True,
    type=click.Choice([str(reason) for reason in Reason]),
    help="Retry only photos that failed for this reason. Repeatable.",
)
def retry(job: str | None, reasons: tuple[str, ...]) -> None:
    """Retry the failed photos of a job (default: the latest)."""
    engine, job_id = options.find_job(job)
    number = control.retry(engine, job_id, [Reason(reason) for reason in reasons])
    NoticePrinter().say(f"{count(number, 'photo')} of job {job_id} queued again{_hint(engine, job_id)}")


@click.command()
@click.option(
    "--older-than",
    "days",
    type=click.IntRange(0, 36500),
    default=30,
    show_default=True,
    metavar="DAYS",
    help="Prune jobs that ended this many days ago or earlier.",
)
def prune(days: int) -> None:
    """Remove the rows of old jobs that nothing needs any more. Scores, counts and failures stay."""
    engine = db.open_ledger(settings.load().database_url)
    number = control.prune(engine, timedelta(days=days))
    NoticePrinter().say(f"{count(number, 'row')} removed")


@click.command()
def recover() -> None:
    """Send lost work again. This is safe at any time; workers do the same by themselves."""
    from worker import app, dispatch

    chosen = settings.load()
    engine = db.open_ledger(chosen.database_url)
    dispatch.check_broker(app.app)
    number = rescue.recover(engine)
    for queue in scheduling.queues_with_work(engine):
        dispatch.top_up(engine, app.app, queue, chosen.lease_s)
    control.settle_cancelled(engine)
    jobs.finish_done_jobs(engine)
    NoticePrinter().say(f"{count(number, 'chunk')} queued again")


COMMANDS = (pause, resume, cancel, retry, prune, recover)


def _hint(engine: Engine, job_id: int) -> str:
    """Return what else the user must do for the job to continue."""
    progress = job_progress(engine, job_id)
    if progress.state == JobState.PAUSED:
        return f"; the job is paused, to resume it: qsit resume {job_id}"
    return "; run the same `qsit score` again" if progress.private and progress.left else ""
