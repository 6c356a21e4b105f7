"""The commands that steer jobs which are there."""

from datetime import timedelta

import click
from sqlalchemy import Engine

from models import db
from models.ledger import control, jobs, rescue, scheduling
from models.queries.progress import job_progress
from producer.formatting import count
from producer.summary import counts
from qsit import settings
from qsit.states import JobState, Reason


@click.command()
@click.argument("job", required=False)
def pause(job: str | None) -> None:
    """Send nothing more of a job; workers hand back what they hold after the batch in hand."""
    engine, job_id = _job(job)
    control.pause(engine, job_id)
    click.echo(f"job {job_id} is paused; to go on: qsit resume {job_id}", err=True)


@click.command()
@click.argument("job", required=False)
def resume(job: str | None) -> None:
    """Let a paused job go on."""
    engine, job_id = _job(job)
    control.resume(engine, job_id)
    click.echo(f"job {job_id} goes on{_hint(engine, job_id)}", err=True)


@click.command()
@click.argument("job", required=False)
def cancel(job: str | None) -> None:
    """Do nothing more of a job, for good; scores that are there stay."""
    engine, job_id = _job(job)
    control.cancel(engine, job_id)
    click.echo(f"job {job_id} is cancelled; {counts(job_progress(engine, job_id))}", err=True)


@click.command()
@click.argument("job", required=False)
@click.option("--reason", "reasons", multiple=True, type=click.Choice([str(reason) for reason in Reason]),
              help="Only what failed for this reason; repeatable.")  # fmt: skip
def retry(job: str | None, reasons: tuple[str, ...]) -> None:
    """Try the failed photos of a job again."""
    engine, job_id = _job(job)
    number = control.retry(engine, job_id, [Reason(reason) for reason in reasons])
    click.echo(f"{count(number, 'photo')} of job {job_id} queued again{_hint(engine, job_id)}", err=True)


@click.command()
@click.option("--older-than", "days", type=click.IntRange(0, 36500), default=30, show_default=True, metavar="DAYS",
              help="Of jobs that ended so many days ago.")  # fmt: skip
def prune(days: int) -> None:
    """Remove what the ledger holds of old jobs. Scores, counts and failures stay."""
    engine = db.open_ledger(settings.load().database_url)
    number = control.prune(engine, timedelta(days=days))
    click.echo(f"{count(number, 'row')} removed", err=True)


@click.command()
def recover() -> None:
    """Send again whatever was lost; safe at any time."""
    from worker import dispatch
    from worker.app import app

    chosen = settings.load()
    engine = db.open_ledger(chosen.database_url)
    dispatch.check_broker(app)
    number = rescue.recover(engine)
    for lane in scheduling.queues_with_work(engine):
        dispatch.top_up(engine, app, lane, chosen.lease_s)
    control.settle_cancelled(engine)
    jobs.finish_done_jobs(engine)
    click.echo(f"{count(number, 'chunk')} queued again", err=True)


def _hint(engine: Engine, job_id: int) -> str:
    """What else it takes for a job to go on."""
    progress = job_progress(engine, job_id)
    if progress.state == JobState.PAUSED:
        return f"; it is paused: qsit resume {job_id}"
    return "; run the same `qsit score` again" if progress.private and progress.left else ""


def _job(name_or_id: str | None) -> tuple[Engine, int]:
    engine = db.open_ledger(settings.load().database_url)
    return engine, jobs.find_job(engine, name_or_id)
