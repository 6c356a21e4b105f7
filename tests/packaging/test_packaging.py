"""What is shipped, and what the parts may import."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PARTS = ("qsit", "models", "worker", "producer", "migrations")

MAY_IMPORT = {
    "qsit": {"qsit"},
    "models": {"models", "qsit"},
    "models.ledger": {"models.ledger", "models.", "qsit"},
    "models.queries": {"models.queries", "models.", "qsit"},
    "worker": {"worker", "models", "qsit"},
    "worker.imaging": {"worker.imaging", "qsit"},
    "worker.inference": {"worker.inference", "qsit"},
    "worker.qsit": {"worker.inference", "qsit"},
    "producer": {"producer", "models", "qsit", "worker.app", "worker.dispatch", "worker.launch", "migrations.upgrade"},
    "producer.evaluation": {
        "worker.qsit",
        "worker.devices",
        "worker.imaging",
        "worker.loader",
        "worker.pipeline",
        "worker.scoring",
    },
    "migrations": {"migrations", "models", "qsit"},
}
"""Of our own modules, by part; the longest name that fits counts. `models.` are the modules of that folder alone, and
what the evaluation may is what it may beside the rest of the producer."""

USERS = {
    "torch": {"worker.qsit", "worker.devices", "worker.inference"},
    "transformers": {"worker.inference.loading"},
    "boto3": {"qsit.sources"},
    "click": {"producer.cli"},
    "celery": {"worker"},
    "sqlalchemy": {"models", "producer", "worker", "migrations"},
}
"""Who may import a heavy or a telling dependency."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_of(path): path for part in PARTS for path in (ROOT / part).rglob("*.py")}


def imported(path: Path, *, at_import: bool = False) -> set[str]:
    """Modules that a file imports: anywhere in it, or only when it is itself imported."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & modules().keys()
            names |= submodules
            if len(submodules) < len(node.names):
                names.add(node.module)
    return names


def is_within(module: str, place: str) -> bool:
    if place.endswith("."):
        return module.startswith(place) and "." not in module.removeprefix(place)
    return module == place or module.startswith(place + ".")


def allowed(module: str) -> set[str]:
    place = max((place for place in MAY_IMPORT if is_within(module, place)), key=len)
    return MAY_IMPORT[place] | (MAY_IMPORT["producer"] if place == "producer.evaluation" else set())


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_down_only(module: str) -> None:
    ours = {name for name in imported(modules()[module]) if name.split(".")[0] in PARTS}
    wrong = {name for name in ours if not any(is_within(name, place) for place in allowed(module))}

    assert not wrong, f"{module} may not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("dependency", USERS)
def test_a_dependency_is_used_where_it_belongs(dependency: str) -> None:
    users = {
        module for module, path in modules().items() if any(name.split(".")[0] == dependency for name in imported(path))
    }

    assert not {user for user in users if not any(is_within(user, place) for place in USERS[dependency])}


def test_no_modules_import_each_other_in_a_circle() -> None:
    below = {
        module: {name for name in imported(path) if name in modules() and name != module}
        for module, path in modules().items()
    }
    while free := {module for module, names in below.items() if not names}:
        below = {module: names - free for module, names in below.items() if module not in free}

    assert not below, f"in circles, or above one: {below}"


def test_the_packages_are_the_folders() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {module for module, path in modules().items() if path.name == "__init__.py"}

    assert listed == found


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
