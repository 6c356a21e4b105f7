"""What is shipped, and what the parts may import."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PARTS = ("producer", "worker", "models", "migrations")
ALONE = tuple(
    f"worker/{name}.py"
    for name in (
        *("qsit", "loading", "tiles", "procedure", "checkpoint"),
        *("images", "kinds", "headers", "jpeg2000", "depths", "profiles"),
    )
)


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_the_packages_are_the_folders() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for part in PARTS
        for path in ROOT.glob(f"{part}/**/__init__.py")
    }

    assert listed == found
    assert {name.split(".")[0] for name in listed} == set(PARTS)


@pytest.mark.parametrize(
    ("part", "may_not"),
    [
        ("models", {"worker", "producer", "celery", "torch", "click"}),
        ("worker", {"producer", "click", "rich"}),
        ("migrations", {"worker", "producer"}),
    ],
)
def test_imports_go_one_way(part: str, may_not: set[str]) -> None:
    for path in (ROOT / part).rglob("*.py"):
        assert not imported(path) & may_not, path


def test_the_model_runs_without_celery_and_sqlalchemy() -> None:
    for path in ALONE:
        assert not imported(ROOT / path) & {"celery", "kombu", "sqlalchemy"}, path


def test_torch_and_transformers_are_imported_in_one_place() -> None:
    users: dict[str, set[str]] = {"torch": set(), "transformers": set()}
    for path in (path for part in PARTS for path in (ROOT / part).rglob("*.py")):
        for name in imported(path) & users.keys():
            users[name].add(str(path.relative_to(ROOT)))

    assert users["transformers"] == {"worker/inference/loading.py"}
    model = {"worker/qsit.py"} | {
        f"worker/inference/{name}.py" for name in ("loading", "forward", "shared_prefix", "generation")
    }
    assert users["torch"] == {*model, "worker/app.py"}, "app.py asks for GPUs"


def test_every_dependency_is_pinned_and_explained() -> None:
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    readme = (ROOT / "README.md").read_text().lower()
    project = PROJECT["project"]
    named = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]

    for requirement in named:
        assert re.split(r"[\[<>=;]", requirement)[0].lower() in pinned, requirement
    for requirement in project["dependencies"]:
        assert re.split(r"[\[<>=;]", requirement)[0].lower() in readme, requirement
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "make test\n" in (ROOT / ".ci" / "run").read_text()
    assert "\nmake test " in (ROOT / "README.md").read_text()
