"""The life of a chunk, on both databases."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select, update

from migrations.upgrade import upgrade
from models import db
from models.claims import AlreadyScored, ExistingResults, Failed, QueueKey
from models.db import reading, writing
from models.dialects import now_s
from models.ledger import conditions, expiry, jobs, leases, recording, rescue, scheduling, workers
from models.queries.failures import count_failures, list_failures
from models.queries.pagination import ResultFilter
from models.queries.progress import job_progress
from models.queries.results import find_results
from models.tables import ChunkRow, ImageRow, ItemRow, JobRow, ScoreRow, WorkerRow
from qsit.errors import LeaseLost
from qsit.states import UNKNOWN_VERSION, ChunkState, JobState, Reason
from tests.support.ledger import DEAD, HERE, QUEUE, SPEC, claimed, expire_leases, good, listed, photos, score_all


def test_a_message_carries_the_uris_and_is_sent_once(engine: Engine) -> None:
    listed(engine, photos(3))

    (message,) = scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)

    assert message.uris == [photo.uri for photo in photos(3)]
    assert scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60) == []


def test_only_a_few_chunks_are_sent_ahead_of_each_live_worker(engine: Engine) -> None:
    listed(engine, photos(500))
    assert len(scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)) == 2

    for number in range(3):
        worker = WorkerRow(
            owner=f"far:{number}:1.00",
            broker="",
            model="demo",
            revision="r1",
            device="cpu",
            dtype="float32",
            state="ready",
        )
        workers.register(engine, worker)

    assert len(scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)) == 4


def test_jobs_take_turns_and_priority_goes_first(engine: Engine) -> None:
    slow = listed(engine, photos(64), replace(SPEC, key="a"))
    fair = listed(engine, photos(64, "file:///q/"), replace(SPEC, key="b"))
    urgent = listed(engine, photos(16, "file:///r/"), replace(SPEC, key="c", priority=5))

    order = []
    for _ in range(5):
        claim = claimed(engine)
        order.append(claim.job_id)

    assert order == [urgent, slow, fair, slow, fair]


def test_jobs_take_turns_after_the_clock_was_set_back(engine: Engine) -> None:
    early = listed(engine, photos(64), replace(SPEC, key="a"))
    late = listed(engine, photos(64, "file:///q/"), replace(SPEC, key="b"))
    with writing(engine) as connection:
        connection.execute(update(JobRow).where(JobRow.id == early).values(last_dispatched_at=now_s() + 3600))

    assert [claimed(engine).job_id for _ in range(4)] == [late, early, late, early]


def test_only_its_own_broker_gets_a_private_job(engine: Engine) -> None:
    job_id = listed(engine, photos(3), replace(SPEC, private=True))

    assert scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60) == []
    private = QueueKey("demo", "r1", HERE, job_id)
    (message,) = scheduling.stage_chunks(engine, private, ahead=2, lease_s=60)
    assert leases.claim(engine, message.chunk_id, replace(private, job_id=job_id + 1), HERE, 60) is None
    assert leases.claim(engine, message.chunk_id, QUEUE, HERE, 60) is None, "nor does the fleet take it"
    assert leases.claim(engine, message.chunk_id, private, HERE, 60) is not None


def test_a_chunk_is_claimed_once(engine: Engine) -> None:
    listed(engine, photos(3))
    claim = claimed(engine)

    assert leases.claim(engine, claim.chunk_id, QUEUE, HERE, 60) is None
    assert len(claim.items) == 3


def test_a_worker_of_another_model_gets_nothing(engine: Engine) -> None:
    listed(engine, photos(3))
    (message,) = scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)

    assert leases.claim(engine, message.chunk_id, QueueKey("demo", "r2"), HERE, 60) is None
    assert leases.claim(engine, 12345, QUEUE, HERE, 60) is None


def test_a_cancelled_job_is_not_claimed(engine: Engine) -> None:
    job_id = listed(engine, photos(3))
    (message,) = scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)
    with writing(engine) as connection:
        connection.execute(update(JobRow).where(JobRow.id == job_id).values(state=JobState.CANCELLED))

    assert leases.claim(engine, message.chunk_id, QUEUE, HERE, 60) is None


def test_results_are_recorded_and_the_last_one_finishes_the_job(engine: Engine) -> None:
    job_id = listed(engine, photos(3))
    claim = claimed(engine)
    first, second, third = (item.image_id for item in claim.items)

    leases.record(engine, claim, [good(first, 0.25), Failed(second, Reason.CORRUPT, "broken")], 60)
    assert job_progress(engine, job_id).running == 1
    leases.record(engine, claim, [good(third)], 60)
    leases.release(engine, claim)

    progress = job_progress(engine, job_id)
    assert (progress.scored, progress.failed, progress.state) == (2, 1, JobState.FINISHED)
    assert count_failures(engine, job_id) == {Reason.CORRUPT: 1}
    result = next(find_results(engine, ResultFilter()))
    assert (result.score, result.logits, result.job) == (0.25, (0.0, 1.0, 2.0, 3.0, 4.0), job_id)
    (failure,) = list_failures(engine, job_id)
    assert (failure.uri, failure.reason, failure.message) == (photos(3)[1].uri, Reason.CORRUPT, "broken")


def test_a_result_recorded_twice_counts_once(engine: Engine) -> None:
    job_id = listed(engine, photos(2))
    claim = claimed(engine)
    first = claim.items[0].image_id

    leases.record(engine, claim, [good(first)], 60)
    leases.record(engine, claim, [good(first), good(first), Failed(first, Reason.CORRUPT, "no")], 60)

    progress = job_progress(engine, job_id)
    assert (progress.scored, progress.failed, progress.running) == (1, 0, 1)
    with reading(engine) as connection:
        assert connection.execute(select(ItemRow.reason).where(ItemRow.image_id == first)).scalar() is None


def test_the_rest_of_a_released_chunk_is_claimed_again(engine: Engine) -> None:
    listed(engine, photos(3))
    claim = claimed(engine)
    leases.mark_in_flight(engine, claim, [item.image_id for item in claim.items])
    leases.record(engine, claim, [good(claim.items[0].image_id)], 60)

    leases.release(engine, claim)

    again = claimed(engine)
    assert [item.uri for item in again.items] == [photo.uri for photo in photos(3)[1:]]
    assert not any(item.suspect for item in again.items)


def test_a_chunk_released_with_a_delay_rests(engine: Engine) -> None:
    listed(engine, photos(3))
    claim = claimed(engine)

    leases.release(engine, claim, delay_s=60)

    assert scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60) == []
    assert leases.claim(engine, claim.chunk_id, QUEUE, HERE, 60) is None
    expire_leases(engine)
    assert len(scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)) == 1


def test_a_chunk_with_an_expired_lease_can_be_claimed(engine: Engine) -> None:
    listed(engine, photos(3))
    late = claimed(engine, worker="far:1:1.00")
    leases.mark_in_flight(engine, late, [late.items[1].image_id])
    expire_leases(engine)

    claim = leases.claim(engine, late.chunk_id, QUEUE, HERE, 60)

    assert claim is not None
    assert [item.suspect for item in claim.items] == [False, True, False]


def test_a_worker_without_the_lease_writes_nothing(engine: Engine) -> None:
    job_id = listed(engine, photos(3))
    late = claimed(engine)
    image_id = late.items[0].image_id
    expire_leases(engine)
    owner = claimed(engine)

    with pytest.raises(LeaseLost):
        leases.record(engine, late, [good(image_id)], 60)
    with pytest.raises(LeaseLost):
        leases.mark_in_flight(engine, late, [image_id])
    with writing(engine) as connection:
        assert not leases.renew(connection, late, 60)
        assert leases.renew(connection, owner, 60)
    leases.release(engine, late)

    assert job_progress(engine, job_id).running == 3
    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(ScoreRow)).scalar() == 0


def test_renewing_keeps_a_lease(engine: Engine) -> None:
    listed(engine, photos(3))
    claim = claimed(engine)
    expire_leases(engine)

    with writing(engine) as connection:
        assert leases.renew(connection, claim, 60)

    assert scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60) == []


def test_a_chunk_not_claimed_within_a_lease_is_sent_again(engine: Engine) -> None:
    listed(engine, photos(3))
    scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)
    expire_leases(engine)

    assert len(scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)) == 1


def test_a_clock_set_back_does_not_lengthen_a_lease(engine: Engine) -> None:
    listed(engine, photos(3))
    claim = claimed(engine)
    with writing(engine) as connection:
        connection.execute(update(ChunkRow).values(lease_expires_at=now_s() + 7200))

    assert scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60) == []

    with reading(engine) as connection:
        assert connection.execute(select(ChunkRow.lease_expires_at - now_s())).scalar_one() <= 60
    with writing(engine) as connection:
        assert leases.renew(connection, claim, 60), "and takes none away"


def test_a_clock_set_back_does_not_lengthen_a_rest(engine: Engine) -> None:
    listed(engine, photos(3))
    leases.release(engine, claimed(engine), delay_s=7200)

    assert len(scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)) == 1


def test_unstaged_chunks_are_queued_again(engine: Engine) -> None:
    listed(engine, photos(3))
    (message,) = scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)

    scheduling.unstage(engine, [message.chunk_id])

    assert len(scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)) == 1


def test_chunks_of_a_dead_process_of_this_host_are_queued_at_once(engine: Engine) -> None:
    listed(engine, photos(3))
    claimed(engine, worker=DEAD)
    listed(engine, photos(3, "file:///q/"), replace(SPEC, key="q"))
    claimed(engine, worker="far:1:1.00")

    assert rescue.requeue_of_dead(engine) == 1

    assert len(scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)) == 1


def test_recover_queues_sent_chunks(engine: Engine) -> None:
    listed(engine, photos(40))
    assert len(scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=600)) == 2

    assert rescue.recover(engine) == 2

    assert scheduling.queues_with_work(engine) == [QUEUE]
    assert len(scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=600)) == 2


def test_items_in_flight_become_suspect_when_their_worker_dies(engine: Engine) -> None:
    listed(engine, photos(3))
    claim = claimed(engine, worker=DEAD)
    leases.mark_in_flight(engine, claim, [claim.items[0].image_id])

    rescue.requeue_of_dead(engine)

    assert [item.suspect for item in claimed(engine).items] == [True, False, False]


def test_an_item_is_crashed_after_three_deaths_while_it_ran_alone(engine: Engine) -> None:
    job_id = listed(engine, photos(2))
    claim = claimed(engine, worker=DEAD)
    bad = claim.items[0].image_id
    leases.mark_in_flight(engine, claim, [item.image_id for item in claim.items])
    rescue.requeue_of_dead(engine)

    for losses in range(3):
        assert job_progress(engine, job_id).failed == 0, losses
        claim = claimed(engine, worker=DEAD)
        assert bad in [item.image_id for item in claim.items]
        leases.mark_in_flight(engine, claim, [bad], alone=True)
        rescue.requeue_of_dead(engine)

    assert count_failures(engine, job_id) == {Reason.CRASHED: 1}
    assert [item.image_id for item in claimed(engine).items] != [bad]


def test_deaths_while_other_items_are_in_flight_never_fail_an_item(engine: Engine) -> None:
    job_id = listed(engine, photos(2))

    for _ in range(6):
        claim = claimed(engine, worker=DEAD)
        leases.mark_in_flight(engine, claim, [item.image_id for item in claim.items])
        rescue.requeue_of_dead(engine)

    assert job_progress(engine, job_id).failed == 0
    assert score_all(engine) == 2
    assert job_progress(engine, job_id).state is JobState.FINISHED


def test_the_timer_finishes_a_job_whose_last_item_crashed(engine: Engine) -> None:
    job_id = listed(engine, photos(1))
    for _ in range(3):
        claim = claimed(engine, worker=DEAD)
        leases.mark_in_flight(engine, claim, [claim.items[0].image_id], alone=True)
        rescue.requeue_of_dead(engine)

    jobs.finish_done_jobs(engine)

    assert job_progress(engine, job_id).state is JobState.FINISHED


def test_a_death_counts_for_the_item_that_ran_alone_last(engine: Engine) -> None:
    job_id = listed(engine, photos(2))
    claim = claimed(engine, worker=DEAD)
    leases.mark_in_flight(engine, claim, [item.image_id for item in claim.items])
    rescue.requeue_of_dead(engine)

    for _ in range(3):
        claim = claimed(engine, worker=DEAD)
        for item in claim.items:  # nothing comes of the first, by the worker's fault; the second ends the worker
            leases.mark_in_flight(engine, claim, [item.image_id], alone=True)
        rescue.requeue_of_dead(engine)

    (failure,) = list_failures(engine, job_id)
    assert (failure.uri, failure.reason) == (photos(2)[1].uri, Reason.CRASHED)
    assert [item.uri for item in claimed(engine).items] == [photos(2)[0].uri]


def test_a_claim_settles_items_that_another_job_scored(engine: Engine) -> None:
    first = listed(engine, photos(3), replace(SPEC, key="a"))
    second = listed(engine, photos(4), replace(SPEC, key="b", priority=-1))
    claim = claimed(engine)
    assert claim.job_id == first
    leases.record(engine, claim, [good(item.image_id) for item in claim.items], 60)
    leases.release(engine, claim)

    claim = claimed(engine)

    assert (claim.job_id, len(claim.items)) == (second, 1)
    assert job_progress(engine, second).scored == 3


def test_rescoring_overwrites(engine: Engine) -> None:
    listed(engine, photos(1))
    score_all(engine)
    second = listed(engine, photos(1), replace(SPEC, key="again", rescore=True))

    claim = claimed(engine)
    leases.record(engine, claim, [good(claim.items[0].image_id, 0.75)], 60)

    (result,) = find_results(engine, ResultFilter())
    assert (result.score, result.job) == (0.75, second)


def test_an_expired_chunk_without_open_items_is_done(engine: Engine) -> None:
    listed(engine, photos(1))
    score_all(engine)
    expire_leases(engine)

    scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)

    with reading(engine) as connection:
        assert connection.execute(select(ChunkRow.state)).scalar() == ChunkState.DONE


def test_the_death_of_a_stopping_worker_counts_for_no_photo(engine: Engine) -> None:
    job_id = listed(engine, photos(2))
    workers.register(
        engine,
        WorkerRow(owner=DEAD, broker="", model="demo", revision="r1", device="cpu", dtype="float32", state="stopped"),
    )

    for _ in range(4):
        claim = claimed(engine, worker=DEAD)
        assert not claim.items[1].suspect
        leases.mark_in_flight(engine, claim, [claim.items[0].image_id], alone=True)
        leases.mark_in_flight(engine, claim, [claim.items[1].image_id])
        assert rescue.requeue_of_dead(engine) == 1

    assert job_progress(engine, job_id).failed == 0


def test_an_image_without_a_version_gets_the_version_that_was_read(engine: Engine) -> None:
    job_id = listed(engine, photos(3, version=UNKNOWN_VERSION))
    claim = claimed(engine)
    first, second, third = claim.items
    assert {item.version for item in claim.items} == {UNKNOWN_VERSION}

    scored = replace(good(first.image_id), version="v1")
    leases.record(engine, claim, [scored, Failed(third.image_id, Reason.CORRUPT, "broken")], 60)
    assert recording.existing_results(engine, first.uri, "v1", claim) == ExistingResults(scored.score)
    assert recording.existing_results(engine, first.uri, "v2", claim) == ExistingResults()
    assert recording.existing_results(engine, second.uri, "v1", claim) == ExistingResults()
    leases.record(engine, claim, [AlreadyScored(second.image_id, "v2")], 60)
    leases.release(engine, claim)

    progress = job_progress(engine, job_id)
    assert (progress.state, progress.scored, progress.failed) == (JobState.FINISHED, 2, 1)
    [result] = find_results(engine, ResultFilter())
    assert (result.uri, result.version, result.job) == (first.uri, "v1", job_id)
    with reading(engine) as connection:
        rows = connection.execute(
            select(ImageRow.uri, ImageRow.version).where(ImageRow.current).order_by(ImageRow.uri)
        ).all()
    assert rows == [(first.uri, "v1"), (second.uri, "v2")]


def test_a_learned_version_replaces_the_current_one(engine: Engine) -> None:
    listed(engine, photos(1, version="v1"))
    claim = claimed(engine)
    leases.record(engine, claim, [good(claim.items[0].image_id, 0.1)], 60)
    leases.release(engine, claim)

    listed(engine, photos(1, version=UNKNOWN_VERSION), replace(SPEC, key="again"))
    claim = claimed(engine)
    leases.record(engine, claim, [replace(good(claim.items[0].image_id, 0.9), version="v2")], 60)

    assert [(one.version, one.score) for one in find_results(engine, ResultFilter())] == [("v2", 0.9)]
    both = find_results(engine, ResultFilter(all_versions=True))
    assert [one.version for one in both] == ["v1", "v2"]


def test_many_failures_of_a_batch_are_recorded_with_its_scores(engine: Engine) -> None:
    job_id = listed(engine, photos(6))
    claim = claimed(engine)
    ids = [item.image_id for item in claim.items]

    failed = [Failed(image_id, Reason.CORRUPT, f"broken {image_id}\0") for image_id in ids[:4]]
    leases.record(engine, claim, [*failed, *map(good, ids[4:])], 60)
    leases.release(engine, claim)

    progress = job_progress(engine, job_id)
    assert (progress.scored, progress.failed, progress.state) == (2, 4, JobState.FINISHED)
    assert [failure.message for failure in list_failures(engine, job_id)] == [
        f"broken {image_id}\\0" for image_id in ids[:4]
    ]


@contextmanager
def noting(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    """Yield the list that executed statements are added to, with their parameters."""
    noted: list[tuple[str, Any]] = []

    def note(_: object, __: object, statement: str, parameters: Any, ___: object, many: bool) -> None:
        noted.append((statement, parameters[0] if many else parameters))

    event.listen(engine, "before_cursor_execute", note)
    yield noted
    event.remove(engine, "before_cursor_execute", note)


def whole_turn(engine: Engine) -> int:
    """Claim, record and release a chunk; every second photo fails. Return the number of items."""
    claim = claimed(engine)
    ids = [item.image_id for item in claim.items]
    leases.mark_in_flight(engine, claim, ids)
    failed = [Failed(image_id, Reason.CORRUPT, "broken") for image_id in ids[::2]]
    leases.record(engine, claim, [*failed, *map(good, ids[1::2])], 60)
    leases.release(engine, claim)
    return len(ids)


def test_the_number_of_statements_does_not_depend_on_the_items(engine: Engine) -> None:
    listed(engine, photos(4))
    with noting(engine) as few:
        assert whole_turn(engine) == 4
    listed(engine, photos(500, "file:///q/"), replace(SPEC, key="q"))
    with writing(engine) as connection:  # its later chunks are larger
        connection.execute(update(ChunkRow).where(ChunkRow.size < 32).values(state=ChunkState.DONE))

    with noting(engine) as many:
        assert whole_turn(engine) >= 32

    assert {statement for statement, _ in many} <= {statement for statement, _ in few}
    assert len(many) <= len(few)  # the few were all of a job, which is finished with them


def test_no_statement_scans_a_growing_table(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/qsit.db"
    upgrade(url)
    engine = db.connect(url)
    listed(engine, photos(500))
    with noting(engine) as noted:
        whole_turn(engine)
        scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)
        rescue.requeue_of_dead(engine)
        rescue.recover(engine)
        jobs.finish_done_jobs(engine)

    with reading(engine) as connection:
        plans = {
            statement: [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            for statement, parameters in noted
            if not statement.startswith("BEGIN")
        }
    engine.dispose()

    steps = [(statement, step) for statement, plan in plans.items() for step in plan]
    assert steps
    for statement, step in steps:
        for table in ("chunks", "items", "images", "scores"):
            assert not step.startswith(f"SCAN {table}") or "ix_chunks_until_held" in step, (step, statement)
        if step.startswith("SEARCH items"):
            assert "image_id=?" in step or "chunk_id=?" in step, (step, statement)


def test_concurrent_workers_score_everything_once(engine: Engine) -> None:
    same = [listed(engine, photos(300), replace(SPEC, key=key)) for key in "abc"]

    def work(number: int) -> int:
        scored = 0
        while any(job_progress(engine, job_id).state is JobState.ACTIVE for job_id in same):
            for message in scheduling.stage_chunks(engine, QUEUE, ahead=6, lease_s=60):
                claim = leases.claim(engine, message.chunk_id, QUEUE, f"far:{number}:1.00", 60)
                if claim is None:
                    continue
                ids = [item.image_id for item in reversed(claim.items)]
                for batch in (ids[::2], ids[1::2]):
                    leases.mark_in_flight(engine, claim, batch)
                    leases.record(engine, claim, [good(image_id) for image_id in batch], 60)
                leases.release(engine, claim)
                scored += len(ids)
        return scored

    with ThreadPoolExecutor(4) as pool:
        total = sum(pool.map(work, range(4)))

    progress = [job_progress(engine, job_id) for job_id in same]
    assert [(one.scored, one.failed, one.left) for one in progress] == [(300, 0, 0)] * 3
    assert 300 <= total <= 900
    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(ScoreRow)).scalar() == 300


def test_expire_leaves_a_chunk_that_another_worker_claimed(engine: Engine) -> None:
    listed(engine, photos(3))
    claim = claimed(engine)
    leases.mark_in_flight(engine, claim, [claim.items[0].image_id], alone=True)

    with writing(engine) as connection:  # of somebody who had seen it overdue, or with an owner that is dead
        assert expiry.expire(connection, claim.chunk_id, conditions.LEASE_HAS_EXPIRED) == 0
        assert expiry.expire(connection, claim.chunk_id, ChunkRow.leased_by == DEAD) == 0

    assert leases.record(engine, claim, [good(claim.items[0].image_id)], 60)
