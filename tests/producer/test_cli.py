"""The command line against its README, and without torch."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from producer.cli.commands import cli
from producer.cli.main import run
from producer.interrupts import Interrupted
from tests.support.paths import ROOT
from tests.support.programs import QSIT, environment

README = (ROOT / "README.md").read_text()


def commands(group: click.Group, prefix: str = "qsit") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        path = f"{prefix} {name}"
        found |= commands(command, path) if isinstance(command, click.Group) else {path: command}
    return found


def options(command: click.Command) -> set[str]:
    return {name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts}


def test_every_command_and_option_is_in_the_readme() -> None:
    for path, command in commands(cli).items():
        assert f"`{path}" in README or f"{path} " in README, path
        for name in options(command):
            assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", README), (path, name)


def test_every_command_and_option_of_the_readme_exists() -> None:
    known = commands(cli)
    blocks = re.findall(r"```sh\n(.*?)```", README, re.S) + re.findall(r"`([^`\n]+)`", README)
    used = {name for block in blocks for name in re.findall(r"(?:^|\s)qsit ((?:db )?[a-z]+)", block)}
    assert used >= {
        "score",
        "submit",
        "questions",
        "worker",
        "status",
        "wait",
        "recover",
        "failures",
        "results",
        "db upgrade",
    }
    assert {f"qsit {name}" for name in used} <= set(known)
    every = set().union(*(options(command) for command in known.values())) | {"--help", "--version"}
    named = {name for block in blocks for name in re.findall(r"(?<![\w-])--[a-z][a-z-]+", block)}
    assert named <= every, named - every


def test_every_setting_is_in_the_readme_and_the_other_way_round() -> None:
    from qsit.settings import Settings

    ours = {f"QSIT_{name}".upper() for name in Settings.model_fields if not name.startswith("private_")}
    assert ours == set(re.findall(r"QSIT_[A-Z0-9_]+[A-Z]", README))


def test_every_reason_is_in_the_readme() -> None:
    from qsit.states import Reason

    assert all(f"`{reason}`" in README for reason in Reason)


def test_listing_submitting_and_querying_import_no_torch_and_no_boto3() -> None:
    code = (
        "import sys, producer.cli.commands, producer.submit, producer.score, producer.private_run, worker.app,"
        "models.queries.results;"
        "print(sorted({'torch', 'transformers', 'boto3'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_command_line_alone_imports_neither_celery_nor_pillow_nor_alembic() -> None:
    code = (
        "import sys, producer.cli.commands; print(sorted({'alembic', 'huggingface_hub', 'torch'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["score"], 2, "name a folder"),
        (["score", "/no/such/folder", "--model", "demo"], 1, "cannot read /no/such/folder: No such file"),
        (["score", "gs://bucket/x", "--model", "demo"], 1, "gs:// sources are not supported"),
        (["score", "s3://", "--model", "demo"], 1, "names no bucket"),
        (["score", "/tmp", "--ask", ""], 2, "it is empty"),
        (["submit", "/tmp", "--ask-below", "0.5"], 2, "--ask-below is about questions"),
        (["score", "/tmp", "--scale", "0-10"], 2, "is not one of"),
        (["score", "/tmp", "--model", "/no/model"], 1, "there is no model folder /no/model"),
        (["score", "/tmp", "--model", "demo", "--revision", "other"], 1, "leave --revision out"),
        (["score", "/tmp", "--max-failed", "many"], 2, "a number of photos"),
        (["score", "--files-from", "/no/list", "--model", "demo"], 1, "cannot read the list /no/list: No such file"),
        (["score", "/tmp", "--column", "uri", "--model", "demo"], 2, "the list of --files-from; name one"),
        (["score", "--files-from", "-", "-0", "--column", "uri"], 2, "-0 is for lists without"),
        (["score", "/tmp", "--name", "\udcff"], 2, "bytes that are no text"),
        (["score", "/tmp", "--name", "7"], 2, "taken for a job's number; write, say, job-7"),
        (["prune", "--older-than", "nan"], 2, "not a valid integer"),
        (["prune", "--older-than", "1000000"], 2, "0<=x<=36500"),
        (["results"], 1, "there is no database"),
        (["results", "--answers"], 1, "there is no database"),
        (["results", "--min", "7"], 2, "0<=x<=1"),
        (["status", "5"], 1, "there is no database"),
        (["nonsense"], 2, "No such command"),
        (["results", "--nonsense"], 2, "No such option"),
    ],
)
def test_a_mistake_ends_in_one_line_and_its_status(
    capfd: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str
) -> None:
    assert run(arguments) == status
    assert words in capfd.readouterr().err


def test_an_empty_folder_is_said_to_be_empty(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "notes.xyz").touch()

    assert run(["score", str(tmp_path), "--model", "demo"]) == 1

    assert "no photos found" in (words := capfd.readouterr().err)
    assert "1 .xyz" in words
    assert run(["status"]) == 1
    assert "no job yet" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("QSIT_DATABASE_URL", "mysql://me:secret@host/x"),
        ("QSIT_DATABASE_URL", "postgresql://me:secret@127.0.0.1:9/x"),
    ],
)
def test_passwords_are_not_shown(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)

    assert run(["status"]) == 1

    assert "secret" not in capfd.readouterr().err


def test_a_bad_setting_is_refused_by_its_name(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QSIT_LEASE_S", "soon")

    assert run(["status"]) == 2

    assert "QSIT_LEASE_S=soon" in capfd.readouterr().err


def test_an_unreachable_redis_is_named_without_its_password(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QSIT_BROKER_URL", "redis://:secret@127.0.0.1:9/0")
    (tmp_path / "a.jpg").touch()

    assert run(["score", str(tmp_path), "--model", "demo"]) == 1

    words = capfd.readouterr().err
    assert "does not answer" in words
    assert "secret" not in words


def test_an_interrupt_has_the_status_of_its_signal() -> None:
    assert Interrupted(15).exit_status == 143


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    code = (
        "import os, signal; from producer.interrupts import raise_on_signals;"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN); raise_on_signals();"
        "os.kill(os.getpid(), signal.SIGHUP); print('goes on')"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "goes on\n"


@pytest.mark.parametrize(
    ("redirection", "status", "words"),
    [
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("<&-", 0, ""),
        ("> /dev/full", 1, "qsit: writing the output: No space left"),
    ],
)
def test_closed_and_full_streams_are_no_crash(tmp_path: Path, redirection: str, status: int, words: str) -> None:
    url = f"sqlite:///{tmp_path}/qsit.db"
    assert subprocess.run([QSIT, "db", "upgrade"], env=environment(url, {}), capture_output=True).returncode == 0
    command = f"{QSIT} results --format csv {redirection}"

    done = subprocess.run(command, shell=True, env=environment(url, {}), capture_output=True, text=True)

    assert (done.returncode, done.stderr.strip().startswith(words)) == (status, True), done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_while_it_is_still_starting_is_quiet() -> None:
    code = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "sqlalchemy":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from producer.cli.main import main
main()
"""

    done = subprocess.run([sys.executable, "-c", code, "status"], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (130, "")
