"""From the photos of labels to those that have scores."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from models.db import sanitize_text
from models.queries import scorers
from models.queries.scorers import ScorerInUse
from producer.evaluation.labels import Label
from producer.evaluation.skipped import LeftOut
from qsit.sources.uris import S3_SCHEME, local_path, path_of, uri_of

REASONS = {
    "missing": "no file is there, and no scored photo has the name",
    "not_scored": "the photo has no such score",
    "ambiguous": "more than one photo of that name is scored or labelled",
    "repeated": "the photo has that label already",
    "contradictory": "the photo has labels that differ",
}
"""Why a label is not used."""


@dataclass(frozen=True)
class Place:
    """
    Where the photo of a label may be.

    uris: that it may have, the likeliest first; file: the one that is there; name: of the file.
    """

    uris: tuple[str, ...]
    file: Path | None
    name: str

    @property
    def is_in_s3(self) -> bool:
        """Whether it is where only a worker can tell that nothing is there."""
        return bool(self.uris) and self.uris[0].startswith(S3_SCHEME)


@dataclass(frozen=True)
class Pair:
    """A photo's score and what people think of it."""

    uri: str
    score: float
    opinion: float


@dataclass(frozen=True)
class Joined:
    """What was found of one scorer, and the labels without it."""

    scorer: ScorerInUse
    pairs: list[Pair]
    left_out: LeftOut

    @property
    def scores(self) -> list[float]:
        """Of the photos, in their order."""
        return [pair.score for pair in self.pairs]

    @property
    def opinions(self) -> list[float]:
        """Of the photos, in the same order."""
        return [pair.opinion for pair in self.pairs]


def place_of(path: str, images: str) -> Place:
    """
    Where the photo is that labels call `path`: an absolute path, an s3:// or file:// URI, or below `images`, a folder
    or a place in S3, with its own folders or without.
    """
    name = os.path.basename(path)
    if path.startswith(S3_SCHEME) or (images.startswith(S3_SCHEME) and not os.path.isabs(path) and "://" not in path):
        below = images.rstrip("/") + "/"
        uris = (path,) if path.startswith(S3_SCHEME) else (below + path, below + name)
        return Place(tuple(filter(_can_be_asked_for, dict.fromkeys(uris))), None, name)
    try:
        return _local_place(path_of(path) if path.startswith("file:///") else Path(path), images)
    except ValueError:  # of a name that no file can have
        return Place((), None, name)


def _local_place(path: Path, images: str) -> Place:
    folder = Path() if images.startswith(S3_SCHEME) else local_path(images)
    files = [Path(os.path.abspath(folder / path)), folder / path.name]
    file = next(filter(os.path.isfile, files), None)
    if file is not None:
        files = [file, Path(os.path.realpath(file))]
    return Place(tuple(dict.fromkeys(map(uri_of, files))), file, path.name)


def _can_be_asked_for(uri: str) -> bool:
    return sanitize_text(uri) == uri


def join_newest(
    engine: Engine, candidates: Sequence[ScorerInUse], labels: Sequence[Label], places: dict[str, Place]
) -> Joined:
    """Join with the first of the scorers that has scored a labelled photo; with the very first if none has."""
    tried = (join(engine, scorer, labels, places) for scorer in candidates)
    first = next(tried)
    return first if first.pairs else next((joined for joined in tried if joined.pairs), first)


def join(engine: Engine, scorer: ScorerInUse, labels: Sequence[Label], places: dict[str, Place]) -> Joined:
    """The labelled photos that the scorer has scored; `places` has the place of each path."""
    left_out = LeftOut(REASONS, "row")
    uris = dict.fromkeys(uri for place in places.values() for uri in place.uris)
    scores = scorers.scores_of(engine, scorer.id, list(uris))
    labels_of: dict[str, list[Label]] = defaultdict(list)  # by URI
    others: list[Label] = []
    for label in labels:
        uri = next((uri for uri in places[label.path].uris if uri in scores), None)
        if uri is None:
            others.append(label)
        else:
            labels_of[uri].append(label)
    pairs = [pair for uri in labels_of for pair in _pair(uri, scores[uri], labels_of[uri], left_out)]
    pairs += _join_by_name(engine, scorer, others, places, set(labels_of), left_out)
    return Joined(scorer, pairs, left_out)


def _join_by_name(
    engine: Engine,
    scorer: ScorerInUse,
    labels: list[Label],
    places: dict[str, Place],
    taken: set[str],
    left_out: LeftOut,
) -> Iterator[Pair]:
    """Join what is scored under another folder than the labels say, unless it is another photo of that name."""
    if not labels:
        return
    named: dict[str, dict[str, float]] = {places[label.path].name: {} for label in labels}
    for uri, score in scorers.every_score(engine, scorer.id):
        if (name := _name_of(uri)) in named and uri not in taken:
            named[name][uri] = score
    labels_of: dict[str, list[Label]] = defaultdict(list)
    for label in labels:
        place = places[label.path]
        found = [uri for uri in named[place.name] if place.file is None or _is_file(uri, place.file)]
        if len(found) == 1:
            labels_of[found[0]].append(label)
        elif found:
            left_out.add("ambiguous", label.path)
        else:
            is_missing = place.file is None and not place.is_in_s3
            left_out.add("missing" if is_missing else "not_scored", label.path)
    for uri, some in labels_of.items():
        if len({label.path for label in some}) > 1:
            for label in some:
                left_out.add("ambiguous", label.path)
        else:
            yield from _pair(uri, named[_name_of(uri)][uri], some, left_out)


def _pair(uri: str, score: float, labels: list[Label], left_out: LeftOut) -> Iterator[Pair]:
    """One label of a photo is used; of several none, unless they say the same."""
    first, *others = labels
    agree = all(label.opinion == first.opinion for label in others)
    if agree:
        yield Pair(uri, score, first.opinion)
    for label in others if agree else labels:
        left_out.add("repeated" if agree else "contradictory", label.path)


def _name_of(uri: str) -> str:
    last = uri.rpartition("/")[2]
    return path_of(last).name if uri.startswith("file://") and "%" in last else last


def _is_file(uri: str, file: Path) -> bool:
    with suppress(OSError, ValueError):
        return uri.startswith("file://") and os.path.samefile(path_of(uri), file)
    return False
