"""The real programs, from the command line to the rows in SQL."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image
from sqlalchemy import func, select

from models import db
from models.tables import ItemRow, ScoreRow
from tests.support.gate import held
from tests.support.paths import EXAMPLES
from tests.support.programs import BIN, QSIT, environment, family, kill, make_photos, named, run, started, until
from tests.support.records import HOSTILE

EXAMPLE_COUNT = 10


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger/qsit.db"


def scores_in(database_url: str) -> int:
    if database_url.startswith("sqlite") and not Path(database_url.removeprefix("sqlite:///")).exists():
        return 0
    engine = db.connect(database_url)
    try:
        with db.reading(engine) as connection:
            return connection.execute(select(func.count()).select_from(ScoreRow)).scalar_one()
    except Exception as error:
        if "no such table" in str(error):
            return 0
        raise
    finally:
        engine.dispose()


def attempts_in(database_url: str) -> list[tuple[str, int]]:
    """Return how many items are in each state."""
    engine = db.connect(database_url)
    with db.reading(engine) as connection:
        rows = connection.execute(
            select(ItemRow.state, func.count()).group_by(ItemRow.state).order_by(ItemRow.state)
        ).all()
    engine.dispose()
    return [(state, count) for state, count in rows]


def test_a_folder_is_scored_once_and_rescored_on_request(sqlite_url: str) -> None:
    first = run("score", str(EXAMPLES), "--model", "demo", database_url=sqlite_url)
    assert f"{EXAMPLE_COUNT} scored" in first.stderr
    assert "no substitute" in first.stderr
    assert first.stdout == ""

    second = run("score", str(EXAMPLES), "--model", "demo", database_url=sqlite_url)
    assert f"0 scored, {EXAMPLE_COUNT} skipped" in second.stderr
    assert "nothing to do" in second.stderr

    third = run("score", str(EXAMPLES), "--model", "demo", "--rescore", database_url=sqlite_url)
    assert f"{EXAMPLE_COUNT} scored" in third.stderr

    lines = run("results", "--format", "jsonl", database_url=sqlite_url).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == EXAMPLE_COUNT
    assert {row["job"] for row in rows} == {3}
    for row in rows:
        assert row.keys() >= {"uri", "score", "probabilities", "model", "revision", "scored_at", "job"}
        assert list(row["probabilities"]) == ["Excellent", "Good", "Fair", "Poor", "Bad"]
        assert 0 <= row["score"] <= 1
        assert row["scored_at"].endswith("Z")
    assert family(sqlite_url) == []


def test_the_demo_model_scores_the_degraded_examples_lowest(sqlite_url: str) -> None:
    run("score", str(EXAMPLES), "--model", "demo", database_url=sqlite_url)

    lines = run("results", "--format", "jsonl", database_url=sqlite_url).stdout.splitlines()
    rows = [json.loads(line) for line in lines]

    degraded = {"astronaut_blurred", "cat_compressed", "coffee_noisy", "rocket_underexposed"}
    assert {Path(row["uri"]).stem for row in rows[: len(degraded)]} == degraded
    assert rows[len(degraded) - 1]["score"] < 0.4 < 0.5 < rows[len(degraded)]["score"]


def test_the_pixels_are_upright_unless_taken_as_stored(sqlite_url: str, tmp_path: Path) -> None:
    turned = EXAMPLES / "portraits" / "astronaut_turned.jpg"
    upright = tmp_path / "upright.png"
    with Image.open(turned) as stored:
        stored.transpose(Image.Transpose.ROTATE_270).save(upright)

    run("score", str(turned), str(upright), "--model", "demo", database_url=sqlite_url)
    shown = run("results", "--format", "jsonl", database_url=sqlite_url).stdout.splitlines()
    scores = [json.loads(line)["score"] for line in shown]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)

    run("score", str(turned), "--model", "demo", "--as-stored", database_url=sqlite_url)
    lines = run("results", "--format", "jsonl", database_url=sqlite_url).stdout.splitlines()
    other = next(row["score"] for row in map(json.loads, lines) if row["procedure"].endswith("as-stored-1"))
    assert abs(other - scores[0]) > 1e-3


def test_two_at_once_on_one_database_both_finish(sqlite_url: str, tmp_path: Path) -> None:
    command = (QSIT, "score", str(EXAMPLES), "--model", "demo")
    with (
        started(*command, database_url=sqlite_url, log=tmp_path / "a.log") as one,
        started(*command, database_url=sqlite_url, log=tmp_path / "b.log") as other,
    ):
        statuses = one.wait(180), other.wait(180)

    logs = (tmp_path / "a.log").read_text() + (tmp_path / "b.log").read_text()
    assert statuses == (0, 0), logs
    assert scores_in(sqlite_url) == EXAMPLE_COUNT
    assert attempts_in(sqlite_url) == [("scored", EXAMPLE_COUNT)], logs
    assert family(sqlite_url) == []


def test_after_sigkill_of_everything_the_same_command_continues(sqlite_url: str, tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 200)
    command = (QSIT, "score", str(folder), "--model", "demo")
    log = tmp_path / "log"
    run("db", "upgrade", database_url=sqlite_url)
    with (
        held(sqlite_url, "scores", image_id=200),
        started(*command, database_url=sqlite_url, log=log, QSIT_BATCH_TOKENS="100") as process,
    ):
        until(lambda: scores_in(sqlite_url) > 5)
        kill(family(sqlite_url))
        process.wait(30)
    before = scores_in(sqlite_url)
    assert 5 < before < 200
    until(lambda: family(sqlite_url) == [])

    done = run(*command[1:], database_url=sqlite_url)

    assert "200 photos: 200 scored" in done.stderr
    assert f"{200 - before} photos scored now" in done.stderr
    assert scores_in(sqlite_url) == 200
    assert attempts_in(sqlite_url) == [("scored", 200)]
    assert family(sqlite_url) == []


def test_a_killed_qsit_score_takes_its_worker_and_broker_along(sqlite_url: str, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux kills a process when its parent dies")
    folder = make_photos(tmp_path / "photos", 200)
    command = (QSIT, "score", str(folder), "--model", "demo")
    with started(*command, database_url=sqlite_url, log=tmp_path / "log") as process:
        until(lambda: scores_in(sqlite_url) > 0)
        process.kill()
        until(lambda: family(sqlite_url) == [], timeout_s=20)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_an_interrupted_run_ends_its_processes_and_says_how_to_continue(
    sqlite_url: str, tmp_path: Path, name: str, status: int
) -> None:
    folder = make_photos(tmp_path / "photos", 200)
    log = tmp_path / "log"
    command = (QSIT, "score", str(folder), "--model", "demo")
    run("db", "upgrade", database_url=sqlite_url)
    with (
        held(sqlite_url, "scores", image_id=200),
        started(*command, database_url=sqlite_url, log=log, QSIT_BATCH_TOKENS="100") as process,
    ):
        until(lambda: scores_in(sqlite_url) > 0)
        process.send_signal(getattr(signal, name))
        assert process.wait(60) == status

    words = log.read_text()
    assert "run the same command again to continue" in words
    assert "Traceback" not in words
    assert family(sqlite_url) == []
    assert 0 < scores_in(sqlite_url) < 200


@pytest.mark.parametrize("victim", ["-m worker", "valkey-server"])
def test_a_worker_or_broker_that_is_killed_is_started_again(sqlite_url: str, tmp_path: Path, victim: str) -> None:
    folder = make_photos(tmp_path / "photos", 200)
    log = tmp_path / "log"
    command = (QSIT, "score", str(folder), "--model", "demo")
    run("db", "upgrade", database_url=sqlite_url)
    with started(*command, database_url=sqlite_url, log=log, QSIT_BATCH_TOKENS="100") as process:
        with held(sqlite_url, "scores", image_id=200):
            until(lambda: scores_in(sqlite_url) > 0)
            kill(named(sqlite_url, victim))
        assert process.wait(180) == 0

    words = log.read_text()
    assert words.count("was killed by signal 9; it is started again, nothing is lost") == 1
    assert "200 photos: 200 scored" in words
    assert "Traceback" not in words
    assert attempts_in(sqlite_url) == [("scored", 200)]
    assert family(sqlite_url) == []


@pytest.mark.parametrize("victim", ["-m worker", "valkey-server"])
def test_repeated_deaths_without_progress_end_the_run_in_one_line(sqlite_url: str, tmp_path: Path, victim: str) -> None:
    log = tmp_path / "log"
    command = (QSIT, "score", str(EXAMPLES), "--model", "demo")
    run("db", "upgrade", database_url=sqlite_url)
    with held(sqlite_url, "scores"), started(*command, database_url=sqlite_url, log=log) as process:
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                kill(one for one in named(sqlite_url, victim) if time.time() - one.create_time() > 2)  # it has begun
        assert process.wait() == 1

    lines = log.read_text().splitlines()
    assert sum("it is started again" in line for line in lines) == 2
    assert "was killed by signal 9" in lines[-1]
    assert "run the same command again" in lines[-1]
    assert family(sqlite_url) == []


def test_a_fleet_on_a_redis_by_url_scores_every_photo_once(database_url: str, broker_url: str, tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 120)
    variables = {"QSIT_BROKER_URL": broker_url, "QSIT_MODEL": "demo", "QSIT_ROOTS": str(folder), "QSIT_DEVICE": "cpu"}
    run("db", "upgrade", database_url=database_url)
    elsewhere = tmp_path / "elsewhere"
    for package in ("worker", "PIL", "models"):
        (elsewhere / package).mkdir(parents=True)
        (elsewhere / package / "__init__.py").write_text(f"raise SystemExit('the wrong {package}')")

    with (
        started(QSIT, "worker", database_url=database_url, log=tmp_path / "1.log", cwd=elsewhere, **variables) as one,
        started(
            *(str(BIN / "celery"), "-A", "worker.app", "worker", "-l", "INFO"),
            database_url=database_url,
            log=tmp_path / "2.log",
            cwd=tmp_path,
            **variables,
        ) as two,
    ):
        until(lambda: all("loaded on cpu" in (tmp_path / log).read_text() for log in ("1.log", "2.log")))
        submitted = run("submit", str(folder), "--name", "night", database_url=database_url, **variables)
        job = submitted.stdout.strip()
        assert job == "1"
        waited = run("wait", job, database_url=database_url, **variables)
        assert "120 scored" in waited.stderr
        again = run("submit", str(folder), "--name", "night", database_url=database_url, **variables)
        assert again.stdout.strip() == job
        status = json.loads(run("status", "night", "--format", "json", database_url=database_url).stdout)
        assert (status["state"], status["scored"], len(status["workers"])) == ("finished", 120, 2)
        run("submit", str(EXAMPLES), database_url=database_url, **variables)
        until(lambda: "under none of this worker's roots" in run("status", database_url=database_url).stdout)
        one.terminate()
        two.terminate()
        assert (one.wait(60), two.wait(60)) == (0, 0)

    words = [(tmp_path / log).read_text() for log in ("1.log", "2.log")]
    assert all("Traceback" not in text for text in words), words
    assert all("score_chunk" in text for text in words), "both workers took part"
    assert attempts_in(database_url) == [("queued", EXAMPLE_COUNT), ("scored", 120)], "photos outside the roots wait"
    assert scores_in(database_url) == 120
    assert family(database_url) == []


def test_sigterm_to_every_process_of_a_worker_releases_its_chunks(
    sqlite_url: str, broker_url: str, tmp_path: Path
) -> None:
    folder = make_photos(tmp_path / "photos", 200)
    variables = {"QSIT_BROKER_URL": broker_url, "QSIT_MODEL": "demo", "QSIT_BATCH_TOKENS": "100"}
    run("db", "upgrade", database_url=sqlite_url)

    log = tmp_path / "log"
    with started(QSIT, "worker", "--root", str(folder), database_url=sqlite_url, log=log, **variables) as worker:
        until(lambda: "loaded on cpu" in log.read_text())
        run("submit", str(folder), database_url=sqlite_url, **variables)
        until(lambda: scores_in(sqlite_url) > 3)
        for member in family(sqlite_url):
            member.terminate()
        assert worker.wait(60) == 0

    assert "Traceback" not in log.read_text()
    until(lambda: family(sqlite_url) == [])  # decoders end once they see that their worker has
    status = json.loads(run("status", "--format", "json", database_url=sqlite_url).stdout)
    assert (status["running"], status["queued"] + status["scored"]) == (0, 200)


def test_each_bad_photo_fails_with_its_reason_and_no_other_does(sqlite_url: str, tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 3)
    (folder / "text.jpg").write_text("no photo")
    (folder / "empty.jpg").touch()
    whole = (EXAMPLES / "coffee.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "folder.jpg").mkdir()
    (folder / "gone.jpg").symlink_to(folder / "nothing")
    os.mkfifo(folder / "pipe.jpg")
    Image.new("RGB", (1, 1), "red").save(folder / "one_pixel.png")
    Image.new("I;16", (40, 30), 40000).save(folder / "grey16.png")
    Image.new("CMYK", (40, 30)).save(folder / "cmyk.jpg")

    done = run("score", str(folder), "--model", "demo", database_url=sqlite_url, check=3)

    assert "11 photos: 6 scored, 5 failed" in done.stderr
    lines = run("failures", "--format", "jsonl", database_url=sqlite_url).stdout.splitlines()
    reasons = {Path(row["uri"]).name: row["reason"] for row in map(json.loads, lines)}
    assert reasons == {
        "text.jpg": "not_an_image",
        "empty.jpg": "empty",
        "truncated.jpg": "corrupt",
        "gone.jpg": "missing",
        "pipe.jpg": "not_an_image",
    }
    tolerated = run(
        "score", str(folder), "--model", "demo", "--rescore", "--max-failed", "50%", database_url=sqlite_url
    )
    assert "5 failed" in tolerated.stderr
    again = run("score", str(folder), "--model", "demo", database_url=sqlite_url, check=3)
    assert "1 failed" in again.stderr, "the missing one is tried again"
    assert "4 skipped (failed before, unchanged)" in again.stderr


def test_no_file_name_reaches_a_terminal_raw(sqlite_url: str, tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 1)
    (folder / "00000.png").rename(folder / HOSTILE)
    (folder / f"broken {HOSTILE}").write_text("no photo")
    sources = tmp_path / "list"
    sources.write_bytes(
        b"\0".join(os.fsencode(folder / name) for name in (HOSTILE, f"broken {HOSTILE}", f"no {HOSTILE}"))
    )

    done = run("score", "--files-from", str(sources), "-0", "--model", "demo", database_url=sqlite_url, check=3)
    table = run("results", database_url=sqlite_url).stdout
    failed = run("failures", database_url=sqlite_url).stdout
    status = run("status", database_url=sqlite_url).stdout

    for text in (done.stderr, table, failed, status):
        assert all(line.isprintable() for line in text.split("\n"))
    assert "owned" in done.stderr, "the summary shows the only scored photo"
    assert (table.count("\n"), failed.count("\n")) == (2, 2)
    assert run("results", "--format", "paths", database_url=sqlite_url).stdout == f"{folder / HOSTILE}\n"


def slow_to_decode(scans: int) -> bytes:
    """Return a progressive JPEG of 330 kB that repeats its last scan, which takes 15 ms or more to decode."""
    file = io.BytesIO()
    Image.new("L", (4000, 4000), 128).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + b"\xff\xd9"


def test_a_photo_that_takes_too_long_to_decode_fails_alone(sqlite_url: str, tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 5)
    (folder / "00002.jpg").write_bytes(slow_to_decode(scans=3000))

    done = run("score", str(folder), "--model", "demo", database_url=sqlite_url, check=3, QSIT_DECODE_S="2")

    assert "6 photos: 5 scored, 1 failed" in done.stderr
    [failure] = run("failures", "--format", "jsonl", database_url=sqlite_url).stdout.splitlines()
    assert json.loads(failure)["reason"] == "timeout"
    assert json.loads(failure)["uri"].endswith("/00002.jpg")
    again = run("score", str(folder), "--model", "demo", database_url=sqlite_url)
    assert "5 skipped (have their score), 1 skipped (failed before, unchanged)" in again.stderr
    assert family(sqlite_url) == []


def test_results_into_a_closed_pipe_are_silent(sqlite_url: str, tmp_path: Path) -> None:
    run("score", str(make_photos(tmp_path / "photos", 30)), "--model", "demo", database_url=sqlite_url)

    piped = subprocess.run(
        f"{QSIT} results --format paths | head -n 1",
        shell=True,
        env=environment(sqlite_url, {}),
        capture_output=True,
        text=True,
    )

    assert all("demo" in line for line in piped.stderr.splitlines())
    assert piped.stdout.count("\n") == 1


def test_a_broken_checkpoint_is_refused_in_one_line(sqlite_url: str, tmp_path: Path) -> None:
    import qsit.demo

    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for file in Path(qsit.demo.__file__ or "").parent.glob("*.json"):
        (checkpoint / file.name).write_bytes(file.read_bytes())
    (checkpoint / "model.safetensors").write_bytes(b"no weights")

    done = run("score", str(EXAMPLES), "--model", str(checkpoint), database_url=sqlite_url, check=1)

    assert "cannot be loaded" in done.stderr.splitlines()[-1]
    assert family(sqlite_url) == []


def test_a_worker_needs_a_database_a_redis_and_a_model(sqlite_url: str, tmp_path: Path) -> None:
    nowhere = f"redis+socket://{tmp_path}/nobody?virtual_host=0"

    no_database = run("worker", "--model", "demo", database_url=sqlite_url, check=1)
    assert "qsit db upgrade" in no_database.stderr
    run("db", "upgrade", database_url=sqlite_url)
    no_redis = run("worker", "--model", "demo", database_url=sqlite_url, check=1, QSIT_BROKER_URL=nowhere)
    assert "does not answer" in no_redis.stderr
    no_redis = run(
        "submit", str(EXAMPLES), "--model", "demo", database_url=sqlite_url, check=1, QSIT_BROKER_URL=nowhere
    )
    assert "does not answer" in no_redis.stderr
    assert "job" not in no_redis.stdout


def test_a_worker_whose_model_is_broken_ends_with_status_1(sqlite_url: str, broker_url: str, tmp_path: Path) -> None:
    import qsit.demo

    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for file in Path(qsit.demo.__file__ or "").parent.glob("*.json"):
        (checkpoint / file.name).write_bytes(file.read_bytes())
    (checkpoint / "model.safetensors").write_bytes(b"no weights")
    run("db", "upgrade", database_url=sqlite_url)

    done = run("worker", "--model", str(checkpoint), database_url=sqlite_url, check=1, QSIT_BROKER_URL=broker_url)

    assert "qsit worker: " in done.stderr
    assert "cannot be loaded" in done.stderr
    assert family(sqlite_url) == []
