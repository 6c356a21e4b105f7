"""Formats are detected by content, and decoded with and without pillow-heif."""

import json
import struct
import subprocess
import sys
from typing import Any

import pytest

from qsit.errors import ImageError
from qsit.states import Reason
from tests.support.paths import ROOT
from tests.support.samples import every_sample
from worker.imaging.formats import detect_format

CHILD = """
import json, sys
from pathlib import Path

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pillow_heif", "_pillow_heif"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

if sys.argv[2] == "absent":
    sys.meta_path.insert(0, Missing())
from qsit.errors import ImageError
from worker.imaging.decode import decode

outcomes = {}
for path in sorted(Path(sys.argv[1]).iterdir(), key=lambda path: ("HEIF" in path.name, path.name)):
    try:
        outcome = "pixels" if decode(path.read_bytes(), max_pixels=10_000).mode == "RGB" else "?"
    except ImageError as error:
        outcome = f"{error.reason}: {error}"
    outcomes[path.name] = [outcome, "pillow_heif" in sys.modules]
print(json.dumps(outcomes))
"""
NO_HEIF = "unsupported: HEIC/HEIF needs pillow-heif, which this worker lacks: pip install 'qsit[heif]'"
NAMES = sorted(every_sample())


@pytest.fixture(scope="module", params=["present", "absent"])
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """The outcome of every sample in a process where `import pillow_heif` works or fails."""
    folder = tmp_path_factory.mktemp("samples")
    for name, data in every_sample().items():
        (folder / name).write_bytes(data)
    command = [sys.executable, "-c", CHILD, str(folder), request.param]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    return request.param, json.loads(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_every_format_with_and_without_the_extra(name: str, outcomes: tuple[str, dict[str, Any]]) -> None:
    extra, by_name = outcomes
    outcome, imported = by_name[name]

    assert outcome == (NO_HEIF if extra == "absent" and name.startswith("HEIF") else "pixels")
    assert imported is (extra == "present" and name.startswith("HEIF")), "imported when the first HEIC is met"


@pytest.mark.parametrize("name", NAMES)
def test_the_format_is_detected_by_content(name: str) -> None:
    expected = name.split()[0].rstrip(",")

    assert detect_format(every_sample()[name]) == {"MPO": "JPEG"}.get(expected, expected)


@pytest.mark.parametrize(
    ("major", "compatible", "image_format"),
    [
        ("heic", "mif1heic", "HEIF"),  # iPhones, Samsung
        ("heix", "mif1heix", "HEIF"),  # HIF of Canon and Sony
        ("mif1", "mif1heic", "HEIF"),  # encoders of Nokia and older Android
        ("msf1", "msf1hevc", "HEIF"),
        ("hevc", "msf1hevcmp42", "HEIF"),
        ("mif1", "", "HEIF"),  # pillow-heif decides by the codec
        ("avif", "avifmif1miaf", "AVIF"),
        ("avis", "avismsf1miaf", "AVIF"),
        ("mif1", "mif1avifmiaf", "AVIF"),
        ("heic", "mif1heicavif", "HEIF"),
        ("avif", "mif1heicavif", "AVIF"),
    ],
)
def test_brands_distinguish_avif_from_heic(major: str, compatible: str, image_format: str) -> None:
    assert detect_format(file_type(major, compatible)) == image_format


@pytest.mark.parametrize(("major", "name"), [("crx ", "Canon raw"), ("isom", "video"), ("qt  ", "video")])
def test_other_brands_are_unsupported(major: str, name: str) -> None:
    with pytest.raises(ImageError, match=name) as error:
        detect_format(file_type(major, "isom"))
    assert error.value.reason is Reason.UNSUPPORTED


def file_type(major: str, compatible: str) -> bytes:
    box = b"ftyp" + major.encode() + bytes(4) + compatible.encode()
    return struct.pack(">I", 4 + len(box)) + box + b"\0\0\0\x08meta"
