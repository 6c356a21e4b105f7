"""What `score` and `submit` are told on the command line."""

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from models.db import sanitize_text
from producer import question_files
from producer.submit import Request
from qsit.errors import UsageError
from qsit.questions import MAX_NEW_TOKENS
from qsit.settings import Settings
from qsit.sources.source import parse_source

F = TypeVar("F", bound=Callable[..., Any])


def arguments(command: F) -> F:
    """The arguments that `score` and `submit` share."""
    for decorate in reversed((
        click.argument("sources", nargs=-1, metavar="SOURCE..."),
        click.option("--name", callback=_name,
                     help="A name of your own for the job; the same name again returns that job."),
        click.option("--model", help="Hub id, folder, or demo.  [default: QSIT_MODEL or zhangzicheng/q-sit-mini]"),
        click.option("--revision", help="Commit, tag or branch of the model.  [default: QSIT_REVISION or the newest]"),
        click.option("--ask", multiple=True, metavar="TEXT",
                     help="Ask this about each photo: a ready question (see qsit questions), or your own; repeatable."),
        click.option("--ask-file", metavar="FILE", help="Ask the questions of this TOML file."),
        click.option("--ask-below", type=click.FloatRange(0, 1), callback=_number, metavar="S",
                     help="Ask only about photos that score less, 0..1."),
        click.option("--max-new-tokens", type=click.IntRange(1, 2000), metavar="N",
                     help=f"How long an answer in words may get.  [default: {MAX_NEW_TOKENS}]"),
        click.option("--rescore", is_flag=True, help="Score and ask again what has a score and answers."),
        click.option("--as-stored", is_flag=True, help="Take the pixels as the file has them: not turned, no profile."),
        click.option("--exclude", multiple=True, metavar="GLOB", help="Leave out files and folders so named."),
        click.option("--files-from", metavar="FILE|-", help="A list of files and folders, one a line."),
        click.option("--column", metavar="NAME", help="The list is CSV; the column with the paths."),
        click.option("-0", "null_separated", is_flag=True, help="The list is separated by NUL bytes."),
        click.option("--priority", type=click.IntRange(-1_000_000, 1_000_000), default=0, show_default=True,
                     help="Higher goes first."),
        click.option("--max-failed", default="0", show_default=True, metavar="N|P%", callback=_max_failed,
                     help="Failed photos that are no failure of the job."),
    )):  # fmt: skip
        command = decorate(command)
    return command


def request(
    chosen: Settings, ask: tuple[str, ...], ask_file: str | None, max_new_tokens: int | None, **options: Any
) -> Request:
    """
    What those arguments ask for.

    Raises:
        UsageError: when a question cannot be asked, or nothing is asked that is told how.
    """
    asked = question_files.wanted(ask, ask_file, max_new_tokens)
    for name, value in (("--ask-below", options["ask_below"]), ("--max-new-tokens", max_new_tokens)):
        if value is not None and not asked:
            raise UsageError(f"{name} is about questions; give one with --ask or --ask-file")
    options["model"] = options["model"] or chosen.model
    if options["revision"] is None:
        options["revision"] = chosen.revision_for(options["model"])
    options["sources"] = tuple(map(parse_source, options["sources"]))
    return Request(questions=asked, **options)


def _max_failed(_: object, __: object, value: str) -> str:
    if not re.fullmatch(r"\d+|\d+(\.\d+)?%", value):
        raise click.BadParameter("write a number of photos (10) or a share (2%)")
    return value


def _name(_: object, __: object, value: str | None) -> str | None:
    if value is not None and sanitize_text(value) != value:
        raise click.BadParameter("it has bytes that are no text")
    if value == "":
        raise click.BadParameter("it is empty")
    if value is not None and value.isdecimal():
        raise click.BadParameter(f"it would be taken for a job's number; write, say, job-{value}")
    return value


def _number(_: object, __: object, value: float | None) -> float | None:
    if value is not None and math.isnan(value):  # which is within no range, and outside none
        raise click.BadParameter("it is no number")
    return value
