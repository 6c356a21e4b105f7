"""Matching labels with the scores of their photos, by path."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine

from models.queries import scorers
from models.queries.scorers import ScorerInUse
from producer.evaluation.labels import Label
from producer.evaluation.skipped import SkipReason
from qsit.errors import SourceError
from qsit.sources.source import Source, parse_below
from qsit.sources.uris import is_local, path_of


@dataclass(frozen=True)
class Pair:
    """A photo's score and people's opinion of it."""

    uri: str
    score: float
    opinion: float


@dataclass(frozen=True)
class Matches:
    """The pairs of one scorer, and the paths of the labels without a pair."""

    scorer: ScorerInUse
    pairs: list[Pair]
    skipped: list[tuple[SkipReason, str]]

    @property
    def scores(self) -> list[float]:
        return [pair.score for pair in self.pairs]

    @property
    def opinions(self) -> list[float]:
        return [pair.opinion for pair in self.pairs]


def find_uris(path: str, images: Source) -> tuple[str, ...]:
    """
    Return the URIs that a photo can be scored under: as named, and with links resolved. Empty for a name that no photo
    can have.

    path: an absolute path, a file:// or s3:// URI, or a path below `images`, a folder in the file system or S3.
    """
    try:
        return parse_below(path, images).uris()
    except SourceError:
        return ()


def match_newest(
    engine: Engine, candidates: Sequence[ScorerInUse], labels: Sequence[Label], uris: Mapping[str, Sequence[str]]
) -> Matches:
    """Match with the first scorer that has scored a labelled photo, or with the first of all when none has."""
    tried = (match(engine, scorer, labels, uris) for scorer in candidates)
    first = next(tried)
    return first if first.pairs else next((matches for matches in tried if matches.pairs), first)


def match(engine: Engine, scorer: ScorerInUse, labels: Sequence[Label], uris: Mapping[str, Sequence[str]]) -> Matches:
    """
    Match labels with the scores of one scorer. Of a photo with several equal labels, one counts; of a photo with
    different labels, none does.

    uris: the URIs of each path of the labels.
    """
    scores = scorers.scores_of(engine, scorer.id, list(dict.fromkeys(uri for some in uris.values() for uri in some)))
    labels_of: dict[str, list[Label]] = defaultdict(list)  # by URI
    matches = Matches(scorer, [], [])
    for label in labels:
        uri = next((uri for uri in uris[label.path] if uri in scores), None)
        if uri is not None:
            labels_of[uri].append(label)
        else:
            reason = SkipReason.NOT_SCORED if _may_exist(uris[label.path]) else SkipReason.MISSING
            matches.skipped.append((reason, label.path))
    for uri, some in labels_of.items():
        first, *others = some
        agree = all(label.opinion == first.opinion for label in others)
        if agree:
            matches.pairs.append(Pair(uri, scores[uri], first.opinion))
        reason = SkipReason.REPEATED if agree else SkipReason.CONTRADICTORY
        matches.skipped.extend((reason, label.path) for label in (others if agree else some))
    return matches


def _may_exist(uris: Sequence[str]) -> bool:
    """Return whether a photo exists. Only a worker can tell that for S3."""
    return any(not is_local(uri) or os.path.isfile(path_of(uri)) for uri in uris)
