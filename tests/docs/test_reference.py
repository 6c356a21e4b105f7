"""The reference has every command, setting, reason, exit status, field, column and dependency."""

import csv
import io
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, inspect

from docs import generate
from migrations.upgrade import upgrade
from producer import exit_codes
from qsit.states import Reason
from tests.docs.markdown import code_blocks, code_spans
from tests.support.paths import ROOT
from tests.support.programs import run

RESULTS = Path("docs/reference/results.md")
BY_VALUE = {"failed_by_reason", "by", "left_out", "published"}
"""Objects whose keys are values, not names of fields."""

Command = Callable[..., str]


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """An empty SQLite database; the output is the same for others."""
    url = f"sqlite:///{tmp_path}/qsit.db"
    upgrade(url)
    return url


@pytest.fixture
def qsit(library: Engine, database_url: str) -> Command:
    """Run a command on that library; returns what it prints."""

    def call(*arguments: str) -> str:
        return run(*arguments, database_url=database_url, check=None).stdout

    return call


def fields(record: object) -> set[str]:
    """Return the names of all fields of a JSON value."""
    if isinstance(record, list):
        return set().union(*map(fields, record))
    if not isinstance(record, dict):
        return set()
    inner = (fields(value) for key, value in record.items() if key not in BY_VALUE | {"probabilities"})
    return set(record).union(*inner)


def documented(page: Path = RESULTS) -> set[str]:
    return set(code_spans(page))


@pytest.mark.parametrize("name", generate.pages())
def test_generated_pages_are_up_to_date(name: str) -> None:
    page = generate.REFERENCE / name

    assert page.read_text(encoding="utf-8") == generate.pages()[name], "run: python -m docs.generate"


def test_every_setting_says_what_it_means() -> None:
    assert [name for name, field in generate.public_settings().items() if not field.description] == []


def test_every_reason_is_explained() -> None:
    assert {str(reason) for reason in Reason} <= documented(Path("docs/reference/failures.md"))


def test_every_exit_status_is_explained() -> None:
    rows = (ROOT / "docs/reference/exit-statuses.md").read_text()
    explained = {
        number for first in re.findall(r"^\| ([\d, ]+) \|", rows, re.MULTILINE) for number in first.split(", ")
    }

    assert explained == {str(int(status)) for status in (*exit_codes.ExitCode, 129, 130, 143)}


@pytest.mark.parametrize(
    "arguments",
    [
        ("results", "--answers", "--format", "jsonl"),
        ("failures", "--format", "jsonl"),
        ("status", "--format", "json"),
        ("questions", "--format", "json"),
    ],
    ids=" ".join,
)
def test_every_json_field_is_in_the_reference(qsit: Command, arguments: tuple[str, ...]) -> None:
    lines = [json.loads(line) for line in qsit(*arguments).splitlines()]

    assert lines
    assert fields(lines) - documented() == set()


def test_every_json_field_of_evaluations_is_in_the_reference(qsit: Command, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("img_path,gt_score\n/p/000000.jpg,3\n")
    items = tmp_path / "items.json"
    items.write_text(json.dumps([{"img_path": "x.jpg", "question": "?", "candidates": ["A", "B"], "correct_ans": "A"}]))

    for arguments in (["--dataset", "koniq", str(labels)], ["--llvisionqa", str(items), "--model", "demo"]):
        record = json.loads(qsit("evaluate", "--format", "json", *arguments))
        assert fields(record) - documented() == set()
        assert "dataset" in record["published"]


@pytest.mark.parametrize("command", ["results --answers", "failures"])
def test_every_csv_column_is_in_the_reference(qsit: Command, command: str) -> None:
    header = next(csv.reader(io.StringIO(qsit(*command.split(), "--format", "csv"))))

    assert header
    assert {re.sub("^answer: .*", "answer: NAME", column) for column in header} - documented() == set()


def test_every_view_and_its_columns_are_in_the_reference(engine: Engine) -> None:
    views = {name for name in inspect(engine).get_view_names() if name.startswith("qsit_")}

    assert views == {span for span in documented() if re.fullmatch(r"qsit_\w+", span)}
    for view in views:
        assert {column["name"] for column in inspect(engine).get_columns(view)} - documented() == set()


def test_the_file_of_questions_in_the_guide_can_be_asked(database_url: str, tmp_path: Path) -> None:
    [example] = code_blocks(Path("docs/guides/questions.md"), "toml")
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(example)
    bad.write_text(example.replace("text", "words"))

    for file, status in ((good, 1), (bad, 2)):
        run("submit", "/no/such/folder", "--ask-file", str(file), database_url=database_url, check=status)


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    needed = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    page = (ROOT / "docs/explanation/design-decisions.md").read_text().lower()
    parts = " ".join(re.findall(r"^\| ([^|]*) \|", page, re.MULTILINE))

    for requirement in needed:
        name = re.split(r"[\[<>=;!~ ]", requirement)[0].lower()
        assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", parts), name
