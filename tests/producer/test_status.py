"""The status of a job, and what holds it up."""

import json
from dataclasses import replace
from datetime import UTC, datetime

from models.ledger.workers import WorkerInfo
from models.queries.progress import Progress, Silence
from producer import status
from producer.status import Status
from qsit.states import JobState, Reason, WorkerState
from tests.support.records import HOSTILE

PROGRESS = Progress(
    job=7,
    name="night",
    state=JobState.ACTIVE,
    model="m",
    revision="r1",
    procedure="p",
    is_listed=True,
    skipped=100,
    skipped_failed=3,
    queued=700,
    running=20,
    scored=80,
    failed=2,
    cancelled=0,
    max_failed="0",
    private=False,
    is_being_listed=False,
    created_at=datetime(2026, 1, 2, tzinfo=UTC),
    finished_at=None,
)
WORKER = WorkerInfo("host:1:2", "", "m", "r1", "cuda:0", "float16", WorkerState.READY, 3.0, None, 0.5)
GOING = Status(PROGRESS, {Reason.CORRUPT: 2}, 12.0, [WORKER], [])


def obstacles(now: Status) -> dict[str, str]:
    return dict(status.obstacles(now))


def test_a_table_has_counts_pace_time_left_and_workers() -> None:
    lines = [" ".join(line.split()) for line in status.lines(GOING)]

    assert "job 7 (night): active" in lines
    assert "pace 12 per second, about 1 min 0 s left" in lines
    assert "2 corrupt" in lines
    assert "worker host:1:2: ready on cuda:0 in float16, m" in lines
    assert not [line for line in lines if line.startswith(("cancelled", "stuck"))]


def test_what_others_named_is_shown_escaped() -> None:
    worker = replace(WORKER, notice=f"no such folder: {HOSTILE}")
    hostile = replace(GOING, progress=replace(PROGRESS, name=HOSTILE, model=HOSTILE), workers=[worker])

    assert all(line.isprintable() for line in status.lines(hostile))
    assert json.loads(json.dumps(status.record(hostile)))["name"] == HOSTILE


def test_json_has_every_count() -> None:
    row = json.loads(json.dumps(status.record(GOING)))

    counts = {name: row[name] for name in ("listed", "skipped", "queued", "running", "scored", "failed", "cancelled")}
    assert counts == {
        "listed": 905,
        "skipped": 100,
        "queued": 700,
        "running": 20,
        "scored": 80,
        "failed": 2,
        "cancelled": 0,
    }
    assert (row["per_second"], row["seconds_left"], row["obstacles"]) == (12.0, 60, [])
    assert row["workers"][0]["device"] == "cuda:0"


def test_the_time_left_is_unknown_while_a_job_is_listed_or_paused() -> None:
    assert replace(GOING, progress=replace(PROGRESS, is_listed=False)).seconds_left is None
    assert replace(GOING, progress=replace(PROGRESS, state=JobState.PAUSED)).seconds_left is None
    assert replace(GOING, pace=None).seconds_left is None


def test_a_paused_job_has_one_obstacle_and_its_command() -> None:
    found = obstacles(replace(GOING, progress=replace(PROGRESS, state=JobState.PAUSED), workers=[]))

    assert found.keys() == {"paused"}
    assert "qsit resume 7" in found["paused"]


def test_an_interrupted_listing_is_an_obstacle_and_a_running_one_is_not() -> None:
    assert not obstacles(replace(GOING, progress=replace(PROGRESS, is_listed=False, is_being_listed=True)))
    assert obstacles(replace(GOING, progress=replace(PROGRESS, is_listed=False))).keys() == {"unlisted"}


def test_a_job_without_a_worker_names_the_command_that_starts_one() -> None:
    found = obstacles(replace(GOING, workers=[replace(WORKER, model="other")]))
    assert found["unserved"].endswith("start one: qsit worker --model m --root FOLDER")

    found = obstacles(replace(GOING, workers=[replace(WORKER, revision="r2")]))
    assert "QSIT_REVISION=r1 qsit worker --model m" in found["unserved"]
    assert "revision r2" in found["unserved"]

    found = obstacles(replace(GOING, progress=replace(PROGRESS, private=True), workers=[]))
    assert "`qsit score`" in found["unserved"]

    assert not obstacles(replace(GOING, workers=[replace(WORKER, state=WorkerState.LOADING)]))
    assert not obstacles(replace(GOING, workers=[], progress=replace(PROGRESS, queued=0, running=0)))


def test_a_silent_worker_is_an_obstacle_with_its_chunks_and_the_time_until_others_get_them() -> None:
    found = obstacles(replace(GOING, silences=[Silence("far:1:2", 2, 95.0, 40.0)]))
    assert all(fact in found["silent far:1:2"] for fact in ("far:1:2", "1 min 35 s", "2 chunks", "40 s"))

    found = obstacles(replace(GOING, silences=[Silence("far:1:2", 1, None, 0.0)]))
    assert "unknown" in found["silent far:1:2"]


def test_a_finished_job_has_no_obstacles() -> None:
    assert not obstacles(replace(GOING, progress=replace(PROGRESS, state=JobState.FINISHED), workers=[]))
