"""A whole library with broken photos: what fails, what is skipped, and what is scored after a repair."""

import json
import os
import zlib
from pathlib import Path

from tests.support.programs import make_photos, run
from tests.support.samples import chunk, encoded, every_sample, photo, png, tiff

PHOTOS = 500
RAW = tiff({256: (4,), 257: (2,), 258: (8, 8, 8), 262: (2,), 277: (3,), 278: (2,), 254: (1,), 330: (8,)}, bytes(24))
LARGE = zlib.compress((b"\0" + bytes(2001)) * 16_001, 1)
HEIF = every_sample()["HEIF"]

BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing at all": (b"", "empty"),
    "words": (b"<!doctype html>404 Not Found", "not_an_image"),
    "zeros": (bytes(5000), "not_an_image"),
    "a raw file": (RAW, "unsupported"),
    "a Photoshop file": (b"8BPS\0\1" + bytes(500), "unsupported"),
    "a film": (b"\0\0\0\x18ftypqt  \0\0\0\0qt  \0\0\0\0" + bytes(500), "unsupported"),
    "too many pixels": (png(16_001, 16_001, LARGE, depth=1), "too_large"),
    "too long a side": (png(1, 1_000_001, zlib.compress(bytes(2_000_002)), depth=1), "too_large"),
    "half a JPEG": (encoded(photo(), "JPEG")[:800], "corrupt"),
    "the start of a WebP": (encoded(photo(), "WEBP")[:20], "corrupt"),
    "wrong data in a PNG": (png(16, 16, b"no zlib", extra=chunk(b"tEXt", b"a\0b")), "corrupt"),
    "a HEIC cut off": (HEIF[: len(HEIF) * 3 // 4], "corrupt"),
}


def rewrite(path: Path, data: bytes) -> None:
    """Write a file with a later time, also where clocks are coarse."""
    later = path.stat().st_mtime_ns + 1_000_000
    path.write_bytes(data)
    os.utime(path, ns=(later, later))


def broken_photos(folder: Path) -> dict[str, str]:
    """Make a library in which every tenth photo is broken, in turn in each way. Return the reasons by file name."""
    reasons = {}
    ways = list(BROKEN.values())
    for index, path in enumerate(sorted(make_photos(folder, PHOTOS).iterdir())[::10]):
        data, reasons[path.name] = ways[index % len(ways)]
        rewrite(path, data)
    return reasons


def test_broken_photos_fail_once_and_are_scored_after_a_repair(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    reasons = broken_photos(folder)
    assert len(reasons) == PHOTOS // 10
    url = f"sqlite:///{tmp_path}/qsit.db"

    def score(check: int) -> str:
        return run("score", str(folder), "--model", "demo", database_url=url, check=check).stderr

    def failures(job: int) -> dict[str, str]:
        lines = run("failures", str(job), "--format", "jsonl", database_url=url).stdout.splitlines()
        return {Path(row["uri"]).name: row["reason"] for row in map(json.loads, lines)}

    first = score(3)
    assert "500 photos: 450 scored, 50 failed" in first
    assert failures(1) == reasons

    assert "500 photos: 0 scored, 450 skipped (have their score), 50 skipped (failed before, unchanged)" in score(0)

    for index, name in enumerate(reasons):
        rewrite(folder / name, encoded(photo().rotate(index), "JPEG"))
    repaired = score(0)
    assert "500 photos: 50 scored, 450 skipped" in repaired
    lines = run("results", "--format", "jsonl", database_url=url).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert {Path(row["uri"]).name for row in rows if row["job"] == max(row["job"] for row in rows)} == set(reasons)
    assert len(rows) == PHOTOS
