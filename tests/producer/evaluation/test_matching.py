"""From labels to scores: by place, and by name where that is plain; on both databases."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine

from models.claims import QueueKey, Scored
from models.ledger import leases, scheduling
from models.queries import scorers
from producer.evaluation import matching
from producer.evaluation.labels import Label
from producer.evaluation.matching import Joined, Pair, join, place_of
from qsit import process_id
from qsit.sources.uris import uri_of
from tests.support.ledger import SPEC, Photo, listed


def scored(engine: Engine, scores: dict[str, float], version: str = "1", **spec: str) -> int:
    """Scores by URI, of a scorer; the job."""
    wanted = replace(SPEC, key=str(scores), **spec)
    job = listed(engine, [Photo(uri, version) for uri in scores], wanted)
    lane = QueueKey(wanted.model, wanted.revision)
    while messages := scheduling.stage_chunks(engine, lane, ahead=4, lease_s=60):
        for message in messages:
            claim = leases.claim(engine, message.chunk_id, lane, process_id.identity(), 60)
            assert claim is not None
            logits = (0.0, 1.0, 2.0, 3.0, 4.0)
            done = [Scored(item.image_id, scores[item.uri], logits, "float32") for item in claim.items]
            leases.record(engine, claim, done, 60)
            leases.release(engine, claim)
    return job


def joined(engine: Engine, labels: list[Label], images: Path | str) -> Joined:
    (scorer,) = scorers.in_use(engine)
    return join(engine, scorer, labels, {label.path: place_of(label.path, str(images)) for label in labels})


def left_out(found: Joined) -> dict[str, int]:
    return {reason: number for reason, number in found.left_out.counts().items() if number}


def touch(path: Path) -> str:
    """A file; its URI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return uri_of(path)


@pytest.mark.parametrize("form", ["relative", "absolute", "uri", "in a folder of the dataset", "of another dataset"])
def test_a_photo_is_found_by_its_place(engine: Engine, tmp_path: Path, form: str) -> None:
    uri = touch(tmp_path / "koniq" / "a b.jpg")
    scored(engine, {uri: 0.25, "file:///elsewhere/a%20b.jpg": 0.75})
    path, images = {
        "relative": ("a b.jpg", tmp_path / "koniq"),
        "absolute": (str(tmp_path / "koniq" / "a b.jpg"), "/nowhere"),
        "uri": (uri, "/nowhere"),
        "in a folder of the dataset": ("koniq/a b.jpg", tmp_path),
        "of another dataset": ("1024x768/a b.jpg", tmp_path / "koniq"),
    }[form]

    found = joined(engine, [Label(path, 3.0)], images)

    assert found.pairs == [Pair(uri, 0.25, 3.0)]
    assert left_out(found) == {}


def test_a_photo_that_is_gone_from_here_is_found_by_its_place(engine: Engine) -> None:
    scored(engine, {"file:///photos/a.jpg": 0.25, "file:///others/a.jpg": 0.75})

    assert joined(engine, [Label("a.jpg", 3.0)], "/photos").scores == [0.25]


def test_objects_in_s3(engine: Engine) -> None:
    scored(engine, {"s3://b/koniq/a b.jpg": 0.25, "s3://b/koniq/c%20.jpg": 0.5, "s3://b/other/a b.jpg": 0.75})
    labels = [Label("s3://b/koniq/a b.jpg", 1.0), Label("c%20.jpg", 2.0), Label("s3://b/none.jpg", 3.0)]

    found = joined(engine, [*labels, Label("s3://b/\0.jpg", 1.0)], "s3://b/koniq/")

    assert [(pair.uri, pair.opinion) for pair in found.pairs] == [
        ("s3://b/koniq/a b.jpg", 1.0), ("s3://b/koniq/c%20.jpg", 2.0),
    ]  # fmt: skip
    assert left_out(found) == {"missing": 1, "not_scored": 1}


def test_a_name_that_one_scored_photo_has_is_enough(engine: Engine, tmp_path: Path) -> None:
    scored(engine, {"file:///far/x/a%20b.jpg": 0.25, "s3://b/far/c.jpg": 0.5, "s3://b/far/%64.jpg": 0.75})

    found = joined(engine, [Label("a b.jpg", 1.0), Label("p/c.jpg", 2.0), Label("d.jpg", 3.0)], tmp_path)

    assert sorted(found.scores) == [0.25, 0.5]
    assert left_out(found) == {"missing": 1}


def test_names_that_cannot_be_told_apart_are_left_out(engine: Engine, tmp_path: Path) -> None:
    scored(engine, {"file:///x/a.jpg": 0.1, "file:///y/a.jpg": 0.2, "file:///x/b.jpg": 0.3, "file:///x/c.jpg": 0.4})
    paths = ["a.jpg", "p/b.jpg", "q/b.jpg", "c.jpg", "none.jpg"]

    found = joined(engine, [Label(path, float(place)) for place, path in enumerate(paths)], tmp_path)

    assert found.pairs == [Pair("file:///x/c.jpg", 0.4, 3.0)]
    assert left_out(found) == {"ambiguous": 3, "missing": 1}
    assert "3 rows left out, more than one photo of that name is scored or labelled: a.jpg, p/b.jpg, q/b.jpg" in list(
        found.left_out.lines()
    )


def test_a_photo_is_not_taken_for_another_of_its_name(engine: Engine, tmp_path: Path) -> None:
    """Neither one that is there, nor one that has its own label."""
    touch(tmp_path / "new" / "a.jpg")
    scored(engine, {"file:///old/a.jpg": 0.1, uri_of(tmp_path / "p" / "b.jpg"): 0.2})

    found = joined(engine, [Label("new/a.jpg", 1.0), Label("p/b.jpg", 2.0), Label("q/b.jpg", 3.0)], tmp_path)

    assert found.pairs == [Pair(uri_of(tmp_path / "p" / "b.jpg"), 0.2, 2.0)]
    assert left_out(found) == {"missing": 1, "not_scored": 1}


@pytest.mark.parametrize("scored_by", ["link", "folder"])
def test_links_to_folders_lead_to_the_same_photo(engine: Engine, tmp_path: Path, scored_by: str) -> None:
    touch(tmp_path / "folder" / "a.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    scored(engine, {uri_of(tmp_path / scored_by / "a.jpg"): 0.1})

    for images in ("link", "folder"):
        assert joined(engine, [Label("a.jpg", 1.0)], tmp_path / images).scores == [0.1]


def test_a_photo_that_is_labelled_twice_counts_once_or_not_at_all(engine: Engine) -> None:
    scored(engine, {"file:///p/a.jpg": 0.1, "file:///p/b.jpg": 0.2, "file:///far/c.jpg": 0.3, "file:///far/d.jpg": 0.4})
    rows = ["a.jpg 1", "./a.jpg 1", "a.jpg 1", "b.jpg 1", "b.jpg 2", "c.jpg 5", "c.jpg 5", "d.jpg 5", "d.jpg 6"]

    found = joined(engine, [Label(path, float(opinion)) for path, opinion in map(str.split, rows)], "/p")

    assert found.pairs == [Pair("file:///p/a.jpg", 0.1, 1.0), Pair("file:///far/c.jpg", 0.3, 5.0)]
    assert left_out(found) == {"repeated": 3, "contradictory": 4}


def test_odd_names_are_missing_and_no_crash(engine: Engine) -> None:
    scored(engine, {"file:///p/a.jpg": 0.1})
    odd = ["\udcff.jpg", "\ud800.jpg", "a\0.jpg", "..", "/", "http://host/b.jpg", "gs://x/b.jpg", "x" * 5000, "s3://"]

    for images in ("/p", "s3://b/p", "/no/such"):
        found = joined(engine, [Label(path, 1.0) for path in odd], images)
        assert found.pairs == []
        assert sum(left_out(found).values()) == len(odd)


def test_only_current_versions_count(engine: Engine) -> None:
    scored(engine, {"file:///p/a.jpg": 0.1, "file:///p/b.jpg": 0.2})
    scored(engine, {"file:///p/a.jpg": 0.9}, version="2")

    found = joined(engine, [Label("a.jpg", 1.0), Label("b.jpg", 2.0)], "/p")

    assert found.scores == [0.9, 0.2]


def test_many_labels_are_looked_up_in_parts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "AT_ONCE", 7)
    scored(engine, {f"file:///p/{number}.jpg": number / 100 for number in range(50)})

    found = joined(engine, [Label(f"{number}.jpg", number) for number in range(60)], "/p")

    assert found.scores == [number / 100 for number in range(50)]
    assert left_out(found) == {"missing": 10}


def test_scorers_are_told_the_newest_first(engine: Engine) -> None:
    scored(engine, {"file:///p/a.jpg": 0.1}, model="old")
    job = scored(engine, {"file:///p/a.jpg": 0.2}, model="new", revision="r1")
    scored(engine, {"file:///p/a.jpg": 0.3}, model="new", revision="r2")

    assert [(scorer.model, scorer.revision) for scorer in scorers.in_use(engine)] == [
        ("new", "r2"), ("new", "r1"), ("old", "r1"),
    ]  # fmt: skip
    assert [scorer.revision for scorer in scorers.in_use(engine, job=job)] == ["r1"]


def test_the_newest_scorer_that_knows_the_photos_is_taken(engine: Engine) -> None:
    scored(engine, {"file:///dataset/a.jpg": 0.1}, model="old")
    scored(engine, {"file:///library/b.jpg": 0.2}, model="new")
    candidates = scorers.in_use(engine)

    def model_for(path: str) -> str:
        labels = [Label(path, 1.0)]
        return matching.join_newest(engine, candidates, labels, {path: place_of(path, os.getcwd())}).scorer.model

    assert model_for("/dataset/a.jpg") == "old"
    assert model_for("a.jpg") == "old"
    assert model_for("/library/b.jpg") == "new"
    assert model_for("none.jpg") == "new"
