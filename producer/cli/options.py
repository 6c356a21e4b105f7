"""Arguments and options that several commands share."""

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click
from sqlalchemy import Engine

from models import db
from models.ledger import jobs
from producer import question_files
from producer.formatting import SCALES
from producer.submit import Request
from qsit import settings
from qsit.errors import UsageError
from qsit.questions import MAX_NEW_TOKENS
from qsit.sources.source import parse_source

F = TypeVar("F", bound=Callable[..., Any])

job = click.argument("job", required=False)
"""A job's name or number; the latest job if none is given."""


def find_job(name_or_id: str | None) -> tuple[Engine, int]:
    """Open the ledger and return it with the id of a job."""
    engine = db.open_ledger(settings.load().database_url)
    return engine, jobs.find_job(engine, name_or_id)


scale = click.option(
    "--scale",
    type=click.Choice(list(SCALES)),
    default="0-1",
    show_default=True,
    help="Show scores on this scale. JSON always has 0 to 1.",
)


def output_format(*forms: str) -> Callable[[F], F]:
    """Return the option --format; the first form is the default."""
    return click.option(
        "--format", "form", type=click.Choice(forms), default=forms[0], show_default=True, help="The output format."
    )


def _check_max_failed(_: object, __: object, value: str) -> str:
    if not re.fullmatch(r"\d+|\d+(\.\d+)?%", value):
        raise click.BadParameter("write a number of photos (10) or a share (2%)")
    return value


def _check_name(_: object, __: object, value: str | None) -> str | None:
    if value is None:
        return None
    if db.sanitize_text(value) != value:
        raise click.BadParameter("it contains invalid UTF-8")
    if not value:
        raise click.BadParameter("it is empty")
    if value.isdecimal():
        raise click.BadParameter(f"a number would be taken for a job's id; write, for example, job-{value}")
    return value


def _check_number(_: object, __: object, value: float | None) -> float | None:
    if value is not None and math.isnan(value):  # click.FloatRange lets it pass
        raise click.BadParameter("it is not a number")
    return value


_REQUEST_OPTIONS = (
    click.argument("sources", nargs=-1, metavar="SOURCE..."),
    click.option("--name", callback=_check_name, help="Name the job. The same name again returns the same job."),
    click.option(
        "--model",
        metavar="MODEL",
        help="Use this model: a Hub id, a folder, or demo.  [default: QSIT_MODEL or zhangzicheng/q-sit-mini]",
    ),
    click.option(
        "--revision", help="Use this commit, tag or branch of the model.  [default: QSIT_REVISION or the newest]"
    ),
    click.option("--ask", multiple=True, metavar="TEXT", help="Ask a ready question by name, or any text. Repeatable."),
    click.option("--ask-file", metavar="FILE", help="Ask the questions in this TOML file."),
    click.option(
        "--ask-below",
        type=click.FloatRange(0, 1),
        callback=_check_number,
        metavar="SCORE",
        help="Ask only about photos with a score (0 to 1) below this one.",
    ),
    click.option(
        "--max-new-tokens",
        type=click.IntRange(1, 2000),
        metavar="N",
        help=f"End an answer in words after N tokens.  [default: {MAX_NEW_TOKENS}]",
    ),
    click.option("--rescore", is_flag=True, help="Score and ask again, also photos that have a score and answers."),
    click.option("--as-stored", is_flag=True, help="Take pixels as stored: not rotated, no colour profile applied."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Skip matching files and folders. Repeatable."),
    click.option("--files-from", metavar="FILE|-", help="Read sources from this file, one per line."),
    click.option("--column", metavar="NAME", help="Read the sources from this column of a CSV file."),
    click.option("-0", "null_separated", is_flag=True, help="Sources in the file are separated by NUL bytes."),
    click.option(
        "--priority",
        type=click.IntRange(-1_000_000, 1_000_000),
        default=0,
        show_default=True,
        help="Jobs with a higher priority go first.",
    ),
    click.option(
        "--max-failed",
        default="0",
        show_default=True,
        metavar="N|P%",
        callback=_check_max_failed,
        help="Exit with 0 although so many photos, or such a share of them, failed.",
    ),
)


def request_options(command: F) -> F:
    """Add the arguments that `score` and `submit` share."""
    for decorate in reversed(_REQUEST_OPTIONS):
        command = decorate(command)
    return command


def parse_request(
    chosen: settings.Settings, ask: tuple[str, ...], ask_file: str | None, max_new_tokens: int | None, **options: Any
) -> Request:
    """Return what those arguments ask for. The settings have the default model and its revision."""
    questions = question_files.parse_questions(ask, ask_file, max_new_tokens)
    for name, value in (("--ask-below", options["ask_below"]), ("--max-new-tokens", max_new_tokens)):
        if value is not None and not questions:
            raise UsageError(f"{name} needs a question: use --ask or --ask-file")
    options["model"] = options["model"] or chosen.model
    if options["revision"] is None:
        options["revision"] = chosen.revision_for(options["model"])
    options["sources"] = tuple(map(parse_source, options["sources"]))
    return Request(questions=questions, **options)
