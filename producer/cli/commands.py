"""Every command of qsit: it talks, parses and prints."""

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Console
from sqlalchemy import Engine

from models import db
from models.claims import QueueKey
from models.ledger import jobs
from models.queries import results as result_queries
from models.queries.failures import list_failures
from models.queries.pagination import ResultFilter
from models.queries.progress import Progress
from models.queries.results import find_results
from models.retry import retry_while_unavailable
from producer import export, formatting, question_files, summary
from producer import status as job_status
from producer.cli import job_commands
from producer.cli import options as job_options
from producer.cli.evaluate import evaluate
from producer.exit_codes import OK, exit_status
from producer.interrupts import Interrupted
from producer.monitor import LISTER_CHECK_S, JobMonitor, NoticePrinter, display
from producer.submit import opened
from qsit import settings
from qsit.errors import UsageError
from qsit.questions import BUILTIN_QUESTIONS
from qsit.sources.source import parse_source, parse_uri_pattern
from qsit.states import JobState
from worker.launch import COMMAND, SAFE_PATH


def _talk(line: str) -> None:
    click.echo(line, err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="qsit")
def cli() -> None:
    """Score the technical quality of whole photo libraries with Q-SiT."""


_scale = click.option("--scale", type=click.Choice(list(formatting.SCALES)), default="0-1", show_default=True,
                      help="Of the scores that people read; JSON has 0..1.")  # fmt: skip


@cli.command()
@job_options.arguments
@_scale
def score(scale: str, **options: Any) -> int:
    """Score photos here and now: lists SOURCE (folders and files), works, and ends with a summary.

    Starts a queue and a worker of its own, unless QSIT_BROKER_URL names a Redis whose workers do it.
    """
    from producer.score import score as run_score

    chosen = settings.load()
    return run_score(chosen, job_options.request(chosen, **options), Console(stderr=True), scale)


@cli.command()
@job_options.arguments
@click.option("--wait", "waits", is_flag=True, help="Wait until the job is finished, as `qsit wait` does.")
def submit(waits: bool, **options: Any) -> int:
    """Enqueue photos for the workers; prints the job's id."""
    from worker import dispatch
    from worker.app import app

    chosen = settings.load()
    request = job_options.request(chosen, **options)
    engine = db.open_ledger(chosen.database_url)
    dispatch.check_broker(app)
    teller = NoticePrinter(Console(stderr=True))
    with opened(engine, request, teller.away, endpoint_url=chosen.s3_endpoint_url) as lister:
        job = lister.job
        lane = QueueKey(job.model, job.revision)
        top_up = dispatch.topping_up(engine, app, lane, chosen.lease_s, _talk)
        listed = lister.list(top_up)
        top_up()
        for line in summary.listing_notes(job, lister.listing, listed=listed):
            _talk(line)
        click.echo(job.id)
        # a listing that another process leaves unfinished is taken over
        return _wait(engine, job.id, teller, lambda: lister.list(top_up)) if waits else OK


@cli.command()
@click.option("--device", help="auto, cpu, cuda, or cuda:0,cuda:1: one process each.  [default: QSIT_DEVICE or auto]")
@click.option("--model", help="The model to hold.  [default: QSIT_MODEL or zhangzicheng/q-sit-mini]")
@click.option("--root", "roots", multiple=True, metavar="DIR", help="A folder or s3:// place it may read; repeatable.")
def worker(device: str | None, model: str | None, roots: tuple[str, ...]) -> None:
    """Run a worker: one process and one loaded model a device, fed by Redis, until it is told to end."""

    for variable, value in (("QSIT_DEVICE", device), ("QSIT_MODEL", model)):
        if value is not None:
            os.environ[variable] = value
    if roots:
        os.environ["QSIT_ROOTS"] = json.dumps([parse_source(root).name for root in roots])
    os.execve(COMMAND[0], COMMAND, os.environ | SAFE_PATH)  # noqa: S606 -- signals reach it as they reached this


@cli.command("questions")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def ready_questions(form: str) -> int:
    """List the ready questions that --ask takes by name; of their choices the last is the best."""
    ready = list(BUILTIN_QUESTIONS.values())
    if form == "json":
        click.echo(json.dumps([question_files.record(question) for question in ready]))
    else:
        click.echo("\n".join(question_files.lines(ready)))
    return OK


@cli.command()
@click.argument("job", required=False)
@click.option("--watch", is_flag=True, help="Show it again every two seconds until it is finished.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def status(job: str | None, watch: bool, form: str) -> int:
    """Show how far a job is (the latest, if none is named), and its workers."""
    engine = db.open_ledger(settings.load().database_url)
    job_id = jobs.find_job(engine, job)
    teller = NoticePrinter(Console(stderr=True))
    while True:
        now = (
            retry_while_unavailable(lambda: job_status.gather(engine, job_id), teller.away)
            if watch
            else job_status.gather(engine, job_id)
        )
        if watch and form == "table" and sys.stdout.isatty():
            click.clear()
        if form == "json":
            click.echo(json.dumps(job_status.record(now)))
        else:
            click.echo("\n".join(job_status.lines(now)))
        if not watch or now.progress.state in (JobState.FINISHED, JobState.CANCELLED):
            return OK
        time.sleep(2)


@cli.command()
@click.argument("job", required=False)
def wait(job: str | None) -> int:
    """Wait until a job is finished; exits with 3 when more photos failed than --max-failed allowed."""
    engine = db.open_ledger(settings.load().database_url)
    return _wait(engine, jobs.find_job(engine, job), NoticePrinter(Console(stderr=True)))


def _wait(engine: Engine, job_id: int, teller: NoticePrinter, list_anew: Callable[[], object] | None = None) -> int:
    looked = time.monotonic()

    def check(progress: Progress) -> None:
        nonlocal looked
        if list_anew is not None and not progress.is_listed and time.monotonic() - looked > LISTER_CHECK_S:
            list_anew()  # which does nothing while the process that lists the job lives
            looked = time.monotonic()

    try:
        with display(teller.console) as show:
            progress = JobMonitor(engine, job_id, teller).until_done(show, check)
    except Interrupted:
        _talk(f"no longer waiting; job {job_id} goes on with its workers")
        raise
    _talk(f"job {job_id}, {summary.counts(progress)}")
    return exit_status(progress)


@cli.command()
@click.argument("job", required=False)
@click.option("--format", "form", type=click.Choice(["table", "jsonl", "csv"]), default="table", show_default=True)
def failures(job: str | None, form: str) -> int:
    """List the photos of a job (the latest, if none is named) that failed, each with its reason."""
    engine = db.open_ledger(settings.load().database_url)
    export.write_failures(list_failures(engine, jobs.find_job(engine, job)), form, sys.stdout)
    return OK


@cli.command()
@click.option("--job", help="Computed by this job.")
@click.option("--model", help="Of this model.")
@click.option(
    "--under",
    metavar="PREFIX",
    help="Of photos in this folder, or whose URI begins with this, if it ends with a *.",
)
@click.option("--min", "min_score", type=click.FloatRange(0, 1), help="Of at least this score, 0..1.")
@click.option("--max", "max_score", type=click.FloatRange(0, 1), help="Of at most this score, 0..1.")
@click.option("--sort", type=click.Choice(["score", "-score", "uri", "-scored_at"]), default="score", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="So many at most.")
@click.option("--all-versions", is_flag=True, help="Also scores of photos that have changed since.")
@click.option("--answers", is_flag=True, help="With the answers to questions.")
@_scale
@click.option(
    "--format", "form", type=click.Choice(["table", "jsonl", "csv", "paths"]), default="table", show_default=True
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file.")
def results(
    job: str | None, model: str | None, under: str | None, answers: bool, scale: str, form: str, output: Path | None,
    **options: Any,
) -> int:  # fmt: skip
    """Query scores: the worst first, of the current version of each photo."""
    from qsit import checkpoints

    engine = db.open_ledger(settings.load().database_url)
    if under is not None:
        under = parse_uri_pattern(under)
    wanted = ResultFilter(
        job=None if job is None else jobs.find_job(engine, job),
        model=None if model is None else checkpoints.full_name(model),
        under=under,
        answers=answers and form != "paths",
        **options,
    )
    names: list[str] | None = None
    if wanted.answers:
        names = result_queries.question_names(engine, wanted) if form == "csv" else []
        if output is None and isinstance(sys.stdout, io.TextIOWrapper):
            # the locale may not have the letters of every language
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    with _opened_output(output) as file:
        demo = export.write_results(find_results(engine, wanted), form, scale, file, names)
    if demo:
        _talk(f"note: {formatting.DEMO_NOTE}")
    return OK


@contextlib.contextmanager
def _opened_output(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        return
    try:
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield file
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


for command in (
    job_commands.pause,
    job_commands.resume,
    job_commands.cancel,
    job_commands.retry,
    job_commands.prune,
    job_commands.recover,
    evaluate,
):
    cli.add_command(command)


@cli.group("db")
def database() -> None:
    """The database's schema."""


@database.command()
def upgrade() -> int:
    """Bring the database to this program's schema; makes it if need be."""
    from migrations.upgrade import upgrade as run_upgrade

    chosen = settings.load()
    run_upgrade(chosen.database_url)
    _talk(f"{db.redacted(db.parse_url(chosen.database_url))} has schema {db.SCHEMA}")
    return OK


@database.command()
def check() -> int:
    """Tell whether the database can be reached and has this program's schema."""
    chosen = settings.load()
    engine = db.open_ledger(chosen.database_url)
    _talk(f"{db.redacted(engine.url)} has schema {db.SCHEMA}")
    return OK
