"""What holds of a ledger between any two transactions, whatever is done to it: one function for each sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, select

from models.db import reading
from models.ledger.expiry import MAX_CRASHES
from models.queries.progress import job_progress
from models.tables import AnswerRow, ChunkRow, ImageRow, ItemRow, JobRow, QuestionRow, ScoreRow
from qsit.states import UNKNOWN_VERSION, ChunkState, ItemState, JobState, Quarantine, Reason

HELD = (ChunkState.SENT, ChunkState.LEASED)
ENDED = (JobState.FINISHED, JobState.CANCELLED)


_EVERYTHING = [
    select(*table.__table__.columns)
    for table in (JobRow, ChunkRow, ItemRow, ScoreRow, ImageRow, AnswerRow, QuestionRow)
]


@dataclass(frozen=True)
class Snapshot:
    """Everything in a ledger at one moment."""

    jobs: dict[int, Any]
    chunks: dict[int, Any]
    items: dict[tuple[int, int], Any]  # by job and image
    scores: dict[tuple[int, int], Any]  # by image and scorer
    images: dict[int, Any]
    answers: dict[tuple[int, int, int], Any]  # by image, scorer and question
    questions: dict[int, Any]

    def of_chunk(self, chunk_id: int, state: ItemState | None = None) -> list[Any]:
        """Return the items of a chunk, in one state or in all."""
        items = [item for item in self.items.values() if item.chunk_id == chunk_id]
        return [item for item in items if state is None or item.state == state]

    def of_job(self, job_id: int) -> list[Any]:
        """Return the chunks of a job."""
        return [chunk for chunk in self.chunks.values() if chunk.job_id == job_id]


def snapshot(engine: Engine) -> Snapshot:
    with reading(engine) as connection:
        tables = [connection.execute(statement).all() for statement in _EVERYTHING]
    jobs, chunks, items, scores, images, answers, questions = tables
    return Snapshot(
        {row.id: row for row in jobs},
        {row.id: row for row in chunks},
        {(row.job_id, row.image_id): row for row in items},
        {(row.image_id, row.scorer_id): row for row in scores},
        {row.id: row for row in images},
        {(row.image_id, row.scorer_id, row.question_id): row for row in answers},
        {row.id: row for row in questions},
    )


def check(now: Snapshot) -> None:
    """Check every invariant."""
    for invariant in INVARIANTS:
        invariant(now)


def the_counters_of_a_chunk_count_its_items(now: Snapshot) -> None:
    """Scored and failed items are counted once. Pruned items leave only their count."""
    for chunk in now.chunks.values():
        counts = {state: len(now.of_chunk(chunk.id, state)) for state in ItemState}
        pruned = chunk.size - sum(counts.values())
        assert pruned >= 0, chunk
        assert counts[ItemState.FAILED] == chunk.failed, chunk
        assert counts[ItemState.SCORED] <= chunk.scored <= counts[ItemState.SCORED] + pruned, chunk


def an_item_is_in_a_chunk_of_its_own_job(now: Snapshot) -> None:
    """Its state exists, too."""
    for item in now.items.values():
        assert now.chunks[item.chunk_id].job_id == item.job_id, item
        assert item.state in list(ItemState), item
        assert item.quarantine in list(Quarantine), item


def a_chunk_has_a_token_exactly_when_it_is_leased(now: Snapshot) -> None:
    """Each column of a chunk has a value in its states only; a queued chunk may have to rest."""
    for chunk in now.chunks.values():
        assert (chunk.token is not None) == (chunk.state == ChunkState.LEASED), chunk
        assert (chunk.leased_by is not None) == (chunk.state == ChunkState.LEASED), chunk
        assert (chunk.lease_expires_at is not None) == (chunk.state == ChunkState.LEASED), chunk
        assert (chunk.sent_via is not None) == (chunk.state == ChunkState.SENT), chunk
        assert (chunk.available_at is not None) or chunk.state != ChunkState.SENT, chunk
        assert chunk.available_at is None or chunk.state in (ChunkState.SENT, ChunkState.QUEUED), chunk


def a_chunk_is_done_exactly_when_nothing_of_it_is_queued(now: Snapshot) -> None:
    """Except a leased one: its worker may have recorded everything and not released it yet."""
    for chunk in now.chunks.values():
        left = now.of_chunk(chunk.id, ItemState.QUEUED)
        if chunk.state == ChunkState.DONE:
            assert not left, (chunk, left)
        elif chunk.state != ChunkState.LEASED:
            assert left, chunk


def a_finished_job_is_listed_and_done(now: Snapshot) -> None:
    """Its listing is complete and all its chunks are done."""
    for job in now.jobs.values():
        assert (job.finished_at is not None) == (job.state in ENDED), job
        if job.state == JobState.FINISHED:
            assert job.listed_at is not None, job
            assert all(chunk.state == ChunkState.DONE for chunk in now.of_job(job.id)), job
            assert not [item for item in now.items.values() if item.job_id == job.id and item.state == "queued"], job


def only_finished_and_cancelled_jobs_have_cancelled_or_pruned_items(now: Snapshot) -> None:
    """A job that continues has no cancelled items."""
    for item in now.items.values():
        assert item.state != ItemState.CANCELLED or now.jobs[item.job_id].state == JobState.CANCELLED, item


def what_is_scored_has_its_score(now: Snapshot) -> None:
    """The score of an image without a version belongs to some version of its URI."""
    uris = {(now.images[image_id].uri, scorer_id) for image_id, scorer_id in now.scores}
    for item in now.items.values():
        if item.state == ItemState.SCORED:
            image, scorer_id = now.images[item.image_id], now.jobs[item.job_id].scorer_id
            if image.version == UNKNOWN_VERSION:
                assert (image.uri, scorer_id) in uris, item
            else:
                assert (image.id, scorer_id) in now.scores, item


def what_is_answered_has_its_score(now: Snapshot) -> None:
    """It has the same image and scorer, and its question exists."""
    for image_id, scorer_id, question_id in now.answers:
        assert (image_id, scorer_id) in now.scores
        assert question_id in now.questions


def what_failed_says_why_and_nothing_else_does(now: Snapshot) -> None:
    """It is crashed exactly when MAX_CRASHES workers died while it ran alone."""
    for item in now.items.values():
        assert (item.reason is not None) == (item.message is not None) == (item.state == ItemState.FAILED), item
        assert (item.crashes >= MAX_CRASHES) == (item.reason == Reason.CRASHED), item
        assert item.crashes <= MAX_CRASHES, item


def items_are_in_flight_only_while_a_worker_has_them(now: Snapshot) -> None:
    """Settled items are not quarantined, and nothing runs with an item that runs alone."""
    for chunk in now.chunks.values():
        risks = {item.image_id: item.quarantine for item in now.of_chunk(chunk.id)}
        for item in now.of_chunk(chunk.id):
            assert item.quarantine == Quarantine.NONE or item.state == ItemState.QUEUED, item
        flying = [risk for risk in risks.values() if risk in (Quarantine.ALONE, Quarantine.IN_FLIGHT)]
        assert not flying or chunk.state == ChunkState.LEASED, (chunk, risks)
        assert Quarantine.ALONE not in flying or len(flying) == 1, (chunk, risks)


def at_most_one_version_of_a_photo_is_current(now: Snapshot) -> None:
    """It is never the unknown version."""
    current = [image.uri for image in now.images.values() if image.current]
    assert len(current) == len(set(current))
    assert not [image for image in now.images.values() if image.current and image.version == UNKNOWN_VERSION]


INVARIANTS = (
    the_counters_of_a_chunk_count_its_items,
    an_item_is_in_a_chunk_of_its_own_job,
    a_chunk_has_a_token_exactly_when_it_is_leased,
    a_chunk_is_done_exactly_when_nothing_of_it_is_queued,
    a_finished_job_is_listed_and_done,
    only_finished_and_cancelled_jobs_have_cancelled_or_pruned_items,
    what_is_scored_has_its_score,
    what_is_answered_has_its_score,
    what_failed_says_why_and_nothing_else_does,
    items_are_in_flight_only_while_a_worker_has_them,
    at_most_one_version_of_a_photo_is_current,
)


def check_progress(engine: Engine, now: Snapshot, job_ids: Sequence[int]) -> None:
    """Every listed image is in exactly one of the sums that `status` shows."""
    for job_id in job_ids:
        progress, job, chunks = job_progress(engine, job_id), now.jobs[job_id], now.of_job(job_id)
        assert progress.to_do == sum(chunk.size for chunk in chunks), progress
        assert progress.listed == progress.to_do + job.skipped + job.skipped_failed, progress
        assert min(progress.queued, progress.running, progress.scored, progress.failed, progress.cancelled) >= 0
        assert progress.state != JobState.FINISHED or progress.left == progress.cancelled == 0, progress
