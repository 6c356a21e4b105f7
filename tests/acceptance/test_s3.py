"""A library in S3, from the command line to the rows in SQL, against a real server."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.programs import QSIT, family, make_photos, run, started, until
from tests.support.s3_servers import KEYS, NO_OTHERS, Moto, client, objects_read, rclone, really, refused

PHOTOS = int(os.environ.get("TEST_S3_PHOTOS", "1100"))
"""In the large listing: more than a page of a thousand."""


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger/qsit.db"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder whose folders are buckets."""
    return tmp_path / "s3"


@pytest.fixture
def moto() -> Iterator[Moto]:
    server = Moto()
    yield server
    server.reset()
    server.close()


def red_photo() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 24), "red").save(file, "PNG")
    return file.getvalue()


def rows(database_url: str, *options: str) -> list[dict[str, object]]:
    lines = run("results", "--format", "jsonl", *options, database_url=database_url).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_a_large_prefix_is_scored_once_and_only_changed_objects_again(
    sqlite_url: str, root: Path, tmp_path: Path
) -> None:
    make_photos(root / "photos" / "library", PHOTOS)
    log = tmp_path / "rclone.log"
    with rclone(root, log) as url:
        variables = {**KEYS, **NO_OTHERS, "QSIT_S3_ENDPOINT_URL": url}
        command = ("score", "s3://photos/library", "--model", "demo")
        first = run(*command, database_url=sqlite_url, **variables)
        assert f"{PHOTOS:,} photos: {PHOTOS:,} scored" in first.stderr
        assert objects_read(log) == PHOTOS
        assert len(rows(sqlite_url)) == PHOTOS

        second = run(*command, database_url=sqlite_url, **variables)
        assert f"0 scored, {PHOTOS:,} skipped" in second.stderr
        assert objects_read(log) == PHOTOS

        client(url).put_object(Bucket="photos", Key="library/00042.png", Body=red_photo())
        third = run(*command, database_url=sqlite_url, **variables)
        assert f"1 scored, {PHOTOS - 1:,} skipped" in third.stderr
        assert objects_read(log) == PHOTOS + 1

    uri = "s3://photos/library/00042.png"
    assert len(rows(sqlite_url)) == PHOTOS
    assert len(rows(sqlite_url, "--under", "s3://photos/library")) == PHOTOS
    assert rows(sqlite_url, "--under", "s3://photos/lib") == []
    assert len(rows(sqlite_url, "--under", "s3://photos/lib*")) == PHOTOS
    [current] = rows(sqlite_url, "--under", uri)
    both = rows(sqlite_url, "--under", uri, "--all-versions", "--sort", "-scored_at")
    assert [row["job"] for row in both] == [3, 1]
    assert current == both[0]
    assert both[0]["version"] != both[1]["version"]
    assert family(sqlite_url) == []


def test_keys_without_a_version_are_scored_once_per_version(sqlite_url: str, root: Path, tmp_path: Path) -> None:
    bucket = make_photos(root / "photos", 5)
    keys = tmp_path / "keys.csv"
    names = [*sorted(path.name for path in bucket.iterdir()), "gone.png"]
    keys.write_text("uri\n" + "".join(f"s3://photos/{name}\n" for name in names))
    with rclone(root, tmp_path / "rclone.log") as url:
        variables = {**KEYS, **NO_OTHERS, "QSIT_S3_ENDPOINT_URL": url}
        of_list = ("score", "--files-from", str(keys), "--column", "uri", "--model", "demo", "--max-failed", "1")

        first = run(*of_list, database_url=sqlite_url, **variables)
        assert "6 photos: 5 scored, 1 failed" in first.stderr
        again = run(*of_list, database_url=sqlite_url, **variables)
        assert "6 photos: 5 scored, 1 failed" in again.stderr, "their versions are not known before they are opened"
        assert {row["job"] for row in rows(sqlite_url)} == {1}, "and then nothing is scored again"

        listed = run("score", "s3://photos", "--model", "demo", database_url=sqlite_url, **variables)
        assert "5 photos: 0 scored, 5 skipped" in listed.stderr

        client(url).put_object(Bucket="photos", Key="00001.png", Body=red_photo())
        run(*of_list, database_url=sqlite_url, **variables)

    assert {row["job"] for row in rows(sqlite_url, "--under", "s3://photos/00001.png")} == {4}
    assert len(rows(sqlite_url)) == 5
    assert len(rows(sqlite_url, "--all-versions")) == 6
    [failure] = run("failures", "1", "--format", "jsonl", database_url=sqlite_url).stdout.splitlines()
    assert json.loads(failure).items() >= {"uri": "s3://photos/gone.png", "reason": "missing"}.items()


def test_credentials_that_expire_in_mid_job_fail_no_photo(
    database_url: str, broker_url: str, moto: Moto, tmp_path: Path
) -> None:
    moto.client.create_bucket(Bucket="photos")
    for path in make_photos(tmp_path / "photos", 60).iterdir():
        moto.client.put_object(Bucket="photos", Key=path.name, Body=path.read_bytes())
    log = tmp_path / "log"
    variables = {
        **KEYS,
        **NO_OTHERS,
        "QSIT_S3_ENDPOINT_URL": moto.url,
        "QSIT_BROKER_URL": broker_url,
        "QSIT_MODEL": "demo",
        "QSIT_BATCH_TOKENS": "100",
    }
    run("db", "upgrade", database_url=database_url)

    def status() -> dict[str, Any]:
        said: dict[str, Any] = json.loads(run("status", "--format", "json", database_url=database_url).stdout)
        return said

    with started(QSIT, "worker", "--root", "s3://photos", database_url=database_url, log=log, **variables) as worker:
        until(lambda: "loaded on cpu" in log.read_text())
        moto.spoil = [really] * 20  # of listing and reading
        moto.always = refused(400, "ExpiredToken", "The provided token has expired.")
        run("submit", "s3://photos", database_url=database_url, **variables)
        until(lambda: "have expired; renew them" in str(status()["workers"]))
        until(lambda: status()["running"] == 0)
        stopped = status()
        assert 0 < stopped["scored"] < 60
        assert stopped["failed"] == 0

        moto.always = None
        waited = run("wait", database_url=database_url)
        assert "60 photos: 60 scored" in waited.stderr
        assert "renew them" not in str(status()["workers"])
        worker.terminate()
        assert worker.wait(60) == 0

    assert "Traceback" not in log.read_text()


def test_an_s3_source_that_cannot_be_listed_is_refused_in_one_line_and_makes_no_job(
    sqlite_url: str, moto: Moto, tmp_path: Path
) -> None:
    moto.client.create_bucket(Bucket="photos")
    moto.client.put_object(Bucket="photos", Key="notes.txt", Body=b"no photo")
    variables = {**KEYS, **NO_OTHERS, "QSIT_S3_ENDPOINT_URL": moto.url}

    for source, words in (
        ("s3://no-such-bucket/x", "has no s3://no-such-bucket"),
        ("s3://photos/nothing", "no photos found in s3://photos/nothing"),
        ("s3://photos", "passed over 1 .txt"),
        ("s3://", "names no bucket"),
    ):
        done = run("score", source, "--model", "demo", database_url=sqlite_url, check=1, **variables)
        assert words in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    no_keys = variables | {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    done = run("score", "s3://photos", "--model", "demo", database_url=sqlite_url, check=1, **no_keys)
    assert "no credentials" in done.stderr
    assert "there is no job yet" in run("status", database_url=sqlite_url, check=1).stderr


def test_a_worker_reads_only_buckets_that_are_its_roots(
    sqlite_url: str, broker_url: str, moto: Moto, tmp_path: Path
) -> None:
    photo = next(make_photos(tmp_path / "photos", 1).iterdir()).read_bytes()
    for bucket in ("photos", "private"):
        moto.client.create_bucket(Bucket=bucket)
        moto.client.put_object(Bucket=bucket, Key="night/a.png", Body=photo)
    log = tmp_path / "log"
    variables = {
        **KEYS,
        **NO_OTHERS,
        "QSIT_S3_ENDPOINT_URL": moto.url,
        "QSIT_BROKER_URL": broker_url,
        "QSIT_MODEL": "demo",
        "QSIT_ROOTS": "s3://photos/night",
    }
    run("db", "upgrade", database_url=sqlite_url)
    with started(QSIT, "worker", database_url=sqlite_url, log=log, **variables):
        until(lambda: "loaded on cpu" in log.read_text())
        run("submit", "s3://private", "s3://photos", database_url=sqlite_url, **variables)
        until(lambda: "under none of this worker's roots" in run("status", database_url=sqlite_url).stdout)
        until(lambda: len(rows(sqlite_url)) == 1)

    assert [row["uri"] for row in rows(sqlite_url)] == ["s3://photos/night/a.png"]
    assert not any(method == "GET" and path.startswith("/private/night") for method, path in moto.asked)
