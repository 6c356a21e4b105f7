"""Matching labels with the scores of their photos, by path."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Engine

from models.queries import scorers
from models.queries.scorers import ScorerInUse
from producer.evaluation.labels import Label
from producer.evaluation.report import RowSkip
from qsit.errors import SourceError
from qsit.sources.source import Source, parse_below
from qsit.sources.uris import is_local, path_of


class Pair(NamedTuple):
    """A photo's score and people's opinion of it."""

    uri: str
    score: float
    opinion: float


class Matches(NamedTuple):
    """The pairs of one scorer, and the paths of the labels without a pair."""

    scorer: ScorerInUse
    pairs: list[Pair]
    skipped: list[tuple[RowSkip, str]]


def find_uris(path: str, images: Source) -> tuple[str, ...]:
    """
    Return the URIs that a photo can be scored under: as named, and with links resolved. Empty for a name that no photo
    can have. `path` is absolute, a file:// or s3:// URI, or below `images`, a folder in the file system or S3.
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
    different labels, none does. uris: the URIs of each path of the labels.
    """
    scores = scorers.scores_of(engine, scorer.id, list(dict.fromkeys(uri for some in uris.values() for uri in some)))
    labels_of: dict[str, list[Label]] = defaultdict(list)  # by URI
    matches = Matches(scorer, [], [])
    for label in labels:
        uri = next((uri for uri in uris[label.path] if uri in scores), None)
        if uri is not None:
            labels_of[uri].append(label)
            continue
        # only a worker can tell whether an object in S3 exists
        may_exist = any(not is_local(uri) or os.path.isfile(path_of(uri)) for uri in uris[label.path])
        matches.skipped.append((RowSkip.NOT_SCORED if may_exist else RowSkip.MISSING, label.path))
    for uri, some in labels_of.items():
        first, *others = some
        agree = all(label.opinion == first.opinion for label in others)
        if agree:
            matches.pairs.append(Pair(uri, scores[uri], first.opinion))
        reason = RowSkip.REPEATED if agree else RowSkip.CONTRADICTORY
        matches.skipped.extend((reason, label.path) for label in (others if agree else some))
    return matches
