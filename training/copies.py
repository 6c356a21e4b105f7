"""
Distorted copies of photos, and the lists that training and validation read, in Q-SiT's own format.

    python -m training.copies FOLDER [--details 16000] [--count 12000] [--seed 0]

FOLDER gets photos/, copies/ and a list for each of SPLITS; it needs some 6 GB.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from training.distortions import DISTORTIONS, REFERENCE, distort
from training.lists import IMAGE
from training.photos import fetch
from worker.procedure import ANSWER, PROMPT, WORDS
from worker.questions import LEVELS, READY, put

Record = dict[str, object]
"""An entry of a list, as JSON has it."""

HARMS = {
    "sharpness": ("blur", "motion", "rescaling"),
    "noise": ("noise",),
    "exposure": ("underexposure", "overexposure"),
    "colour": ("cast",),
    "compression": ("jpeg", "webp"),
}
"""Which distortions a ready question is about."""

REASONS = {
    "blur": "blurred",
    "motion": "blurred by motion",
    "noise": "noisy",
    "jpeg": "heavily compressed",
    "webp": "heavily compressed",
    "rescaling": "enlarged from few pixels",
    "underexposure": "too dark",
    "overexposure": "too bright",
    "contrast": "flat",
    "cast": "tinted",
}

SHAPES = ((4, 3), (3, 4), (3, 2), (2, 3), (1, 1), (16, 9))
SMALLEST, DETAIL, MARGIN = 320, 256, 16
"""Pixels: of a copy's longer side, of a detail's, and what is cut off a detail after it was distorted."""
SPLITS = ("details", "train", "validation")
"""What is made: details and whole copies of the photos to train on, whole copies of those to validate on."""
PRISTINE = 0.15
"""The share of copies that are left as they are."""


def opinion(severity: float) -> float:
    """The mean opinion score that stands for a severity, from 5 (none) to 1."""
    return 5 - 4 * severity


def level(score: float, low: float = 1, high: float = 5) -> str:
    """The rating word of a score, the scale cut into five levels of equal width."""
    return WORDS[::-1][min(4, int((score - low) / (high - low) * 5))]


def reply(question: str, distortion: str, severity: float) -> str:
    """What the model is to say to a ready question about a copy."""
    if question == "overall":
        word = level(opinion(severity)).lower()
        return f"{ANSWER}{word}." if word == "excellent" else f"{ANSWER}{word}, because it is {REASONS[distortion]}."
    harm = severity if distortion in HARMS[question] else 0.0
    return LEVELS[::-1][min(3, int(harm * 4))]


def entry(name: str, score: float, question: str, answer: str) -> Record:
    """One question about one image, and its answer."""
    turns = [{"from": "human", "value": f"{IMAGE}{question}"}, {"from": "gpt", "value": answer}]
    return {"id": f"{name}->{score:.4f}", "image": name, "conversations": turns}


def cut(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of a photo of a random shape and size, made smaller by half at least where the photo is large enough."""
    shape = SHAPES[rng.integers(len(SHAPES))]
    unit = min(photo.width / shape[0], photo.height / shape[1]) * rng.uniform(0.5, 1)
    width, height = unit * shape[0], unit * shape[1]
    wanted = SMALLEST * (REFERENCE / SMALLEST) ** rng.uniform(0, 1)
    sharp = max(width, height) / _shrink(photo)
    scale = max(min(wanted, sharp), min(SMALLEST, max(width, height))) / max(width, height)
    return _part(photo, (width, height), (round(width * scale), round(height * scale)), rng)


def detail(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A small part of a photo as it looks where the whole has some 1024 pixels."""
    shrink = rng.uniform(_shrink(photo), max(_shrink(photo), max(photo.size) / REFERENCE))
    side = min(DETAIL + MARGIN, *(int(side / shrink) for side in photo.size))
    return _part(photo, (side * shrink, side * shrink), (side, side), rng)


def _shrink(photo: Image.Image) -> float:
    """How much smaller a photo is made at least: single pixels of large ones are not sharp."""
    return 2 if max(photo.size) > 1500 else 1


def _part(
    photo: Image.Image, part: tuple[float, float], size: tuple[int, int], rng: np.random.Generator
) -> Image.Image:
    left, top = rng.uniform(0, photo.width - part[0]), rng.uniform(0, photo.height - part[1])
    box = (left, top, left + part[0], top + part[1])
    found = photo.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3)
    return found.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else found


@lru_cache
def opened(photo: Path) -> Image.Image:
    """The pixels of a photo."""
    with Image.open(photo) as file:
        return file.convert("RGB")


def copy(folder: Path, photos: Sequence[Path], split: str, seed: int, number: int) -> list[Record]:
    """Write one copy; returns what is asked about it: the rating, and one of the ready questions."""
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    photo = opened(photos[int(rng.integers(len(photos)))])
    distortion = str(rng.choice(list(DISTORTIONS)))
    severity = 0.0 if rng.random() < PRISTINE else float(rng.uniform(0, 1))
    if split == "details":
        image = DISTORTIONS[distortion](detail(photo, rng), severity, rng, 1)
        left, top = (int(rng.integers(max(1, side - DETAIL + 1))) for side in image.size)  # blocks begin anywhere
        image = image.crop((left, top, min(left + DETAIL, image.width), min(top + DETAIL, image.height)))
    else:
        image = distort(distortion, cut(photo, rng), severity, rng)
    name = f"copies/{split}-{number:05}.png"
    image.save(folder / name, compress_level=1)
    about = [question for question, harms in HARMS.items() if distortion in harms]
    ready = str(rng.choice([*about, "overall"] if rng.random() < 0.67 else list(READY)))
    score = opinion(severity)
    return [
        entry(name, score, PROMPT, ANSWER + level(score)),
        entry(name, score, put(READY[ready]), reply(ready, distortion, severity)),
    ]


def copies(folder: Path, photos: Sequence[Path], split: str, count: int, seed: int) -> Iterator[Record]:
    """The entries of so many copies, made on all cores."""
    # large photos have more to show: a photo comes up as often as its longer side is long, up to 2000 pixels
    shares = []
    for photo in photos:
        with Image.open(photo) as file:
            shares += [photo] * max(1, min(4, max(file.size) // 500))
    with get_context("spawn").Pool() as pool:
        for entries in pool.imap(partial(copy, folder, shares, split, seed), range(count), chunksize=8):
            yield from entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--details", type=int, default=16000)
    parser.add_argument("--count", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        photos = fetch(args.folder / "photos")
    except (OSError, ValueError) as error:
        sys.exit(f"Error: the photos cannot be fetched: {error}")
    (args.folder / "copies").mkdir(exist_ok=True)
    for split, count in zip(SPLITS, (args.details, args.count, args.count // 60), strict=True):
        some = photos["train" if split == "details" else split]
        entries = list(copies(args.folder, some, split, count, args.seed))
        (args.folder / f"{split}.json").write_text(json.dumps(entries, indent=1))
        print(f"{split}: {count:,} copies of {len(some)} photos")


if __name__ == "__main__":
    main()
