"""
Make distorted copies of photos, and the lists for training and validation in Q-SiT's format.

    python -m training.copies FOLDER [--count 24000] [--seed 0]

Writes photos/, copies/ and a list for each of SPLITS into FOLDER, about 14 GB.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from qsit.questions import BUILTIN_QUESTIONS, LEVELS, render_prompt
from qsit.rating import ANSWER, PROMPT, WORDS
from training.distortions import DISTORTIONS, distort
from training.lists import IMAGE
from training.photos import fetch_or_exit
from training.scenes import cut_photo, make_scene

Record = dict[str, object]
"""An entry of a list in JSON."""

HARMS = {
    "sharpness": ("blur", "motion", "rescaling"),
    "noise": ("noise",),
    "exposure": ("underexposure", "overexposure"),
    "colour": ("cast",),
    "compression": ("jpeg", "webp"),
}
"""The distortions that each built-in question is about."""

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

SPLITS = ("train", "validation")
GROUP = 3
"""The number of copies of one scene with one distortion; they differ only in severity."""
PRISTINE = 0.6
"""The share of groups in which one copy is not distorted."""


def to_opinion(severity: float) -> float:
    """Return the mean opinion score for a severity, from 5 (none) to 1."""
    return 5 - 4 * severity


def to_level(score: float, low: float = 1, high: float = 5) -> str:
    """Return the rating word of a score. The scale has five levels of equal width."""
    return WORDS[::-1][min(4, int((score - low) / (high - low) * 5))]


def make_reply(question: str, distortion: str, severity: float) -> str:
    """Return the right answer to a built-in question about a copy."""
    if question == "overall":
        word = to_level(to_opinion(severity)).lower()
        return f"{ANSWER}{word}." if word == "excellent" else f"{ANSWER}{word}, because it is {REASONS[distortion]}."
    harm = severity if distortion in HARMS[question] else 0.0
    return LEVELS[::-1][min(3, int(harm * 4))]


def make_entry(name: str, score: float, question: str, answer: str) -> Record:
    """Return an entry: one question about one image, and its answer."""
    turns = [{"from": "human", "value": f"{IMAGE}{question}"}, {"from": "gpt", "value": answer}]
    return {"id": f"{name}->{score:.4f}", "image": name, "conversations": turns}


def make_group(folder: Path, photos: Sequence[Path], split: str, seed: int, number: int) -> list[Record]:
    """Write the copies of one scene. Return entries of each: its rating, its distortion, and another question."""
    seeds = [seed, SPLITS.index(split), number]
    rng = np.random.default_rng(seeds)
    distortion = str(rng.choice(list(DISTORTIONS)))
    image = make_scene(photos, rng) if split == "train" else cut_photo(photos, rng)
    severities = rng.uniform(0, 1, GROUP)
    if rng.random() < PRISTINE:
        severities[0] = 0
    about = [question for question, harms in HARMS.items() if distortion in harms] or ["overall"]
    entries = []
    for index, severity in enumerate(severities.tolist()):
        name = f"copies/{split}-{number:05}-{index}.png"
        distort(distortion, image, severity, np.random.default_rng([*seeds, 1])).save(folder / name, compress_level=1)
        score = to_opinion(severity)
        entries.append(make_entry(name, score, PROMPT, ANSWER + to_level(score)))
        other = str(rng.choice([question for question in BUILTIN_QUESTIONS if question not in about]))
        entries += [
            make_entry(
                name, score, render_prompt(BUILTIN_QUESTIONS[question]), make_reply(question, distortion, severity)
            )
            for question in (*about, other)
        ]
    return entries


def make_copies(folder: Path, photos: Sequence[Path], split: str, count: int, seed: int) -> Iterator[Record]:
    """Make about `count` copies on all cores and yield their entries."""
    # large photos show more, so a photo is chosen in proportion to its longer side, up to 2000 pixels
    shares = []
    for photo in photos:
        with Image.open(photo) as file:
            shares += [photo] * max(1, min(4, max(file.size) // 500))
    with get_context("spawn").Pool() as pool:
        for entries in pool.imap(partial(make_group, folder, shares, split, seed), range(count // GROUP), chunksize=4):
            yield from entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=24000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    photos = fetch_or_exit(args.folder / "photos")
    (args.folder / "copies").mkdir(exist_ok=True)
    for split, count in zip(SPLITS, (args.count, args.count // 50), strict=True):
        some = photos[split]
        entries = list(make_copies(args.folder, some, split, count, args.seed))
        (args.folder / f"{split}.json").write_text(json.dumps(entries, indent=1))
        print(f"{split}: {count:,} copies of {len(some)} photos")


if __name__ == "__main__":
    main()
