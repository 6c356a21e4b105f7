"""The benchmarks import, show their help, and agree with their README."""

import importlib
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

NEEDS_VLLM = "vllm_peer"
MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in ("__init__", NEEDS_VLLM))
PROGRAMS = [name for name in MODULES if "def main(" in (ROOT / "benchmarks" / f"{name}.py").read_text()]


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_imports(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")

    assert hasattr(module, "main") == (name in PROGRAMS)


def test_a_benchmark_shows_its_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.host", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert "python -m benchmarks.host" in done.stdout


def test_the_readme_names_only_benchmarks_that_exist() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text()
    named = {word.split("benchmarks.")[1].split("`")[0] for word in text.split() if word.startswith("benchmarks.")}

    assert named
    assert named <= {*MODULES, NEEDS_VLLM}
