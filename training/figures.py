"""
How well a checkpoint tells distorted photos apart that training never saw.

    python -m training.figures CHECKPOINT FOLDER [--plot FILE] [--sizes 1024x768 384x384 4000x3000]

FOLDER is the one of training.copies. Prints the tables of README.md, and draws a plot of score against severity.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from PIL import Image, ImageOps

from producer.evaluation.metrics import measure_agreement
from qsit.questions import BUILTIN_QUESTIONS, LEVELS
from training.copies import HARMS
from training.distortions import DISTORTIONS, distort
from training.photos import fetch_or_exit
from training.scenes import opened
from worker.qsit import QSit

SEVERITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
MODERATE = 0.5
APART = 0.5
"""How far the severities of two copies differ whose words are compared."""


@dataclass(frozen=True)
class Seen:
    """What the model makes of a photo under one distortion: a score at each of the severities, and words, as places in
    LEVELS, of the ready question that the distortion is about."""

    distortion: str
    scores: tuple[float, ...]
    words: tuple[int, ...]

    @property
    def srcc(self) -> float:
        """Of severity and falling score; 0 when all scores are the same."""
        return measure_agreement(self.scores, [-severity for severity in SEVERITIES]).srcc or 0.0

    @property
    def is_pristine_better(self) -> bool:
        return self.scores[0] > self.scores[SEVERITIES.index(MODERATE)]

    def pairs(self) -> Iterator[bool]:
        """Of copies whose severities are far enough apart: whether the worse has the worse word."""
        for (mild, better), (strong, worse) in combinations(zip(SEVERITIES, self.words, strict=True), 2):
            if strong - mild > APART - 1e-6:
                yield worse < better


def seen(checkpoint: str, size: tuple[int, int], asked: bool, job: tuple[int, Path, str]) -> Seen:
    """Make the copies of a photo under one distortion, and look at them."""
    torch.set_num_threads(1)
    number, path, distortion = job
    model = _model(checkpoint)
    photo = ImageOps.fit(opened(path), size, Image.Resampling.LANCZOS)
    question = next((name for name, harms in HARMS.items() if asked and distortion in harms), None)
    scores, words = [], []
    for severity in SEVERITIES:
        copy = distort(distortion, photo, severity, np.random.default_rng(number))
        [(score, answers)] = model.look([model.prepare(copy)], [BUILTIN_QUESTIONS[question]] if question else [])
        scores.append(score.value)
        words += [LEVELS.index(answer.text) for answer in answers]
    return Seen(distortion, tuple(scores), tuple(words))


@lru_cache
def _model(checkpoint: str) -> QSit:
    return QSit.load(checkpoint)


def look(checkpoint: Path, photos: Sequence[Path], size: tuple[int, int], *, asked: bool) -> list[Seen]:
    """At every photo under every distortion, on all cores."""
    jobs = [(number, path, distortion) for number, path in enumerate(photos) for distortion in DISTORTIONS]
    with get_context("spawn").Pool() as pool:
        return list(pool.imap_unordered(partial(seen, str(checkpoint), size, asked), jobs))


def table(found: dict[str, list[Seen]]) -> Iterator[str]:
    """Of each distortion and size: mean SRCC, and how often the pristine photo beats its moderately distorted copy."""
    yield "| distortion | " + " | ".join(f"SRCC {size} | pristine first" for size in found) + " |"
    yield "|---" * (1 + 2 * len(found)) + "|"
    for distortion in (*DISTORTIONS, "all"):
        cells = []
        for all_seen in found.values():
            some = [each for each in all_seen if distortion in (each.distortion, "all")]
            cells += [
                f"{mean(each.srcc for each in some):.3f}",
                f"{mean(each.is_pristine_better for each in some):.1%}",
            ]
        yield f"| {distortion} | " + " | ".join(cells) + " |"


def word_table(all_seen: Sequence[Seen]) -> Iterator[str]:
    """Of each ready question, how often the worse copy has the worse word."""
    yield "| question | distortions | pairs | worse word for the worse copy |"
    yield "|---|---|---|---|"
    for question, harms in HARMS.items():
        pairs = [pair for each in all_seen if each.distortion in harms for pair in each.pairs()]
        if pairs:
            yield f"| {question} | {', '.join(harms)} | {len(pairs)} | {mean(pairs):.1%} |"


def plot(all_seen: Sequence[Seen], file: Path) -> None:
    """Score against severity: a line a photo, and their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    for axes, distortion in zip(figure.subplots(2, 5, sharex=True, sharey=True).flat, DISTORTIONS, strict=True):
        lines = [each.scores for each in all_seen if each.distortion == distortion]
        axes.plot(SEVERITIES, np.transpose(lines), color="tab:blue", alpha=0.25, linewidth=1)
        axes.plot(SEVERITIES, np.mean(lines, axis=0), color="black", linewidth=2)
        axes.set(title=distortion, xlim=(0, 1), ylim=(0, 1))
    figure.supxlabel("severity")
    figure.supylabel("score")
    figure.savefig(file, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["1024x768", "384x384", "4000x3000"])
    args = parser.parse_args()
    photos = fetch_or_exit(args.folder / "photos")["test"]
    found: dict[str, list[Seen]] = {}
    for size in args.sizes:
        width, height = map(int, size.split("x"))
        found[size] = look(args.checkpoint, photos, (width, height), asked=not found)
    first = found[args.sizes[0]]
    print(f"{len(photos)} photos\n", *table(found), "", *word_table(first), sep="\n")
    if args.plot:
        plot(first, args.plot)


if __name__ == "__main__":
    main()
