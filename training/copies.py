"""
Distorted copies of photos, and the lists that training and validation read, in Q-SiT's own format.

    python -m training.copies FOLDER [--count 24000] [--seed 0]

FOLDER gets photos/, copies/ and a list for each of SPLITS; it needs some 14 GB.
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
from training.scenes import scene, whole

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

SPLITS = ("train", "validation")
GROUP = 3
"""So many copies show the same scene under the same distortion: what differs between them is its severity."""
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


def group(folder: Path, photos: Sequence[Path], split: str, seed: int, number: int) -> list[Record]:
    """Write the copies of one scene; returns what each is asked: its rating, about its distortion, and another."""
    of = [seed, SPLITS.index(split), number]
    rng = np.random.default_rng(of)
    distortion = str(rng.choice(list(DISTORTIONS)))
    image = scene(photos, rng) if split == "train" else whole(photos, rng)
    severities = rng.uniform(0, 1, GROUP)
    if rng.random() < PRISTINE:
        severities[0] = 0
    about = [question for question, harms in HARMS.items() if distortion in harms] or ["overall"]
    entries = []
    for place, severity in enumerate(severities.tolist()):
        name = f"copies/{split}-{number:05}-{place}.png"
        distort(distortion, image, severity, np.random.default_rng([*of, 1])).save(folder / name, compress_level=1)
        score = opinion(severity)
        entries.append(entry(name, score, PROMPT, ANSWER + level(score)))
        other = str(rng.choice([question for question in BUILTIN_QUESTIONS if question not in about]))
        entries += [
            entry(name, score, render_prompt(BUILTIN_QUESTIONS[question]), reply(question, distortion, severity))
            for question in (*about, other)
        ]
    return entries


def copies(folder: Path, photos: Sequence[Path], split: str, count: int, seed: int) -> Iterator[Record]:
    """The entries of so many copies, made on all cores."""
    # large photos have more to show: a photo comes up as often as its longer side is long, up to 2000 pixels
    shares = []
    for photo in photos:
        with Image.open(photo) as file:
            shares += [photo] * max(1, min(4, max(file.size) // 500))
    with get_context("spawn").Pool() as pool:
        for entries in pool.imap(partial(group, folder, shares, split, seed), range(count // GROUP), chunksize=4):
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
        entries = list(copies(args.folder, some, split, count, args.seed))
        (args.folder / f"{split}.json").write_text(json.dumps(entries, indent=1))
        print(f"{split}: {count:,} copies of {len(some)} photos")


if __name__ == "__main__":
    main()
