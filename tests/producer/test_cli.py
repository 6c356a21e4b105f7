"""The command line: its mistakes, its streams, and what it imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from migrations.upgrade import upgrade
from producer.cli.main import run
from producer.exit_codes import Interrupted
from tests.support.programs import QSIT, environment
from tests.support.records import HOSTILE


def test_listing_submitting_and_querying_import_no_torch_and_no_boto3() -> None:
    code = (
        "import sys, producer.cli.commands, producer.submit, producer.score, producer.private_run, worker.app,"
        "models.queries.results;"
        "print(sorted({'torch', 'transformers', 'boto3'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_command_line_alone_imports_no_torch_no_alembic_and_no_huggingface_hub() -> None:
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
        (["score", "/tmp", "--ask", ""], 2, "the question is empty"),
        (["submit", "/tmp", "--ask-below", "0.5"], 2, "--ask-below needs a question"),
        (["score", "/tmp", "--scale", "0-10"], 2, "is not one of"),
        (["score", "/tmp", "--scale", "0-100"], 2, "is not one of"),
        (["score", "/tmp", "--model", "/no/model"], 1, "there is no model folder /no/model"),
        (["score", "/tmp", "--model", "demo", "--revision", "other"], 1, "leave --revision out"),
        (["score", "/tmp", "--max-failed", "many"], 2, "a number of photos"),
        (["score", "--files-from", "/no/list", "--model", "demo"], 1, "cannot read the list /no/list: No such file"),
        (["score", "/tmp", "--column", "uri", "--model", "demo"], 2, "the list of --files-from; name one"),
        (["score", "--files-from", "-", "-0", "--column", "uri"], 2, "-0 is for lists without"),
        (["score", "/tmp", "--name", "\udcff"], 2, "it contains invalid UTF-8"),
        (["score", "/tmp", "--name", "7"], 2, "write, for example, job-7"),
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", f"/no/such/{HOSTILE}", "--model", "demo"],
        ["score", "--files-from", f"/no/such/{HOSTILE}", "--model", "demo"],
        ["results", "--output", f"/no/such/{HOSTILE}"],
        ["results", HOSTILE],
        ["status", HOSTILE],
        [HOSTILE],
    ],
)
def test_an_argument_reaches_the_terminal_escaped(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("QSIT_DATABASE_URL", url := f"sqlite:///{tmp_path}/qsit.db")
    upgrade(url)

    assert run(arguments) != 0

    error = capfd.readouterr().err
    assert "owned" in error
    assert all(line.isprintable() for line in error.split("\n"))


def test_an_empty_folder_is_reported_with_the_endings_of_its_files(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "notes.xyz").touch()

    assert run(["score", str(tmp_path), "--model", "demo"]) == 1

    assert "no photos found" in (words := capfd.readouterr().err)
    assert "1 .xyz" in words
    assert run(["status"]) == 1
    assert "no job yet" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value"),
    [("QSIT_DATABASE_URL", "mysql://me:secret@host/x"), ("QSIT_DATABASE_URL", "postgresql://me:secret@127.0.0.1:9/x")],
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
        "import os, signal; from producer.exit_codes import raise_on_signals;"
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
def test_closed_and_full_streams_end_in_order(tmp_path: Path, redirection: str, status: int, words: str) -> None:
    url = f"sqlite:///{tmp_path}/qsit.db"
    assert subprocess.run([QSIT, "db", "upgrade"], env=environment(url, {}), capture_output=True).returncode == 0
    command = f"{QSIT} results --format csv {redirection}"

    done = subprocess.run(command, shell=True, env=environment(url, {}), capture_output=True, text=True)

    assert (done.returncode, done.stderr.strip().startswith(words)) == (status, True), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["questions"], ["wait", "--help"], ["results"]])
def test_a_closed_pipe_is_silent_and_no_failure(tmp_path: Path, arguments: list[str]) -> None:
    url = f"sqlite:///{tmp_path}/qsit.db"
    upgrade(url)
    reader, writer = os.pipe()
    os.close(reader)

    done = subprocess.run([QSIT, *arguments], env=environment(url, {}), stdout=writer, stderr=subprocess.PIPE)

    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


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
