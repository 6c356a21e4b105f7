"""The wording of help and messages. Other tests assert statuses, fields and reasons."""

import re
from collections.abc import Iterator
from dataclasses import replace

import click
import pytest

from models.queries.progress import Silence
from producer import status, summary
from producer.cli.commands import cli
from producer.status import Status
from qsit.states import JobState, Reason
from tests.support.records import PROGRESS, RESULT

ACTIVE = replace(PROGRESS, state=JobState.ACTIVE, queued=700, failed=0)


def commands(group: click.Group = cli) -> Iterator[click.Command]:
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from commands(command)


def help_texts() -> Iterator[tuple[str, str]]:
    for command in commands():
        if command.name == "evaluate":
            continue
        yield f"{command.name}", command.help or ""
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                yield f"{command.name} {parameter.opts[0]}", parameter.help or ""


def test_help_is_in_whole_short_sentences() -> None:
    for name, text in help_texts():
        sentences = re.sub(r"\s*\[default: [^\]]*\]", "", text).strip()
        assert re.match(r"[A-Z]", sentences), name
        assert sentences.endswith("."), name
        assert max(len(sentence.split()) for sentence in re.split(r"[.:]\s", sentences)) <= 25, name


def test_the_first_line_of_help_fits_into_the_list_of_commands() -> None:
    _, listed = cli.get_help(click.Context(cli, terminal_width=80)).split("Commands:")

    assert "..." not in listed


def test_the_summary() -> None:
    lines = summary.summary(
        PROGRESS, 1087, 10.0, [RESULT, RESULT], [RESULT], {Reason.CORRUPT: 9, Reason.EMPTY: 1}, "sqlite:///x"
    )

    assert list(lines) == [
        "job 7, 1,200 photos: 1,087 scored, 100 skipped (have their score), 3 skipped (failed before, unchanged), "
        "10 failed",
        "1,087 photos scored now, in 10.0 s: 109 per second",
        "worst   0.2500  Bad        /p/a b.jpg",
        "        0.2500  Bad        /p/a b.jpg",
        "best    0.2500  Bad        /p/a b.jpg",
        "failed: 9 corrupt, 1 empty; to list them: qsit failures 7",
        "results are in sqlite:///x; to query them: qsit results",
    ]


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (
            Status(replace(ACTIVE, state=JobState.PAUSED), {}, None, [], []),
            "the job is paused; to resume it: qsit resume 7",
        ),
        (
            Status(replace(ACTIVE, is_listed=False, queued=0), {}, None, [], []),
            "its listing was interrupted; run the same command again to complete it",
        ),
        (Status(ACTIVE, {}, None, [], []), "no worker serves the job; start one: qsit worker --model m --root FOLDER"),
        (
            Status(replace(ACTIVE, queued=0), {}, None, [], [Silence("far:1:2", 2, 95.0, 40.0)]),
            "worker far:1:2 has been silent for 1 min 35 s; other workers get its 2 chunks in 40 s",
        ),
    ],
)
def test_what_holds_a_job_up(now: Status, message: str) -> None:
    assert [words for _, words in status.obstacles(now)] == [message]
