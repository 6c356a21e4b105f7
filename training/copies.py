"""
Distorted copies of photos, and the lists that training and validation read, in Q-SiT's own format.

    python -m training.copies FOLDER [--count 24000] [--seed 0]

FOLDER gets photos/, copies/ and a list for each of SPLITS; it needs some 12 GB.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from training.distortions import DISTORTIONS, REFERENCE, distort, exposed
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
SMALLEST = 320
"""Pixels of a copy's longer side."""
SPLITS = ("train", "validation")
GROUP = 3
"""So many copies show the same part of a photo under the same distortion: what differs between them is its severity."""
PRISTINE = 0.6
"""The share of groups in which one copy is left as it is."""


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
    left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    size, box = (round(width * scale), round(height * scale)), (left, top, left + width, top + height)
    return photo.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3)


def varied(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """What might be another photo: turned, of other colours, a bit brighter or darker, flatter, softer or sharper."""
    if rng.random() < 0.7:
        image = image.transpose(Image.Transpose(int(rng.integers(len(Image.Transpose)))))
    if rng.random() < 0.5:
        image = exposed(image, float(np.clip(rng.normal(0, 0.4), -0.8, 0.8)))
    if rng.random() < 0.7:
        pixels = np.asarray(image, np.float32)
        if rng.random() < 0.3:
            pixels = pixels[:, :, rng.permutation(3)]
        grey = pixels.mean(axis=2, keepdims=True)
        pixels = grey + (pixels - grey) * np.float32(0 if rng.random() < 0.1 else rng.uniform(0.5, 1.4))
        pixels = pixels.mean() + (pixels - pixels.mean()) * np.float32(rng.uniform(0.75, 1.2))
        pixels = pixels * np.exp(rng.normal(0, 0.05, 3)).astype(np.float32)
        image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    chance = rng.random()
    if chance < 0.25:
        return image.filter(ImageFilter.UnsharpMask(rng.uniform(0.5, 1.5), int(rng.uniform(0, 80)), 0))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.5))) if chance < 0.4 else image


def _shrink(photo: Image.Image) -> float:
    """How much smaller a photo is made at least: single pixels of large ones are not sharp."""
    return 2 if max(photo.size) > 1500 else 1


@lru_cache
def opened(photo: Path) -> Image.Image:
    """The pixels of a photo."""
    with Image.open(photo) as file:
        return file.convert("RGB")


def copy(folder: Path, photos: Sequence[Path], split: str, seed: int, number: int) -> list[Record]:
    """Write one copy; returns what is asked about it: the rating, the ready question about its distortion, another."""
    group, place = divmod(number, GROUP)
    rng = np.random.default_rng([seed, SPLITS.index(split), group])
    photo = opened(photos[int(rng.integers(len(photos)))])
    distortion = str(rng.choice(list(DISTORTIONS)))
    part = cut(photo, rng)
    if split == "train":
        part = varied(part, rng)
    severities = rng.uniform(0, 1, GROUP)
    if rng.random() < PRISTINE:
        severities[0] = 0
    severity, score = float(severities[place]), opinion(severities[place])
    name = f"copies/{split}-{number:05}.png"
    distort(distortion, part, severity, rng).save(folder / name, compress_level=1)
    about = [question for question, harms in HARMS.items() if distortion in harms] or ["overall"]
    other = str(rng.choice([question for question in READY if question not in about]))
    asked = {put(READY[question]): reply(question, distortion, severity) for question in (*about, other)}
    return [entry(name, score, *each) for each in ({PROMPT: ANSWER + level(score)} | asked).items()]


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
    parser.add_argument("--count", type=int, default=24000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        photos = fetch(args.folder / "photos")
    except (OSError, ValueError) as error:
        sys.exit(f"Error: the photos cannot be fetched: {error}")
    (args.folder / "copies").mkdir(exist_ok=True)
    for split, count in zip(SPLITS, (args.count, args.count // 100), strict=True):
        some = photos[split]
        entries = list(copies(args.folder, some, split, count, args.seed))
        (args.folder / f"{split}.json").write_text(json.dumps(entries, indent=1))
        print(f"{split}: {count:,} copies of {len(some)} photos")


if __name__ == "__main__":
    main()
