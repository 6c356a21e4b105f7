"""
Decode one file in a process of its own; print the outcome and the memory that it took, in KB.

    python -m tests.support.decode_memory FILE [MB]

MB: the limit of additional address space.
"""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from qsit.errors import ImageError
from tests.support.paths import ROOT
from worker.imaging.decode import decode

MAX_PIXELS = 200_000_000


def measured(data: bytes, folder: Path, limit_mb: int | None = None) -> tuple[str, int]:
    """Decode in a process; return "decoded" or the reason, and the growth in MB. Skips the test off Linux."""
    if sys.platform != "linux":
        pytest.skip("reads the memory of a process from /proc")
    (folder / "photo").write_bytes(data)
    limit = [str(limit_mb)] if limit_mb else []
    command = [sys.executable, "-m", "tests.support.decode_memory", str(folder / "photo"), *limit]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    outcome, grown_kb = done.stdout.split()
    return outcome, int(grown_kb) // 1024


def _kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _main(path: Path, limit_mb: int | None) -> None:
    data = path.read_bytes()
    before = _kb("VmHWM")
    if limit_mb is not None:
        limit = (_kb("VmSize") + limit_mb * 1024) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        decode(data, max_pixels=MAX_PIXELS)
        outcome = "decoded"
    except ImageError as error:
        outcome = error.reason
    print(outcome, _kb("VmHWM") - before)  # noqa: T201 -- what the parent reads


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
