"""Mutated photos decode or raise ImageError: no other error, output or crash."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.support.paths import ROOT

SECONDS = float(os.environ.get("FUZZ_SECONDS", "12"))
"""`make fuzz` runs longer, each time with another seed."""

LIBTIFF_MESSAGE = re.compile(r"(\w+|tempfile\.tif): .+")  # Pillow does not silence libtiff


def test_mutated_photos_decode_or_raise_image_error(tmp_path: Path) -> None:
    first_seed = int(time.time()) if "FUZZ_SECONDS" in os.environ else 0
    note = tmp_path / "example"
    command = [sys.executable, "-m", "tests.support.fuzz_images", str(SECONDS), str(first_seed), str(note)]

    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    if child.returncode != 0:
        kept = Path("/tmp") / f"qsit-fuzz-{first_seed}"
        kept.write_bytes(note.read_bytes() if note.exists() else b"")
        raise AssertionError(f"exited with {child.returncode}; the example is in {kept}:\n{child.stderr[-5000:]}")
    assert int(child.stdout) > 10 * SECONDS, "examples tried"
    assert [line for line in child.stderr.splitlines() if not LIBTIFF_MESSAGE.fullmatch(line)] == []
