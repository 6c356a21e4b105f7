"""`qsit evaluate` against labels: what it prints, skips and refuses."""

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
from tests.support import programs
from tests.support.paths import EXAMPLES
from tests.support.s3_servers import KEYS, NO_OTHERS, rclone
from tests.support.scored import record_scores

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
    """Eight scored photos, with ties, and a file of labels."""
    record_scores(
        database, {uri_of(tmp_path / f"{index}.jpg"): score for index, score in enumerate(SCORES)}, revision="abc1"
    )
    rows = [f"{index}.jpg,{opinion}" for index, opinion in enumerate(OPINIONS)]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["img_path,gt_score", *rows]) + "\n")
    return labels


def record(capfd: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    assert run(["evaluate", *arguments, "--format", "json"]) == status
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    return found


def test_the_figures_are_those_of_scipy(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
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
    assert found["published"] is None


def test_people_read_a_table_with_published_figures(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(dataset), "--dataset", "koniq"]) == 0

    words = capfd.readouterr()
    title, head, here, mini, full = words.out.splitlines()
    assert title == "model demo at revision abc1 (upright pixels)"
    assert head.split() == ["n", "SRCC", "PLCC", "KRCC", "RMSE"]
    assert here.split()[:3] == ["here", "8", f"{stats.spearmanr(SCORES, OPINIONS).statistic:.4f}"]
    assert mini.split() == ["q-sit-mini,", "published", "0.914", "0.882"]
    assert full.split() == ["q-sit,", "published", "0.924", "0.925"]
    assert "published for KonIQ" in words.err
    assert "no substitute" in words.err


def test_published_figures_are_those_of_the_named_dataset(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    koniq = dataset.rename(dataset.with_name("koniq.csv"))

    assert record(capfd, str(koniq))["published"] is None
    assert record(capfd, str(koniq), "--dataset", "live-c")["published"] == {
        "dataset": "LIVE-C",
        "q-sit-mini": {"srcc": 0.859, "plcc": 0.870},
        "q-sit": {"srcc": 0.896, "plcc": 0.897},
    }


def test_columns_with_other_names_need_options(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    expected = record(capfd, str(dataset))
    dataset.write_text(dataset.read_text().replace("img_path,gt_score", "image_name,MOS"))

    assert run(["evaluate", str(dataset)]) == 2
    assert "--path-column" in capfd.readouterr().err
    assert record(capfd, str(dataset), "--path-column", "image_name", "--score-column", "MOS") == expected


def test_skipped_rows_are_counted_and_reported(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with dataset.open("a") as file:
        file.write(f"{dataset.name},3\nnone.jpg,3\n0.jpg,1\n1.jpg,9\n7.jpg,\n6.jpg,great\n,4\n")

    assert run(["evaluate", str(dataset), "--format", "json"]) == 0

    words = capfd.readouterr()
    found = json.loads(words.out)
    assert found["n"] == 7
    assert found["left_out"] == {
        "no_path": 1,
        "no_label": 1,
        "not_a_number": 1,
        "missing": 1,
        "not_scored": 1,
        "repeated": 1,
        "contradictory": 2,
    }
    assert "2 rows skipped (the photo has different labels): 1.jpg, 1.jpg" in words.err
    assert "1 row skipped (photo not found): none.jpg" in words.err
    assert "1 row skipped (the photo has no such score): labels.csv" in words.err


def test_an_inverted_scale_is_suspected_but_not_guessed(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [f"{index}.jpg,{5 - opinion}" for index, opinion in enumerate(OPINIONS)]
    dataset.write_text("\n".join(["img_path,gt_score", *rows]))

    assert run(["evaluate", str(dataset), "--format", "json"]) == 0
    words = capfd.readouterr()
    negative = json.loads(words.out)
    assert negative["srcc"] < 0
    assert "add --lower-is-better" in words.err

    assert run(["evaluate", str(dataset), "--lower-is-better", "--format", "json"]) == 0
    words = capfd.readouterr()
    positive = json.loads(words.out)
    assert (positive["srcc"], positive["rmse"]) == (-negative["srcc"], negative["rmse"])
    assert "lower-is-better" not in words.err

    dataset.write_text(
        "\n".join(["img_path,gt_score", *(f"{index}.jpg,{value}" for index, value in enumerate(OPINIONS))])
    )
    assert run(["evaluate", str(dataset), "--lower-is-better"]) == 0
    assert "omit --lower-is-better" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("rows", "n", "words"),
    [
        ([], 0, "need at least two photos, found 0"),
        (["0.jpg,3"], 1, "need at least two photos, found 1"),
        (["none.jpg,3", "nil.jpg,4"], 0, "need at least two photos, found 0"),
        (["0.jpg,3", "1.jpg,3.0", "2.jpg,3"], 3, "SRCC, PLCC, KRCC and RMSE cannot be computed: every label is 3"),
    ],
)
def test_no_figures_at_all_is_a_failure(
    dataset: Path, capfd: pytest.CaptureFixture[str], rows: list[str], n: int, words: str
) -> None:
    dataset.write_text("\n".join(["img_path,gt_score", *rows]))

    assert run(["evaluate", str(dataset)]) == 1
    printed = capfd.readouterr()
    assert words in printed.err
    assert printed.out.splitlines()[2].split() == ["here", str(n), "-", "-", "-", "-"]
    found = record(capfd, str(dataset), status=1)
    assert (found["n"], found["srcc"], found["plcc"], found["krcc"], found["rmse"]) == (n, None, None, None, None)


def test_equal_scores_have_only_an_rmse(dataset: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset.write_text("img_path,gt_score\n1.jpg,1\n2.jpg,3\n")

    assert run(["evaluate", str(dataset)]) == 0

    words = capfd.readouterr()
    assert words.out.splitlines()[2].split() == ["here", "2", "-", "-", "-", "1"]
    assert "SRCC, PLCC and KRCC cannot be computed: every score is 0.2" in words.err


def test_options_choose_the_model(dataset: Path, database: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    uris = [uri_of(dataset.parent / f"{index}.jpg") for index in range(8)]
    job = record_scores(
        database, dict(zip(uris, SCORES[::-1], strict=True)), model="zhangzicheng/q-sit", revision="def2"
    )
    record_scores(database, dict.fromkeys(uris, 0.5) | {uris[0]: 0.6}, revision="abc1", procedure=AS_STORED)

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
    assert "other scores: zhangzicheng/q-sit at revision def2 (upright pixels), demo at revis" in words.err


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "either a file of labels or --llvisionqa"),
        (["LABELS", "--llvisionqa", "q.json"], 2, "either a file of labels or --llvisionqa"),
        (["LABELS", "--limit", "3"], 2, "--limit needs --llvisionqa"),
        (["LABELS", "--device", "cpu"], 2, "--device needs --llvisionqa"),
        (["--llvisionqa", "q.json", "--job", "1"], 2, "--job needs LABELS"),
        (["--llvisionqa", "q.json", "--path-column", "x"], 2, "--path-column needs LABELS"),
        (["LABELS", "--dataset", "other"], 2, "'other' is not one of"),
        (["LABELS", "--path-column", "photo"], 2, "--path-column to one of: img_path, gt_score"),
        (["LABELS", "--model", "other/model"], 1, "no photo has such a score; run qsit score first"),
        (["LABELS", "--revision", "zzz"], 1, "the database has scores of demo at revision abc1"),
        (["LABELS", "--as-stored"], 1, "scores of demo at revision abc1 (upright pixels)"),
        (["LABELS", "--job", "99"], 1, "there is no job 99"),
        (["/no/labels.csv"], 1, "cannot read the labels /no/labels.csv: No such file"),
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


def test_a_missing_database_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.csv").write_text("img_path,gt_score\na.jpg,3\n")

    assert run(["evaluate", str(tmp_path / "labels.csv")]) == 1

    assert "there is no database" in capfd.readouterr().err


def test_photos_that_qsit_score_has_scored_are_evaluated(tmp_path: Path) -> None:
    """With the real programs: two folders, one broken photo, and one label without a photo."""
    url = f"sqlite:///{tmp_path}/qsit.db"
    names = ["astronaut.jpg", "cat.jpg", "coffee.jpg", "rocket.jpg"]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    rows = [*(f"{name},{index}" for index, name in enumerate(names)), f"{broken},3", "none.jpg,3"]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["img_path,gt_score", *rows, f"{EXAMPLES}/cat.jpg,1"]))
    arguments = ["evaluate", str(labels), "--images", str(EXAMPLES), "--model", "demo", "--format", "json"]

    assert "no database" in programs.run(*arguments, database_url=url, check=1).stderr
    photos = [str(EXAMPLES / name) for name in names]
    programs.run("score", *photos, str(broken), "--model", "demo", database_url=url, check=3)
    found = json.loads(programs.run(*arguments, database_url=url).stdout)

    assert (found["n"], found["model"]) == (4, "demo")
    assert {reason: n for reason, n in found["left_out"].items() if n} == {"missing": 1, "not_scored": 1, "repeated": 1}
    results = programs.run("results", "--format", "jsonl", database_url=url).stdout.splitlines()
    scores = {Path(row["uri"]).name: row["score"] for row in map(json.loads, results)}
    expected = stats.spearmanr([scores[name] for name in names], range(4)).statistic
    assert found["srcc"] == pytest.approx(expected, abs=1e-12)


def test_photos_in_s3_are_evaluated(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/qsit.db"
    programs.make_photos(tmp_path / "s3" / "photos" / "koniq", 4)
    labels = tmp_path / "labels.csv"
    rows = [*(f"{index:05d}.png,{index}" for index in range(3)), "s3://photos/koniq/00003.png,3", "gone.png,3"]
    labels.write_text("\n".join(["img_path,gt_score", *rows]))
    with rclone(tmp_path / "s3", tmp_path / "log") as server:
        variables = {**KEYS, **NO_OTHERS, "QSIT_S3_ENDPOINT_URL": server}
        programs.run("score", "s3://photos/koniq", "--model", "demo", database_url=url, **variables)

    arguments = ["evaluate", str(labels), "--images", "s3://photos/koniq", "--format", "json"]
    found = json.loads(programs.run(*arguments, database_url=url).stdout)

    assert found["n"] == 4
    assert {reason: n for reason, n in found["left_out"].items() if n} == {"not_scored": 1}
