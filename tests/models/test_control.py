"""What people do to a job that is there."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, func, select, update

from models.claims import Failed
from models.db import reading, writing
from models.ledger import control, jobs, leases, listing, scheduling
from models.ledger.jobs import JobSpec
from models.queries.failures import list_failures
from models.queries.progress import job_progress, measure_pace, silent_workers
from models.tables import ItemRow, JobRow, ScoreRow
from qsit.errors import JobCancelled, UsageError
from qsit.states import ItemState, JobState, Reason
from tests.support.ledger import HERE, QUEUE, SPEC, claimed, expire_leases, good, listed, photos


def bad(image_id: int, reason: Reason = Reason.CORRUPT) -> Failed:
    return Failed(image_id, reason, "broken")


def finished_with_failures(engine: Engine, spec: JobSpec = SPEC) -> tuple[int, list[int]]:
    """A finished job of four photos, two of which failed: one corrupt, one missing."""
    job_id = listed(engine, photos(4), spec)
    claim = claimed(engine)
    ids = [item.image_id for item in claim.items]
    results = [good(ids[0]), bad(ids[1]), good(ids[2]), bad(ids[3], Reason.MISSING)]
    leases.record(engine, claim, results, 60)
    leases.release(engine, claim)
    assert job_progress(engine, job_id).state == JobState.FINISHED
    return job_id, ids


def states(engine: Engine, job_id: int) -> dict[str, int]:
    with reading(engine) as connection:
        query = select(ItemRow.state, func.count()).where(ItemRow.job_id == job_id).group_by(ItemRow.state)
        return {row[0]: row[1] for row in connection.execute(query)}


def test_a_paused_job_is_neither_sent_nor_claimed_until_it_is_resumed(engine: Engine) -> None:
    job_id = listed(engine, photos(3))
    (message,) = scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)

    control.pause(engine, job_id)
    assert leases.claim(engine, message.chunk_id, QUEUE, HERE, 60) is None
    assert scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60) == []

    control.resume(engine, job_id)
    (again,) = scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)
    assert again.chunk_id == message.chunk_id


@pytest.mark.parametrize("stop", [control.pause, control.cancel])
def test_a_batch_or_heartbeat_tells_a_worker_that_its_job_stopped(engine: Engine, stop: object) -> None:
    job_id = listed(engine, photos(3))
    claim = claimed(engine)
    first, second, _ = (item.image_id for item in claim.items)
    assert leases.record(engine, claim, [good(first)], 60)

    assert callable(stop)
    stop(engine, job_id)

    assert not leases.record(engine, claim, [good(second)], 60), "the batch in hand is kept, and is the last"
    with writing(engine) as connection:
        assert not leases.renew(connection, claim, 60)
    leases.release(engine, claim)
    progress = job_progress(engine, job_id)
    assert (progress.scored, progress.running) == (2, 0)
    assert progress.queued + progress.cancelled == 1


def test_cancelling_a_job_cancels_its_open_items(engine: Engine) -> None:
    job_id = listed(engine, photos(20))  # two chunks
    claim = claimed(engine)
    leases.mark_in_flight(engine, claim, [item.image_id for item in claim.items])

    control.cancel(engine, job_id)
    control.cancel(engine, job_id)  # twice is no harm
    assert job_progress(engine, job_id).cancelled == 4, "what no worker holds, at once"
    leases.release(engine, claim)

    progress = job_progress(engine, job_id)
    assert (progress.state, progress.cancelled, progress.left) == (JobState.CANCELLED, 20, 0)
    assert states(engine, job_id) == {ItemState.CANCELLED: 20}
    assert scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60) == []
    with reading(engine) as connection:
        assert connection.execute(select(JobRow.finished_at).where(JobRow.id == job_id)).scalar() is not None


def test_items_of_a_cancelled_job_are_cancelled_when_their_worker_dies(engine: Engine) -> None:
    job_id = listed(engine, photos(3))
    claim = claimed(engine)
    leases.mark_in_flight(engine, claim, [claim.items[0].image_id], alone=True)
    control.cancel(engine, job_id)
    expire_leases(engine)

    scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=60)

    assert states(engine, job_id) == {ItemState.CANCELLED: 3}


def test_the_timer_settles_a_chunk_released_while_its_job_was_cancelled(engine: Engine) -> None:
    job_id = listed(engine, photos(3))
    with writing(engine) as connection:
        connection.execute(update(JobRow).values(state=JobState.CANCELLED))

    control.settle_cancelled(engine)

    assert states(engine, job_id) == {ItemState.CANCELLED: 3}
    assert job_progress(engine, job_id).cancelled == 3


def test_a_job_that_is_cancelled_while_it_is_listed_gets_nothing_more(engine: Engine) -> None:
    opened = jobs.open_job(engine, SPEC)
    listing.begin_listing(engine, opened.id)
    listing.add_images(engine, opened.id, photos(3))
    control.cancel(engine, opened.id)

    with pytest.raises(JobCancelled):
        listing.add_images(engine, opened.id, photos(3, "file:///q/"))

    assert states(engine, opened.id) == {ItemState.CANCELLED: 3}


def test_retry_queues_failed_photos_and_reactivates_the_job(engine: Engine) -> None:
    job_id, ids = finished_with_failures(engine)

    assert control.retry(engine, job_id) == 2

    progress = job_progress(engine, job_id)
    assert (progress.state, progress.queued, progress.failed, progress.scored) == (JobState.ACTIVE, 2, 0, 2)
    assert progress.finished_at is None
    claim = claimed(engine)
    assert [item.image_id for item in claim.items] == [ids[1], ids[3]]
    leases.record(engine, claim, [good(ids[1]), bad(ids[3])], 60)
    leases.release(engine, claim)
    progress = job_progress(engine, job_id)
    assert (progress.state, progress.failed, progress.scored) == (JobState.FINISHED, 1, 3)
    (failure,) = list_failures(engine, job_id)
    assert failure.reason == Reason.CORRUPT


def test_retry_can_be_limited_to_a_reason(engine: Engine) -> None:
    job_id, ids = finished_with_failures(engine)

    assert control.retry(engine, job_id, [Reason.TIMEOUT]) == 0
    assert job_progress(engine, job_id).state == JobState.FINISHED
    assert control.retry(engine, job_id, [Reason.MISSING, Reason.TIMEOUT]) == 1

    assert [item.image_id for item in claimed(engine).items] == [ids[3]]


def test_retry_of_a_leased_chunk_waits_for_its_release(engine: Engine) -> None:
    job_id = listed(engine, photos(3))
    claim = claimed(engine)
    first = claim.items[0].image_id
    leases.record(engine, claim, [bad(first)], 60)

    assert control.retry(engine, job_id) == 1

    leases.record(engine, claim, [good(item.image_id) for item in claim.items[1:]], 60)
    leases.release(engine, claim)
    assert [item.image_id for item in claimed(engine).items] == [first]


def test_retry_queues_many_failures_page_by_page(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id, _ = finished_with_failures(engine)
    monkeypatch.setattr(control, "FAILURES_AT_ONCE", 1)

    assert control.retry(engine, job_id) == 2

    assert job_progress(engine, job_id).queued == 2


@pytest.mark.parametrize(
    ("act", "words"), [(control.pause, "pause"), (control.resume, "resume"), (control.cancel, "cancel")]
)
def test_a_finished_job_is_neither_paused_nor_cancelled(engine: Engine, act: object, words: str) -> None:
    job_id, _ = finished_with_failures(engine)

    assert callable(act)
    with pytest.raises(UsageError, match=f"job {job_id} is finished: there is nothing to {words}"):
        act(engine, job_id)


def test_a_cancelled_job_is_neither_resumed_nor_retried(engine: Engine) -> None:
    job_id = listed(engine, photos(3))
    control.cancel(engine, job_id)

    with pytest.raises(UsageError, match="nothing to resume"):
        control.resume(engine, job_id)
    with pytest.raises(UsageError, match="submit its photos again"):
        control.retry(engine, job_id)


def test_old_jobs_are_pruned_and_their_scores_counts_and_failures_stay(engine: Engine) -> None:
    old, _ = finished_with_failures(engine)
    with writing(engine) as connection:
        connection.execute(update(JobRow).values(finished_at=datetime.now(UTC) - timedelta(days=40)))
    recent, _ = finished_with_failures(engine, replace(SPEC, key="again", rescore=True))
    before = job_progress(engine, old), list(list_failures(engine, old))

    assert control.prune(engine, timedelta(days=30)) == 2

    assert (job_progress(engine, old), list(list_failures(engine, old))) == before
    assert states(engine, old) == {ItemState.FAILED: 2}
    assert states(engine, recent) == {ItemState.SCORED: 2, ItemState.FAILED: 2}
    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(ScoreRow)).scalar() == 2
    assert control.prune(engine, timedelta(days=30)) == 0
    assert control.retry(engine, old) == 2, "and what is left of it can be tried again"


def test_pace_counts_the_scores_of_one_job(engine: Engine) -> None:
    job_id = listed(engine, photos(4))
    claim = claimed(engine)
    assert measure_pace(engine, job_id) is None
    leases.record(engine, claim, [good(item.image_id) for item in claim.items], 60)
    with writing(engine) as connection:
        connection.execute(update(ScoreRow).values(scored_at=datetime.now(UTC) - timedelta(seconds=20)))

    assert measure_pace(engine, job_id) == pytest.approx(0.2, rel=0.2)
    other = listed(engine, photos(4, "file:///q/"), replace(SPEC, key="b"))
    assert measure_pace(engine, other) is None


def test_a_silent_worker_is_reported_with_its_chunks(engine: Engine) -> None:
    job_id = listed(engine, photos(3))
    claim = claimed(engine)

    (silence,) = silent_workers(engine, job_id, longer_than_s=30)

    assert (silence.owner, silence.chunks, silence.quiet_s) == (HERE, 1, None)
    assert 0 < silence.left_s <= 60
    leases.release(engine, claim)
    assert silent_workers(engine, job_id, longer_than_s=30) == []


def test_resume_finishes_a_job_whose_last_photo_was_scored_while_it_was_paused(engine: Engine) -> None:
    job_id = listed(engine, photos(3))
    claim = claimed(engine)
    control.pause(engine, job_id)
    leases.record(engine, claim, [good(item.image_id) for item in claim.items], 60)
    leases.release(engine, claim)

    control.resume(engine, job_id)

    assert job_progress(engine, job_id).state == JobState.FINISHED


def test_the_name_of_a_cancelled_job_is_refused(engine: Engine) -> None:
    spec = replace(SPEC, name="night")
    control.cancel(engine, listed(engine, photos(3), spec))

    with pytest.raises(UsageError, match="night was cancelled; choose another --name"):
        jobs.open_job(engine, spec)
