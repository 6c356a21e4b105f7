"""The group of all commands, and those that make, run and follow jobs."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import click
from sqlalchemy import Engine

from models import db
from models.claims import QueueKey
from models.retry import retry_while_unavailable
from producer import status as job_status
from producer import summary
from producer.cli import job_commands, options, result_commands
from producer.cli.evaluate import evaluate
from producer.exit_codes import ExitCode, Interrupted, exit_status
from producer.monitor import ENDED, JobMonitor, display
from producer.notices import NoticePrinter
from producer.submit import opened
from qsit import settings
from qsit.sources.source import parse_source
from worker.launch import COMMAND, ENVIRONMENT

WATCH_S = 2.0
"""Seconds between two views of `qsit status --watch`."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="qsit")
def cli() -> None:
    """Score the technical quality of whole photo libraries with Q-SiT."""


@cli.command()
@options.request_options
@options.scale
def score(scale: str, **arguments: Any) -> int:
    """Score photos now, and print a summary.

    SOURCE is a folder, a file, or a place in S3 (s3://bucket/key). The command lists the sources and starts a queue and
    a worker of its own. If QSIT_BROKER_URL names a Redis, the workers on that Redis score the photos instead.
    """
    from producer.score import score as run_score

    chosen = settings.load()
    request = options.parse_request(chosen, **arguments)
    return run_score(chosen, request, NoticePrinter().console, scale)


@cli.command()
@options.request_options
@click.option("--wait", "waits", is_flag=True, help="Wait until the job is finished, as `qsit wait` does.")
def submit(waits: bool, **arguments: Any) -> int:
    """Enqueue photos for the workers, and print the job's id.

    SOURCE is a folder, a file, or a place in S3 (s3://bucket/key).
    """
    from worker import dispatch
    from worker.app import app

    chosen = settings.load()
    request = options.parse_request(chosen, **arguments)
    engine = db.open_ledger(chosen.database_url)
    dispatch.check_broker(app)
    printer = NoticePrinter()
    with opened(engine, request, printer.on_outage, endpoint_url=chosen.s3_endpoint_url) as lister:
        job = lister.job
        queue = QueueKey(job.model, job.revision)
        top_up = dispatch.BestEffortTopUp(engine, app, queue, chosen.lease_s, printer.say)
        listed = lister.list(top_up)
        top_up()
        for line in summary.listing_notes(job, lister.listing, listed=listed):
            printer.say(line)
        click.echo(job.id)
        return _wait(engine, job.id, printer, lambda: lister.list(top_up)) if waits else ExitCode.OK


@cli.command()
@click.option(
    "--device",
    help="Run on auto, cpu, cuda, or cuda:0,cuda:1 with one process per device.  [default: QSIT_DEVICE or auto]",
)
@click.option("--model", help="Hold this model.  [default: QSIT_MODEL or zhangzicheng/q-sit-mini]")
@click.option(
    "--root",
    "roots",
    multiple=True,
    metavar="DIR",
    help="Read photos in this folder or s3:// place. Repeatable.  [default: QSIT_ROOTS]",
)
def worker(device: str | None, model: str | None, roots: tuple[str, ...]) -> None:
    """Run a worker until it is told to end.

    A worker has one process per device, each with a loaded model, and takes its work from Redis.
    """
    for variable, value in (("QSIT_DEVICE", device), ("QSIT_MODEL", model)):
        if value is not None:
            os.environ[variable] = value
    if roots:
        os.environ["QSIT_ROOTS"] = json.dumps([parse_source(root).name for root in roots])
    os.execve(COMMAND[0], COMMAND, os.environ | ENVIRONMENT)  # noqa: S606 -- so that signals reach the worker itself


@cli.command()
@options.job
@click.option("--watch", is_flag=True, help="Show the status every two seconds until the job is finished.")
@options.output_format("table", "json")
def status(job: str | None, watch: bool, form: str) -> None:
    """Show the progress and workers of a job (default: the latest).

    Lists what holds the job up as stuck.
    """
    engine, job_id = options.find_job(job)
    if not watch:
        _print_status(job_status.gather(engine, job_id), form)
        return
    printer = NoticePrinter()
    while True:
        now = retry_while_unavailable(lambda: job_status.gather(engine, job_id), printer.on_outage)
        if form == "table" and sys.stdout.isatty():
            click.clear()
        _print_status(now, form)
        if now.progress.state in ENDED:
            return
        time.sleep(WATCH_S)


def _print_status(status: job_status.Status, form: str) -> None:
    click.echo(json.dumps(job_status.record(status)) if form == "json" else "\n".join(job_status.lines(status)))


@cli.command()
@options.job
def wait(job: str | None) -> int:
    """Wait until a job (default: the latest) is finished.

    Exits with 3 if more photos failed than the job's --max-failed allows.
    """
    return _wait(*options.find_job(job), NoticePrinter())


def _wait(
    engine: Engine, job_id: int, printer: NoticePrinter, take_over: Callable[[], object] = lambda: None
) -> ExitCode:
    """Wait for a job of the fleet. A listing that another process leaves unfinished is taken over."""
    try:
        with display(printer.console) as show:
            progress = JobMonitor(engine, job_id, printer, show, take_over=take_over).wait_until_done()
    except Interrupted:
        printer.say(f"no longer waiting; the workers continue job {job_id}")
        raise
    printer.say(f"job {job_id}, {summary.counts(progress)}")
    return exit_status(progress)


for command in (*job_commands.COMMANDS, *result_commands.COMMANDS, evaluate):
    cli.add_command(command)


@cli.group("db")
def database() -> None:
    """Upgrade and check the database."""


@database.command()
def upgrade() -> None:
    """Create the database if needed, and migrate it to the schema of this version of qsit."""
    from migrations.upgrade import upgrade as run_upgrade

    chosen = settings.load()
    run_upgrade(chosen.database_url)
    NoticePrinter().say(f"{db.redacted(db.parse_url(chosen.database_url))} has schema {db.SCHEMA}")


@database.command()
def check() -> None:
    """Check that the database answers and has the schema of this version of qsit."""
    engine = db.open_ledger(settings.load().database_url)
    NoticePrinter().say(f"{db.redacted(engine.url)} has schema {db.SCHEMA}")
