"""Faults of a fleet, one by one: each photo is done once, whatever stops, returns or arrives twice."""

import re
import signal
import subprocess
import time

import psutil
import pytest
from celery import Celery
from PIL import Image
from sqlalchemy import func, select

from models import db
from models.tables import ChunkRow, ItemRow, JobRow, ScoreRow
from qsit.states import ChunkState, ItemState, JobState, Quarantine
from tests.support.chaos import settled, twice
from tests.support.fleet import NULL_WORKER
from tests.support.null_worker import ENDLESS, FREEZING, SLOW
from tests.support.paths import ROOT
from tests.support.programs import QSIT, family, make_photos, started, until
from tests.support.stage import Stage, send
from worker.dispatch import TASK


def children(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def none_lives(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def test_a_worker_that_slept_past_its_lease_writes_nothing_when_it_wakes(stage: Stage) -> None:
    settings = {"QSIT_LEASE_S": "2", "NULL_BATCH_S": "0.2"}
    with stage.worker("sleeper", **settings) as sleeper:
        stage.submit()
        until(lambda: settled(stage.engine) > 0 and stage.chunks(ChunkState.LEASED) == 1)
        send(sleeper, signal.SIGSTOP)
        turns = stage.turns("sleeper")
        with stage.worker("other", **settings):
            until(lambda: stage.jobs() == [JobState.FINISHED])
            send(sleeper, signal.SIGCONT)
            until(lambda: stage.turns("sleeper") > turns)
            stage.check_done_once(200)

    assert "Traceback" not in stage.log("sleeper").read_text()


def test_a_worker_that_slept_while_it_decoded_fails_no_photo(stage: Stage) -> None:
    for photo in stage.photos.iterdir():
        Image.new("RGB", (32, 24), SLOW).save(photo)
    with stage.worker("sleeper", QSIT_LEASE_S="180") as sleeper:
        stage.submit()
        until(lambda: settled(stage.engine) > 0)
        for _ in range(3):
            send(sleeper, signal.SIGSTOP)
            time.sleep(2.5)  # longer than QSIT_DECODE_S
            send(sleeper, signal.SIGCONT)
            done = settled(stage.engine)
            until(lambda done=done: settled(stage.engine) > done)
        assert stage.count(select(func.count()).where(ItemRow.state == ItemState.FAILED)) == 0


def test_a_killed_listing_is_continued_by_the_same_command(stage: Stage) -> None:
    make_photos(stage.photos, 12_000)
    command = (QSIT, "submit", str(stage.photos))
    with started(*command, database_url=stage.url, log=stage.log("submit"), **stage.variables) as lister:
        until(lambda: stage.count(select(func.count()).select_from(ItemRow)) > 0)
        lister.kill()
        lister.wait()
    listed = stage.count(select(func.count()).select_from(ItemRow))
    assert 0 < listed < 12_000
    assert stage.count(select(func.count()).where(JobRow.listed_at.is_not(None))) == 0

    with stage.worker("worker", NULL_BATCH_S="0"):
        stage.submit("--wait")
        stage.check_done_once(12_000)


def test_two_jobs_with_the_same_photos_score_each_once(stage: Stage) -> None:
    with stage.worker("one", NULL_BATCH_S="0.5"), stage.worker("two", NULL_BATCH_S="0.5"):
        stage.submit("--name", "first")
        stage.submit("--name", "second")
        assert stage.jobs() == [JobState.ACTIVE] * 2
        until(lambda: stage.jobs() == [JobState.FINISHED] * 2)

    assert stage.count(select(func.count()).select_from(ScoreRow)) == 200
    for job in (1, 2):
        scored = stage.count(select(func.sum(ChunkRow.scored)).where(ChunkRow.job_id == job))
        assert scored + stage.count(select(JobRow.skipped).where(JobRow.id == job)) == 200
        assert (
            stage.count(select(func.count()).where(ItemRow.job_id == job, ItemRow.state == ItemState.SCORED)) == scored
        )
    assert [note for note in twice(stage.engine) if note.startswith("items")] == []


def test_a_message_that_arrives_twice_is_processed_once(stage: Stage) -> None:
    with stage.worker("one", NULL_BATCH_S="0.5"), stage.worker("two", NULL_BATCH_S="0.5"):
        stage.submit()
        until(lambda: stage.chunks(ChunkState.LEASED) > 0)
        app = Celery("tests", broker=stage.variables["QSIT_BROKER_URL"])
        [queue] = re.findall(r"\.> (qsit\.\S+) +exchange", stage.log("one").read_text())
        for chunk in range(1, stage.count(select(func.max(ChunkRow.id))) + 1):
            for _ in range(2):
                app.send_task(TASK, args=[chunk], queue=queue)
        app.close()
        until(lambda: stage.jobs() == [JobState.FINISHED])
        chunks = stage.count(select(func.max(ChunkRow.id)))
        until(lambda: stage.turns("one") + stage.turns("two") >= 3 * chunks)
        stage.check_done_once(200)

    for name in ("one", "two"):
        assert "Traceback" not in stage.log(name).read_text()


def test_sigterm_ends_a_worker_after_its_batch_and_the_rest_is_queued_at_once(stage: Stage) -> None:
    with stage.worker("first", NULL_BATCH_S="1", QSIT_LEASE_S="180") as first:
        stage.submit()
        until(lambda: settled(stage.engine) > 0 and stage.chunks(ChunkState.LEASED) == 1)
        processes = children(first)
        first.terminate()
        assert first.wait(30) == 0
        until(lambda: none_lives(processes))
    assert stage.chunks(ChunkState.LEASED) == 0
    assert 0 < settled(stage.engine) < 200
    assert "Traceback" not in stage.log("first").read_text()

    with stage.worker("second"):
        until(lambda: stage.jobs() == [JobState.FINISHED])
        stage.check_done_once(200)
    assert family(stage.url) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_to_the_parent_alone_ends_a_worker_at_once(stage: Stage, number: signal.Signals) -> None:
    with stage.worker("worker", NULL_BATCH_S="600") as worker:
        stage.submit()
        until(stage.is_in_flight)
        processes = children(worker)
        worker.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(2)
        worker.send_signal(number)
        assert worker.wait(30) == 128 + number
        until(lambda: none_lives(processes))

    with stage.worker("next"):
        until(lambda: settled(stage.engine) > 0)
        assert (
            stage.count(select(func.count()).where(ItemRow.quarantine.in_((Quarantine.SUSPECT, Quarantine.ALONE)))) == 0
        )


def test_sigterm_ends_a_worker_that_is_stuck_in_decoding(stage: Stage) -> None:
    Image.new("RGB", (32, 24), ENDLESS).save(stage.photos / "00000.png")
    with stage.worker("worker", QSIT_DECODE_S="600") as worker:
        stage.submit()
        until(stage.is_in_flight)
        processes = children(worker)
        worker.terminate()
        assert worker.wait(60) == 0
        until(lambda: none_lives(processes))


@pytest.mark.parametrize("stuck_in", ["batch", "decoding"])
def test_a_killed_parent_leaves_no_process_behind_even_one_that_is_stuck(stage: Stage, stuck_in: str) -> None:
    settings = {"NULL_BATCH_S": "600"}
    if stuck_in == "decoding":
        Image.new("RGB", (32, 24), ENDLESS).save(stage.photos / "00000.png")
        settings = {"QSIT_DECODE_S": "600"}
    with stage.worker("worker", **settings) as worker:
        stage.submit()
        until(stage.is_in_flight)
        processes = children(worker)
        assert processes
        worker.kill()
        until(lambda: none_lives(processes), timeout_s=30)

    with stage.worker("next"):
        until(lambda: settled(stage.engine) > 0)
        assert stage.count(select(func.count()).where(ItemRow.crashes > 0)) == 0


def test_a_photo_that_freezes_the_process_fails_alone(stage: Stage) -> None:
    Image.new("RGB", (32, 24), FREEZING).save(stage.photos / "00007.png")

    with stage.worker("worker", NULL_FROZEN_S="3"):
        done = stage.submit("--wait", check=3)

    assert "199 scored, 1 failed" in done.stderr
    with db.reading(stage.engine) as connection:
        assert (
            connection.execute(select(ItemRow.reason).where(ItemRow.state == ItemState.FAILED)).scalar_one()
            == "crashed"
        )


def test_a_device_that_does_not_answer_is_given_up(stage: Stage) -> None:
    with stage.worker("worker", NULL_BATCH_S="3600", NULL_FROZEN_S="5"):
        stage.submit()
        until(lambda: "no batch came to an end" in stage.log("worker").read_text())
    assert "the process is replaced" in stage.log("worker").read_text()


def test_a_bug_in_the_loop_of_celery_ends_the_worker_with_one_traceback(stage: Stage) -> None:
    log = stage.log("worker")

    with started(*NULL_WORKER, database_url=stage.url, log=log, cwd=ROOT, **stage.variables, NULL_LOOP_BUG="1") as one:
        assert one.wait(60) == 1

    assert log.read_text().count("Traceback") == 1
    assert "ValueError: invalid literal for int() with base 10: 'a bug in the loop'" in log.read_text()
