"""
Measure how well a checkpoint ranks distorted copies of photos that training never saw.

    python -m training.figures CHECKPOINT FOLDER [--plot FILE] [--sizes 1024x768 384x384 4000x3000]

FOLDER is the folder of training.copies. Prints the tables of README.md and draws a plot of score against severity.
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
from training.scenes import open_photo
from worker.qsit import QSit

SEVERITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
MODERATE = 0.5
MIN_DIFFERENCE = 0.5
"""Answers are compared for copies whose severities differ by at least this much."""


@dataclass(frozen=True)
class Observations:
    """
    The scores of a photo under one distortion at each severity, and its answers to the question about the distortion.

    answers: indices into LEVELS; empty when no question was asked.
    """

    distortion: str
    scores: tuple[float, ...]
    answers: tuple[int, ...]

    @property
    def srcc(self) -> float:
        """Spearman's correlation of severity and falling score; 0 when all scores are equal."""
        return measure_agreement(self.scores, [-severity for severity in SEVERITIES]).srcc or 0.0

    @property
    def is_pristine_better(self) -> bool:
        return self.scores[0] > self.scores[SEVERITIES.index(MODERATE)]

    def pairs(self) -> Iterator[bool]:
        """Yield, for each pair of copies that differ enough, whether the worse one has the worse answer."""
        for (mild, better), (strong, worse) in combinations(zip(SEVERITIES, self.answers, strict=True), 2):
            if strong - mild > MIN_DIFFERENCE - 1e-6:
                yield worse < better


def observe(checkpoint: str, size: tuple[int, int], asked: bool, job: tuple[int, Path, str]) -> Observations:
    """Distort a photo at each severity and score the copies."""
    torch.set_num_threads(1)
    number, path, distortion = job
    model = _load_model(checkpoint)
    photo = ImageOps.fit(open_photo(path), size, Image.Resampling.LANCZOS)
    question = next((name for name, harms in HARMS.items() if asked and distortion in harms), None)
    scores, words = [], []
    for severity in SEVERITIES:
        copy = distort(distortion, photo, severity, np.random.default_rng(number))
        [(score, answers)] = model.look([model.prepare(copy)], [BUILTIN_QUESTIONS[question]] if question else [])
        scores.append(score.value)
        words += [LEVELS.index(answer.text) for answer in answers]
    return Observations(distortion, tuple(scores), tuple(words))


@lru_cache
def _load_model(checkpoint: str) -> QSit:
    return QSit.load(checkpoint)


def observe_all(checkpoint: Path, photos: Sequence[Path], size: tuple[int, int], *, asked: bool) -> list[Observations]:
    """Observe every photo under every distortion, on all cores."""
    jobs = [(number, path, distortion) for number, path in enumerate(photos) for distortion in DISTORTIONS]
    with get_context("spawn").Pool() as pool:
        return list(pool.imap_unordered(partial(observe, str(checkpoint), size, asked), jobs))


def make_table(found: dict[str, list[Observations]]) -> Iterator[str]:
    """Yield the mean SRCC, and how often the photo beats its moderately distorted copy, by distortion and size."""
    yield "| distortion | " + " | ".join(f"SRCC {size} | pristine first" for size in found) + " |"
    yield "|---" * (1 + 2 * len(found)) + "|"
    for distortion in (*DISTORTIONS, "all"):
        cells = []
        for observations in found.values():
            some = [each for each in observations if distortion in (each.distortion, "all")]
            cells += [
                f"{mean(each.srcc for each in some):.3f}",
                f"{mean(each.is_pristine_better for each in some):.1%}",
            ]
        yield f"| {distortion} | " + " | ".join(cells) + " |"


def make_word_table(observations: Sequence[Observations]) -> Iterator[str]:
    """Yield how often the worse copy has the worse answer, by question."""
    yield "| question | distortions | pairs | worse word for the worse copy |"
    yield "|---|---|---|---|"
    for question, harms in HARMS.items():
        pairs = [pair for each in observations if each.distortion in harms for pair in each.pairs()]
        if pairs:
            yield f"| {question} | {', '.join(harms)} | {len(pairs)} | {mean(pairs):.1%} |"


def draw_plot(observations: Sequence[Observations], file: Path) -> None:
    """Draw score against severity: one line per photo, and the mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    for axes, distortion in zip(figure.subplots(2, 5, sharex=True, sharey=True).flat, DISTORTIONS, strict=True):
        lines = [each.scores for each in observations if each.distortion == distortion]
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
    found: dict[str, list[Observations]] = {}
    for size in args.sizes:
        width, height = map(int, size.split("x"))
        found[size] = observe_all(args.checkpoint, photos, (width, height), asked=not found)
    first = found[args.sizes[0]]
    print(f"{len(photos)} photos\n", *make_table(found), "", *make_word_table(first), sep="\n")
    if args.plot:
        draw_plot(first, args.plot)


if __name__ == "__main__":
    main()
