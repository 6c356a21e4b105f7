"""The commands that print results, failures and questions."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import IO, Any

import click

from models import db
from models.ledger import jobs
from models.queries.failures import list_failures
from models.queries.pagination import ResultFilter
from models.queries.results import find_results, question_names
from producer import export
from producer.cli import options
from producer.formatting import DEMO_NOTE
from producer.notices import NoticePrinter
from qsit import settings
from qsit.checkpoints import DEMO, full_name
from qsit.errors import UsageError
from qsit.questions import BUILTIN_QUESTIONS
from qsit.sources.source import parse_uri_pattern


@click.command()
@options.output_format("table", "json")
def questions(form: str) -> None:
    """List the ready questions, which --ask takes by name. The last of their choices is the best."""
    if form == "json":
        fields = ("name", "text", "choices")
        ready = BUILTIN_QUESTIONS.values()
        click.echo(json.dumps([{field: getattr(question, field) for field in fields} for question in ready]))
        return
    click.echo(f"{'name':12} question")
    for question in BUILTIN_QUESTIONS.values():
        click.echo(f"{question.name:12} {question.text}")
        if question.choices:
            click.echo(f"{'':12} {', '.join(question.choices)}")


@click.command()
@options.job
@options.output_format("table", "jsonl", "csv")
def failures(job: str | None, form: str) -> None:
    """List the failed photos of a job (default: the latest), and why."""
    export.write_failures(list_failures(*options.find_job(job)), form, sys.stdout)


@click.command()
@click.option("--job", help="Show only scores from this job.")
@click.option("--model", help="Show only scores from this model.")
@click.option(
    "--under",
    metavar="PREFIX",
    help="Show only photos in this folder. With a * at the end: whose path or URI begins so.",
)
@click.option("--min", "min_score", type=click.FloatRange(0, 1), help="Show only scores (0 to 1) of at least this.")
@click.option("--max", "max_score", type=click.FloatRange(0, 1), help="Show only scores (0 to 1) of at most this.")
@click.option(
    "--sort",
    type=click.Choice(["score", "-score", "uri", "-scored_at"]),
    default="score",
    show_default=True,
    help="Sort by this field. A minus sign reverses the order.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Show at most this many results.")
@click.option("--all-versions", is_flag=True, help="Also show scores of earlier versions of photos.")
@click.option("--answers", is_flag=True, help="Also show the answers to questions.")
@options.scale
@options.output_format("table", "jsonl", "csv", "paths")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file.")
def results(
    job: str | None,
    model: str | None,
    under: str | None,
    answers: bool,
    scale: str,
    form: str,
    output: Path | None,
    **filters: Any,
) -> None:
    """Show the scores of photos, the worst first.

    Each photo is shown at its current version.
    """
    engine = db.open_ledger(settings.load().database_url)
    wanted = ResultFilter(
        under=None if under is None else parse_uri_pattern(under),
        job=None if job is None else jobs.find_job(engine, job),
        model=None if model is None else full_name(model),
        answers=answers and form != "paths",
        **filters,
    )
    names: list[str] | None = None
    if wanted.answers:
        names = question_names(engine, wanted) if form == "csv" else []
        if output is None and isinstance(sys.stdout, io.TextIOWrapper):
            # the locale may lack letters that answers have
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    opened: contextlib.AbstractContextManager[IO[str]] = contextlib.nullcontext(sys.stdout)
    try:
        if output is not None:
            opened = output.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        with opened as file:
            models = export.write_results(find_results(engine, wanted), form, scale, file, names)
    except OSError as error:
        if output is None:
            raise
        raise UsageError(f"cannot write {output}: {error.strerror}") from error
    if DEMO in models:
        NoticePrinter().say(f"note: {DEMO_NOTE}")


COMMANDS = (questions, failures, results)
