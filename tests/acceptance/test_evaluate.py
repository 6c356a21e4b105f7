"""`qsit evaluate` against labels: what it prints, what it leaves out, and what it refuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from sqlalchemy import Engine

from migrations.upgrade import upgrade
from models import db
from producer.cli.main import run
from qsit.rating import AS_STORED
from qsit.sources.uris import uri_of
from tests.producer.evaluation.test_matching import scored
from tests.support import programs
from tests.support.paths import EXAMPLES
from tests.support.s3_servers import KEYS, NO_OTHERS, rclone

SCORES = [0.1, 0.2, 0.2, 0.4, 0.5, 0.7, 0.7, 0.9]
OPINIONS = [1.0, 3.0, 2.0, 2.0, 3.0, 5.0, 4.0, 5.0]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path}/qsit.db"
    monkeypatch.setenv("QSIT_DATABASE_URL", url)
    upgrade(url)
    engine = db.connect(url)
    yield engine
    engine.dispose()


@pytest.fixture
def dataset(database: Engine, tmp_path: Path) -> Path:
    """Eight scored photos, with ties, and their labels."""
    scored(database, {uri_of(tmp_path / f"{place}.jpg"): score for place, score in enumerate(SCORES)}, revision="abc1")
    rows = [f"{place}.jpg,{opinion}" for place, opinion in enumerate(OPINIONS)]
    labels = tmp_path / "koniq_labels.csv"
    labels.write_text("\n".join(["image_name,MOS", *rows]) + "\n")
    return labels


def record(capfd: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    assert run(["evaluate", *arguments, "--format", "json"]) == status
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def test_the_figures_are_scipys_of_what_is_in_the_database(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = record(capfd, str(dataset))

    assert found["n"] == 8
    assert found["srcc"] == pytest.approx(stats.spearmanr(SCORES, OPINIONS).statistic, abs=1e-12)
    assert found["plcc"] == pytest.approx(stats.pearsonr(SCORES, OPINIONS).statistic, abs=1e-12)
    assert found["krcc"] == pytest.approx(stats.kendalltau(SCORES, OPINIONS).statistic, abs=1e-12)
    line = stats.linregress(SCORES, OPINIONS)
    left = [y - line.slope * x - line.intercept for x, y in zip(SCORES, OPINIONS, strict=True)]
    assert found["rmse"] == pytest.approx((sum(each**2 for each in left) / 8) ** 0.5)
    assert (found["model"], found["revision"], found["procedure"]) == ("demo", "abc1", "rating-1/upright-1")
    assert set(found["left_out"].values()) == {0}
    assert found["published"]["dataset"] == "KonIQ"
    assert found["published"]["q-sit-mini"] == {"srcc": 0.914, "plcc": 0.882}


def test_people_read_a_table_with_what_was_published(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(dataset)]) == 0

    words = capfd.readouterr()
    title, head, here, mini, full = words.out.splitlines()
    assert title == "model demo at revision abc1 (upright pixels)"
    assert head.split() == ["n", "SRCC", "PLCC", "KRCC", "RMSE"]
    assert here.split()[:3] == ["here", "8", f"{stats.spearmanr(SCORES, OPINIONS).statistic:.4f}"]
    assert mini.split() == ["q-sit-mini,", "published", "0.914", "0.882"]
    assert full.split() == ["q-sit,", "published", "0.924", "0.925"]
    assert "RMSE is in the labels' unit, from the least-squares line" in words.err
    assert "trained on SPAQ and KonIQ" in words.err
    assert "no substitute" in words.err


def test_a_dataset_can_be_named_and_is_otherwise_not_guessed(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    labels = dataset.rename(dataset.with_name("labels.csv"))

    assert record(capfd, str(labels))["published"] is None
    assert record(capfd, str(labels), "--dataset", "live-c")["published"]["q-sit"] == {"srcc": 0.896, "plcc": 0.897}


def test_what_is_left_out_is_counted_and_told(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with dataset.open("a") as file:
        file.write(f"{dataset.name},3\nnone.jpg,3\n0.jpg,1\n1.jpg,9\n7.jpg,\n6.jpg,great\n,4\n")

    assert run(["evaluate", str(dataset), "--format", "json"]) == 0

    words = capfd.readouterr()
    found = json.loads(words.out)
    assert found["n"] == 7
    assert found["left_out"] == {
        "no_path": 1, "no_label": 1, "not_a_number": 1, "missing": 1, "not_scored": 1, "ambiguous": 0, "repeated": 1,
        "contradictory": 2,
    }  # fmt: skip
    assert "2 rows left out, the photo has labels that differ: 1.jpg, 1.jpg" in words.err
    assert "1 row left out, no file is there, and no scored photo has the name: none.jpg" in words.err
    assert "1 row left out, the photo has no such score: koniq_labels.csv" in words.err


def test_a_scale_that_is_upside_down_is_suspected_not_guessed(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [f"{place}.jpg,{5 - opinion}" for place, opinion in enumerate(OPINIONS)]
    dataset.write_text("\n".join(["file,dmos", *rows]))

    assert run(["evaluate", str(dataset), "--format", "json"]) == 0
    words = capfd.readouterr()
    negative = json.loads(words.out)
    assert negative["srcc"] < 0
    assert "say --lower-is-better" in words.err

    assert run(["evaluate", str(dataset), "--lower-is-better", "--format", "json"]) == 0
    words = capfd.readouterr()
    positive = json.loads(words.out)
    assert (positive["srcc"], positive["rmse"]) == (-negative["srcc"], negative["rmse"])
    assert "lower-is-better" not in words.err

    dataset.write_text("\n".join(["file,mos", *(f"{place}.jpg,{value}" for place, value in enumerate(OPINIONS))]))
    assert run(["evaluate", str(dataset), "--lower-is-better"]) == 0
    assert "leave --lower-is-better out" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("rows", "n", "words"),
    [
        ([], 0, "need two photos at least: there is none"),
        (["0.jpg,3"], 1, "need two photos at least: there is 1"),
        (["none.jpg,3", "nil.jpg,4"], 0, "need two photos at least: there is none"),
        (["0.jpg,3", "1.jpg,3.0", "2.jpg,3"], 3, "SRCC, PLCC, KRCC and RMSE cannot be computed: every label is 3"),
    ],
)
def test_nothing_that_can_be_computed_is_a_failure(
    dataset: Path, capfd: pytest.CaptureFixture[str], rows: list[str], n: int, words: str
) -> None:
    dataset.write_text("\n".join(["file,mos", *rows]))

    assert run(["evaluate", str(dataset)]) == 1
    printed = capfd.readouterr()
    assert words in printed.err
    assert printed.out.splitlines()[2].split() == ["here", str(n), "-", "-", "-", "-"]
    found = record(capfd, str(dataset), status=1)
    assert (found["n"], found["srcc"], found["plcc"], found["krcc"], found["rmse"]) == (n, None, None, None, None)


def test_scores_that_are_all_the_same_leave_an_error(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset.write_text("file,mos\n1.jpg,1\n2.jpg,3\n")

    assert run(["evaluate", str(dataset)]) == 0

    words = capfd.readouterr()
    assert words.out.splitlines()[2].split() == ["here", "2", "-", "-", "-", "1"]
    assert "SRCC, PLCC and KRCC cannot be computed: every score is 0.2" in words.err


def test_the_model_is_chosen_and_told(dataset: Path, database: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    uris = [uri_of(dataset.parent / f"{place}.jpg") for place in range(8)]
    job = scored(database, dict(zip(uris, SCORES[::-1], strict=True)), model="zhangzicheng/q-sit", revision="def2")
    scored(database, dict.fromkeys(uris, 0.5) | {uris[0]: 0.6}, revision="abc1", procedure=AS_STORED)

    def chosen(*options: str) -> tuple[str, str, str]:
        found = record(capfd, str(dataset), *options)
        return found["model"], found["revision"], found["procedure"]

    assert chosen() == chosen("--as-stored") == ("demo", "abc1", AS_STORED)
    assert chosen("--model", "zhangzicheng/q-sit")[:2] == ("zhangzicheng/q-sit", "def2")
    assert chosen("--revision", "def")[:2] == ("zhangzicheng/q-sit", "def2")
    assert chosen("--job", str(job))[:2] == ("zhangzicheng/q-sit", "def2")
    assert chosen("--job", "1") == ("demo", "abc1", "rating-1/upright-1")

    run(["evaluate", str(dataset)])
    words = capfd.readouterr()
    assert words.out.startswith("model demo at revision abc1 (pixels as stored)\n")
    assert "there are scores, too, of zhangzicheng/q-sit at revision def2 (upright pixels), demo at revis" in words.err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "name a file of labels, or --llvisionqa"),
        (["LABELS", "--llvisionqa", "q.json"], 2, "name a file of labels, or --llvisionqa"),
        (["LABELS", "--limit", "3"], 2, "--limit is for --llvisionqa"),
        (["LABELS", "--device", "cpu"], 2, "--device is for --llvisionqa"),
        (["--llvisionqa", "q.json", "--score"], 2, "--score is for LABELS"),
        (["--llvisionqa", "q.json", "--job", "1"], 2, "--job is for LABELS"),
        (["--llvisionqa", "q.json", "--path-column", "x"], 2, "--path-column is for LABELS"),
        (["LABELS", "--score", "--job", "1"], 2, "--score makes a job of its own"),
        (["LABELS", "--dataset", "other"], 2, "'other' is not one of"),
        (["LABELS", "--path-column", "photo"], 2, "--path-column photo: the labels have image_name, MOS"),
        (["LABELS", "--model", "other/model"], 1, "no photo has such a score: --score scores the labelled"),
        (["LABELS", "--revision", "zzz"], 1, "photos first; there are scores of demo at revision abc1"),
        (["LABELS", "--as-stored"], 1, "there are scores of demo at revision abc1 (upright pixels)"),
        (["LABELS", "--job", "99"], 1, "there is no job 99"),
        (["/no/labels.csv"], 1, "cannot read the labels /no/labels.csv: No such file"),
        (["LABELS", "--score", "--model", "/no/model"], 1, "there is no model folder /no/model"),
    ],
)
def test_a_mistake_ends_in_one_line(
    dataset: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str
) -> None:
    arguments = [str(dataset) if argument == "LABELS" else argument for argument in arguments]

    assert run(["evaluate", *arguments]) == status

    printed = capfd.readouterr()
    assert words in printed.err
    assert printed.out == ""


def test_no_database_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.csv").write_text("file,mos\na.jpg,3\n")

    assert run(["evaluate", str(tmp_path / "labels.csv")]) == 1

    assert "there is no database" in capfd.readouterr().err


def test_score_scores_what_is_missing_first(tmp_path: Path) -> None:
    """By the real programs: photos of two folders, one that is broken, and one that is not there."""
    url = f"sqlite:///{tmp_path}/qsit.db"
    names = ["astronaut.jpg", "cat.jpg", "coffee.jpg", "rocket.jpg"]
    rows = [*(f"{name},{place}" for place, name in enumerate(names)), f"{tmp_path}/broken.jpg,3", "none.jpg,3"]
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["image,mos", *rows, f"{EXAMPLES}/cat.jpg,1"]))
    arguments = ["evaluate", str(labels), "--images", str(EXAMPLES), "--model", "demo", "--format", "json"]

    assert "no database" in programs.run(*arguments, database_url=url, check=1).stderr
    first = programs.run(*arguments, "--score", database_url=url)
    found = json.loads(first.stdout)
    assert (found["n"], found["model"]) == (4, "demo")
    assert {reason: n for reason, n in found["left_out"].items() if n} == {
        "missing": 1, "not_scored": 1, "repeated": 1,
    }  # fmt: skip
    assert "5 photos: 4 scored, 1 failed" in first.stderr

    results = programs.run("results", "--format", "jsonl", database_url=url).stdout.splitlines()
    scores = {Path(row["uri"]).name: row["score"] for row in map(json.loads, results)}
    expected = stats.spearmanr([scores[name] for name in names], range(4)).statistic
    assert found["srcc"] == pytest.approx(expected, abs=1e-12)

    again = programs.run(*arguments, "--score", database_url=url)
    assert json.loads(again.stdout) == found
    assert "4 skipped (have their score), 1 skipped (failed before, unchanged)" in again.stderr
    assert json.loads(programs.run(*arguments, database_url=url).stdout) == found


def test_photos_in_s3_are_scored_and_evaluated(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/qsit.db"
    programs.make_photos(tmp_path / "s3" / "photos" / "koniq", 4)
    labels = tmp_path / "labels.csv"
    rows = [*(f"{place:05d}.png,{place}" for place in range(3)), "s3://photos/koniq/00003.png,3", "gone.png,3"]
    labels.write_text("\n".join(["image,mos", *rows]))
    with rclone(tmp_path / "s3", tmp_path / "log") as server:
        variables = {**KEYS, **NO_OTHERS, "QSIT_S3_ENDPOINT_URL": server}
        arguments = ["evaluate", str(labels), "--images", "s3://photos/koniq", "--score", "--model", "demo"]

        done = programs.run(*arguments, "--format", "json", database_url=url, **variables)

    found = json.loads(done.stdout)
    assert found["n"] == 4
    assert {reason: n for reason, n in found["left_out"].items() if n} == {"not_scored": 1}
    assert "5 photos: 4 scored, 1 failed" in done.stderr


def test_score_with_no_photo_there_scores_none(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(dataset), "--score", "--model", "demo"]) == 1

    assert "none of the labelled photos is there, so none is scored" in capfd.readouterr().err
