"""What the wheel has, and what the parts may import."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from itertools import chain
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
"""
Our own modules that each part may import. The longest matching name decides.

`models.` stands for the modules directly in that folder. The evaluation may also import what the producer may.
"""

USERS = {
    "torch": {"worker.qsit", "worker.devices", "worker.inference"},
    "transformers": {"worker.inference.loading"},
    "boto3": {"qsit.sources"},
    "click": {"producer.cli"},
    "celery": {"worker"},
    "sqlalchemy": {"models", "producer", "worker", "migrations"},
}
"""The modules that may import a dependency which is heavy or belongs to one part."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_of(path): path for part in PARTS for path in (ROOT / part).rglob("*.py")}


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, at its top or in functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
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


def test_test_files_share_through_support_alone() -> None:
    files = [path for path in (ROOT / "tests").rglob("*.py") if "support" not in path.parts]
    wrong = {(path.name, name) for path in files for name in imported(path) if re.search(r"^tests\..*\btest_", name)}

    assert wrong == set()


def test_the_packages_are_the_folders() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    found = {module for module, path in modules().items() if path.name == "__init__.py"}

    assert listed == found


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=;]", requirement)[0].lower().replace("_", "-")


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    project = PROJECT["project"]
    requirements = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]

    assert {name_of(requirement) for requirement in requirements} <= {name_of(line) for line in lines}
    assert "torch==2.13.0" in lines


def test_ci_runs_all_tests() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()


def test_the_producer_knows_little_of_the_worker() -> None:
    lines = [
        line
        for path in (ROOT / "producer").rglob("*.py")
        for line in path.read_text().splitlines()
        if re.match(r"\s*(from|import) worker\b", line)
    ]

    assert len(lines) <= 12


UNSEEN = {"__init__.py", "__pycache__", "py.typed"}


@pytest.mark.parametrize("part", PARTS)
def test_a_folder_can_be_taken_in_at_a_glance(part: str) -> None:
    folders = [
        ROOT / part,
        *(path for path in (ROOT / part).rglob("*") if path.is_dir() and path.name != "__pycache__"),
    ]
    seen = {folder: [path for path in folder.iterdir() if path.name not in UNSEEN] for folder in folders}

    assert {folder: len(entries) for folder, entries in seen.items() if len(entries) > 17} == {}


@pytest.mark.parametrize("module", sorted(name for name, path in modules().items() if path.name == "__init__.py"))
def test_a_package_says_what_it_is_and_does_nothing(module: str) -> None:
    tree = ast.parse(modules()[module].read_text())

    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


def test_the_wheel_has_all_that_the_docker_build_copies(tmp_path: Path) -> None:
    """Build it from the files that .dockerignore lets through, as the Dockerfile does."""
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    source.mkdir()
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    for path in [ROOT / line.removeprefix("!") for line in lines if line.startswith("!")]:
        if path.is_dir():
            shutil.copytree(path, source / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)

    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", wheels, source], check=True, capture_output=True)

    [wheel] = wheels.iterdir()
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    packages = [ROOT / part for part in PARTS]
    files = [path for package in packages for path in package.rglob("*") if path.is_file()]
    assert names == {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert {f"{part}/py.typed" for part in ("qsit", "models", "worker", "producer")} <= names
    assert "qsit/demo/model.safetensors" in names
