"""How a job stands, and what holds it up."""

import json
from dataclasses import replace
from datetime import UTC, datetime

from models.ledger.workers import WorkerInfo
from models.queries.progress import Progress, Silence
from producer import status
from producer.status import Status
from qsit.states import JobState, Reason, WorkerState

PROGRESS = Progress(
    job=7, name="night", state=JobState.ACTIVE, model="m", revision="r1", procedure="p", is_listed=True, skipped=100,
    skipped_failed=3, queued=700, running=20, scored=80, failed=2, cancelled=0, max_failed="0", private=False,
    is_being_listed=False, created_at=datetime(2026, 1, 2, tzinfo=UTC), finished_at=None,
)  # fmt: skip
WORKER = WorkerInfo("host:1:2", "", "m", "r1", "cuda:0", "float16", WorkerState.READY, 3.0, None, 0.5)
GOING = Status(PROGRESS, {Reason.CORRUPT: 2}, 12.0, [WORKER], [])


def words(now: Status) -> list[str]:
    return [line for _, line in status.obstacles(now)]


def test_people_read_counts_pace_time_left_and_workers() -> None:
    text = "\n".join(status.lines(GOING))

    assert "job 7 (night): active" in text
    assert "pace      12 a second, about 1 min 0 s left" in text
    assert "2 corrupt" in text
    assert "host:1:2: ready on cuda:0 in float16, m" in text
    assert "cancelled" not in text
    assert "stuck" not in text


def test_programs_read_the_same() -> None:
    row = json.loads(json.dumps(status.record(GOING)))

    counts = {name: row[name] for name in ("listed", "skipped", "queued", "running", "scored", "failed", "cancelled")}
    assert counts == {
        "listed": 905, "skipped": 100, "queued": 700, "running": 20, "scored": 80, "failed": 2, "cancelled": 0,
    }  # fmt: skip
    assert (row["per_second"], row["seconds_left"], row["obstacles"]) == (12.0, 60, [])
    assert row["workers"][0]["device"] == "cuda:0"


def test_the_time_left_is_unknown_while_it_is_listed_or_paused() -> None:
    assert replace(GOING, progress=replace(PROGRESS, is_listed=False)).seconds_left is None
    assert replace(GOING, progress=replace(PROGRESS, state=JobState.PAUSED)).seconds_left is None
    assert replace(GOING, pace=None).seconds_left is None


def test_a_paused_job_says_how_to_go_on() -> None:
    assert words(replace(GOING, progress=replace(PROGRESS, state=JobState.PAUSED), workers=[])) == [
        "it is paused; to go on: qsit resume 7"
    ]


def test_an_interrupted_listing_is_told_and_one_under_way_is_not() -> None:
    assert words(replace(GOING, progress=replace(PROGRESS, is_listed=False, is_being_listed=True))) == []
    (line,) = words(replace(GOING, progress=replace(PROGRESS, is_listed=False)))
    assert "listing was interrupted" in line


def test_a_job_that_nobody_serves_says_what_to_start() -> None:
    (line,) = words(replace(GOING, workers=[replace(WORKER, model="other")]))
    assert line == "no worker serves it; start one: qsit worker --model m --root FOLDER"

    (line,) = words(replace(GOING, workers=[replace(WORKER, revision="r2")]))
    assert "QSIT_REVISION=r1 qsit worker --model m" in line
    assert "hold revision r2" in line

    (line,) = words(replace(GOING, progress=replace(PROGRESS, private=True), workers=[]))
    assert line == "no worker serves it; run the same `qsit score` again"

    assert words(replace(GOING, workers=[replace(WORKER, state=WorkerState.LOADING)])) == []
    assert words(replace(GOING, workers=[], progress=replace(PROGRESS, queued=0, running=0))) == []


def test_a_worker_that_is_silent_is_told_with_when_others_take_over() -> None:
    (line,) = words(replace(GOING, silences=[Silence("far:1:2", 2, 95.0, 40.0)]))
    assert line == "2 chunks held by far:1:2, of which nothing was heard for 1 min 35 s; others take over in 40 s"

    (line,) = words(replace(GOING, silences=[Silence("far:1:2", 1, None, 0.0)]))
    assert "1 chunk held by far:1:2, of which nothing is known" in line


def test_a_finished_job_has_no_obstacles() -> None:
    assert words(replace(GOING, progress=replace(PROGRESS, state=JobState.FINISHED), workers=[])) == []
