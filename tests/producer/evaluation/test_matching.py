"""Matching labels with scores by path, on both databases."""

import os
from pathlib import Path

import pytest
from sqlalchemy import Engine

from models.queries import scorers
from producer.evaluation.labels import Label
from producer.evaluation.matching import Matches, Pair, find_uris, match, match_newest
from producer.evaluation.report import RowSkip
from qsit.sources.source import parse_source
from qsit.sources.uris import uri_of
from tests.support.scored import record_scores

MISSING, NOT_SCORED = RowSkip.MISSING, RowSkip.NOT_SCORED
REPEATED, CONTRADICTORY = RowSkip.REPEATED, RowSkip.CONTRADICTORY


def match_all(engine: Engine, labels: list[Label], images: Path | str) -> Matches:
    (scorer,) = scorers.in_use(engine)
    folder = parse_source(str(images))
    return match(engine, scorer, labels, {label.path: find_uris(label.path, folder) for label in labels})


def scores(found: Matches) -> list[float]:
    return [pair.score for pair in found.pairs]


def touch(path: Path) -> str:
    """Create a file and return its URI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return uri_of(path)


@pytest.mark.parametrize("form", ["relative", "absolute", "uri", "in a folder"])
def test_a_photo_is_found_by_its_path(engine: Engine, tmp_path: Path, form: str) -> None:
    uri = touch(tmp_path / "koniq" / "a b.jpg")
    record_scores(engine, {uri: 0.25, "file:///elsewhere/a%20b.jpg": 0.75})
    forms: dict[str, tuple[str, Path | str]] = {
        "relative": ("a b.jpg", tmp_path / "koniq"),
        "absolute": (str(tmp_path / "koniq" / "a b.jpg"), "/nowhere"),
        "uri": (uri, "/nowhere"),
        "in a folder": ("koniq/a b.jpg", tmp_path),
    }
    path, images = forms[form]

    found = match_all(engine, [Label(path, 3.0)], images)

    assert found.pairs == [Pair(uri, 0.25, 3.0)]
    assert found.skipped == []


def test_a_photo_that_no_longer_exists_keeps_its_score(engine: Engine) -> None:
    record_scores(engine, {"file:///photos/a.jpg": 0.25, "file:///others/a.jpg": 0.75})

    assert scores(match_all(engine, [Label("a.jpg", 3.0)], "/photos")) == [0.25]


def test_the_file_name_alone_is_not_a_match(engine: Engine, tmp_path: Path) -> None:
    touch(tmp_path / "new" / "a.jpg")
    touch(tmp_path / "c.jpg")
    record_scores(engine, {"file:///old/a.jpg": 0.1, "file:///old/b.jpg": 0.2, uri_of(tmp_path / "c.jpg"): 0.3})

    found = match_all(engine, [Label("new/a.jpg", 1.0), Label("b.jpg", 2.0), Label("koniq/c.jpg", 3.0)], tmp_path)

    assert found.pairs == []
    assert found.skipped == [(NOT_SCORED, "new/a.jpg"), (MISSING, "b.jpg"), (MISSING, "koniq/c.jpg")]


def test_objects_in_s3(engine: Engine) -> None:
    record_scores(
        engine,
        {"s3://bucket/koniq/a b.jpg": 0.25, "s3://bucket/koniq/c%20.jpg": 0.5, "s3://bucket/other/a b.jpg": 0.75},
    )
    labels = [Label("s3://bucket/koniq/a b.jpg", 1.0), Label("c%20.jpg", 2.0), Label("s3://bucket/none.jpg", 3.0)]

    found = match_all(engine, [*labels, Label("s3://bucket/\0.jpg", 1.0)], "s3://bucket/koniq/")

    assert found.pairs == [Pair("s3://bucket/koniq/a b.jpg", 0.25, 1.0), Pair("s3://bucket/koniq/c%20.jpg", 0.5, 2.0)]
    assert found.skipped == [(NOT_SCORED, "s3://bucket/none.jpg"), (MISSING, "s3://bucket/\0.jpg")]


@pytest.mark.parametrize("images", ["link", "folder"])
def test_a_link_leads_to_the_same_photo(engine: Engine, tmp_path: Path, images: str) -> None:
    record_scores(engine, {touch(tmp_path / "folder" / "a.jpg"): 0.1})
    (tmp_path / "link").symlink_to(tmp_path / "folder")

    assert scores(match_all(engine, [Label("a.jpg", 1.0)], tmp_path / images)) == [0.1]


def test_a_photo_with_several_labels_counts_once_or_not_at_all(engine: Engine) -> None:
    record_scores(engine, {"file:///p/a.jpg": 0.1, "file:///p/b.jpg": 0.2})
    rows = ["a.jpg 1", "./a.jpg 1", "a.jpg 1", "b.jpg 1", "b.jpg 2"]

    found = match_all(engine, [Label(path, float(opinion)) for path, opinion in map(str.split, rows)], "/p")

    assert found.pairs == [Pair("file:///p/a.jpg", 0.1, 1.0)]
    assert found.skipped == [
        (REPEATED, "./a.jpg"),
        (REPEATED, "a.jpg"),
        (CONTRADICTORY, "b.jpg"),
        (CONTRADICTORY, "b.jpg"),
    ]


def test_impossible_names_are_skipped(engine: Engine) -> None:
    record_scores(engine, {"file:///p/a.jpg": 0.1})
    odd = ["\udcff.jpg", "\ud800.jpg", "a\0.jpg", "..", "/", "http://host/b.jpg", "gs://x/b.jpg", "x" * 5000, "s3://"]

    for images in ("/p", "s3://bucket/p", "/no/such"):
        found = match_all(engine, [Label(path, 1.0) for path in odd], images)
        assert found.pairs == []
        assert [path for _, path in found.skipped] == odd


def test_only_current_versions_count(engine: Engine) -> None:
    record_scores(engine, {"file:///p/a.jpg": 0.1, "file:///p/b.jpg": 0.2})
    record_scores(engine, {"file:///p/a.jpg": 0.9}, version="2")

    found = match_all(engine, [Label("a.jpg", 1.0), Label("b.jpg", 2.0)], "/p")

    assert scores(found) == [0.9, 0.2]


def test_more_labels_than_one_query_takes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "AT_ONCE", 7)
    record_scores(engine, {f"file:///p/{number}.jpg": number / 100 for number in range(50)})

    found = match_all(engine, [Label(f"{number}.jpg", number) for number in range(60)], "/p")

    assert scores(found) == [number / 100 for number in range(50)]
    assert found.skipped == [(MISSING, f"{number}.jpg") for number in range(50, 60)]


def test_the_newest_scorer_comes_first(engine: Engine) -> None:
    record_scores(engine, {"file:///p/a.jpg": 0.1}, model="old")
    job = record_scores(engine, {"file:///p/a.jpg": 0.2}, model="new", revision="r1")
    record_scores(engine, {"file:///p/a.jpg": 0.3}, model="new", revision="r2")

    found = [(scorer.model, scorer.revision) for scorer in scorers.in_use(engine)]

    assert found == [("new", "r2"), ("new", "r1"), ("old", "r1")]
    assert [scorer.revision for scorer in scorers.in_use(engine, job=job)] == ["r1"]


def test_the_newest_scorer_of_the_labelled_photos_is_used(engine: Engine) -> None:
    record_scores(engine, {"file:///dataset/a.jpg": 0.1}, model="old")
    record_scores(engine, {"file:///library/b.jpg": 0.2}, model="new")
    candidates = scorers.in_use(engine)

    def model_for(path: str) -> str:
        uris = {path: find_uris(path, parse_source(os.getcwd()))}
        return match_newest(engine, candidates, [Label(path, 1.0)], uris).scorer.model

    assert model_for("/dataset/a.jpg") == "old"
    assert model_for("/library/b.jpg") == "new"
    assert model_for("none.jpg") == "new"
