"""
What a ledger ought to hold, kept in plain Python beside it: what was recorded of which image in which job under a
valid lease, how many workers died while it ran alone, and who holds what.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from models.claims import AlreadyScored, Claim, ExistingResults, Failed, Scored
from models.ledger.expiry import MAX_CRASHES
from models.ledger.listing import Added
from qsit.states import PASSING_REASONS, UNKNOWN_VERSION, ChunkState, ItemState, JobState, Quarantine, Reason
from tests.support.ledger import Photo
from tests.support.ledger_invariants import Snapshot


@dataclass
class JobModel:
    scorer_id: int
    rescore: bool
    questions: tuple[str, ...] = ()  # their names
    ask_below: float | None = None
    state: JobState = JobState.ACTIVE
    is_listed: bool = False
    is_being_listed: bool = False
    skipped: int = 0
    skipped_failed: int = 0
    is_loose: bool = False  # who paused or cancelled it was killed before its sent chunks were taken back


@dataclass
class ItemModel:
    photo: Photo
    chunk_id: int
    state: ItemState = ItemState.QUEUED
    reason: Reason | None = None
    deaths: int = 0  # of workers, while it ran alone
    is_suspect: bool = False
    is_pruned: bool = False


@dataclass
class Holding:
    """A worker's claim, and what the worker has done with it."""

    claim: Claim
    owner: str
    waiting: list[int]
    suspects: list[int]
    flying: list[int] = field(default_factory=list)  # started beside others, without a result
    alone: int | None = None  # started alone, without a result
    unread: set[int] = field(default_factory=set)  # of these two, what could not be read by the worker's own fault
    last: list[Scored | AlreadyScored | Failed] = field(default_factory=list)  # what was recorded last
    is_told_to_end: bool = False

    @property
    def awaited(self) -> list[int]:
        """Return the items without a result."""
        started = self.flying if self.alone is None else [self.alone]
        return [image_id for image_id in started if image_id not in self.unread]


class Model:
    """A model of the ledger. Each operation changes both, and they must agree."""

    def __init__(self) -> None:
        self.jobs: dict[int, JobModel] = {}
        self.items: dict[tuple[int, int], ItemModel] = {}  # by job and image
        self.scores: dict[tuple[Photo, int], tuple[float, int]] = {}  # by image and scorer: the score, the job
        self.answers: dict[tuple[Photo, int, str], tuple[str, int]] = {}  # and by question: the text, the job
        self.current: dict[str, str] = {}  # versions by URI
        self.sizes: dict[int, int] = {}
        self.held: dict[str, Holding] = {}  # by token

    def of_chunk(self, chunk_id: int, state: ItemState = ItemState.QUEUED) -> list[tuple[int, ItemModel]]:
        """Return images and items of a chunk in a state."""
        found = [(key[1], item) for key, item in self.items.items() if item.chunk_id == chunk_id]
        return [(image_id, item) for image_id, item in found if item.state == state]

    def is_in_job(self, job_id: int, photo: Photo) -> bool:
        """Return whether a job has an image, or one that may be the same."""
        versions = {
            item.photo.version for key, item in self.items.items() if key[0] == job_id and item.photo.uri == photo.uri
        }
        if photo.version == UNKNOWN_VERSION:
            return bool(versions)
        return bool(versions & {photo.version, UNKNOWN_VERSION})

    def needs_nothing(self, job: JobModel, photo: Photo) -> bool:
        """Return whether a job without --rescore has nothing to do for an image."""
        if (photo, job.scorer_id) not in self.scores:
            return False
        score, _ = self.scores[photo, job.scorer_id]
        is_good = job.ask_below is not None and score >= job.ask_below
        return is_good or all((photo, job.scorer_id, name) in self.answers for name in job.questions)

    def findings(self, claim: Claim, photo: Photo) -> ExistingResults:
        """Return what a claim says about an image."""
        score = self.scores.get((photo, claim.scorer_id))
        answered = {
            question_id
            for question_id, question in claim.questions.items()
            if (photo, claim.scorer_id, question.name) in self.answers
        }
        return ExistingResults(score and score[0], frozenset(answered))

    def list(self, job_id: int, photos: Sequence[Photo], added: Added) -> set[Photo]:
        """List images into a job, and check what was counted. Return those that become items."""
        job = self.jobs[job_id]
        new = [photo for photo in photos if not self.is_in_job(job_id, photo)]
        may_skip = [photo for photo in new if not job.rescore and photo.version != UNKNOWN_VERSION]
        skipped = {photo for photo in may_skip if self.needs_nothing(job, photo)}
        condemned = {
            item.photo
            for key, item in self.items.items()
            if item.state == ItemState.FAILED
            and item.reason not in PASSING_REASONS
            and self.jobs[key[0]].scorer_id == job.scorer_id
        }
        skipped_failed = {photo for photo in may_skip if photo in condemned} - skipped
        queued = set(new) - skipped - skipped_failed
        assert added == Added(len(queued), len(skipped), len(skipped_failed), 0)
        job.skipped += len(skipped)
        job.skipped_failed += len(skipped_failed)
        self.current |= {photo.uri: photo.version for photo in photos if photo.version != UNKNOWN_VERSION}
        return queued

    def place(self, job_id: int, photos: set[Photo], now: Snapshot) -> None:
        """Note that these images are items of a job."""
        for (of_job, image_id), row in now.items.items():
            if of_job == job_id and (of_job, image_id) not in self.items:
                photo = Photo(now.images[image_id].uri, now.images[image_id].version)
                photos.remove(photo)
                self.items[of_job, image_id] = ItemModel(photo, row.chunk_id)
        assert not photos, "images were listed and are no items"
        self.sizes |= {chunk.id: chunk.size for chunk in now.of_job(job_id) if chunk.id not in self.sizes}

    def claim(self, claim: Claim, owner: str) -> Holding:
        """Note a claim, which settles what other jobs scored and asked."""
        job = self.jobs[claim.job_id]
        assert [question.name for question in claim.questions.values()] == list(job.questions)
        assert claim.ask_below == job.ask_below
        for _, item in self.of_chunk(claim.chunk_id):
            if self.needs_nothing(job, item.photo) and not claim.rescore:
                self._settle(item, ItemState.SCORED)
        left = sorted(self.of_chunk(claim.chunk_id))
        assert [item.image_id for item in claim.items] == [image_id for image_id, _ in left]
        assert [Photo(item.uri, item.version) for item in claim.items] == [item.photo for _, item in left]
        assert [item.suspect for item in claim.items] == [item.is_suspect for _, item in left]
        assert [item.found for item in claim.items] == [self.findings(claim, item.photo) for _, item in left]
        suspects = [image_id for image_id, item in left if item.is_suspect]
        others = [image_id for image_id, item in left if not item.is_suspect]
        holding = self.held[claim.token] = Holding(claim, owner, others, suspects)
        return holding

    def record(self, holding: Holding, results: Sequence[Scored | AlreadyScored | Failed]) -> None:
        """Note results that were written under a valid lease."""
        claim = holding.claim
        for result in results:
            item = self.items[claim.job_id, result.image_id]
            if isinstance(result, Failed):
                self._settle(item, ItemState.FAILED, result.reason)
                continue
            photo = item.photo if result.version is None else Photo(item.photo.uri, result.version)
            if result.version is not None:
                self.current[photo.uri] = photo.version
            if isinstance(result, Scored):
                self.scores[photo, claim.scorer_id] = (result.score, claim.job_id)
            for question_id, answer in result.answers.items():
                name = claim.questions[question_id].name
                self.answers[photo, claim.scorer_id, name] = (answer.text, claim.job_id)
            self._settle(item, ItemState.SCORED)

    def _settle(self, item: ItemModel, state: ItemState, reason: Reason | None = None) -> None:
        if item.state == ItemState.QUEUED:
            item.state, item.reason, item.is_suspect = state, reason, False

    def lose(self, holding: Holding) -> None:
        """Note a lost lease. Unless the worker was stopping, its items in flight become suspect."""
        del self.held[holding.claim.token]
        if not holding.is_told_to_end:
            for image_id in holding.flying:
                self.items[holding.claim.job_id, image_id].is_suspect = True
            if holding.alone is not None:
                item = self.items[holding.claim.job_id, holding.alone]
                item.deaths += 1
                if item.deaths == MAX_CRASHES:
                    self._settle(item, ItemState.FAILED, Reason.CRASHED)
        self._cancel_rest(holding)

    def hand_back(self, holding: Holding) -> None:
        """Note a released lease."""
        del self.held[holding.claim.token]
        self._cancel_rest(holding)

    def _cancel_rest(self, holding: Holding) -> None:
        if self.jobs[holding.claim.job_id].state == JobState.CANCELLED:
            self.settle_cancelled([holding.claim.chunk_id])

    def settle_cancelled(self, chunk_ids: Sequence[int]) -> None:
        """Cancel the open items of chunks."""
        for chunk_id in chunk_ids:
            for _, item in self.of_chunk(chunk_id):
                self._settle(item, ItemState.CANCELLED)

    def retry(self, job_id: int, reasons: Sequence[Reason]) -> int:
        """Queue failed items again. Return their number."""
        failed = [
            item
            for key, item in self.items.items()
            if key[0] == job_id and item.state == ItemState.FAILED and (not reasons or item.reason in reasons)
        ]
        for item in failed:
            item.state, item.reason, item.deaths = ItemState.QUEUED, None, 0
        job = self.jobs[job_id]
        if failed and job.state == JobState.FINISHED:
            job.state = JobState.ACTIVE
        return len(failed)

    def prune(self, before: Snapshot) -> int:
        """Remove scored and cancelled items of ended jobs. Return their number."""
        number = 0
        for (job_id, _), item in self.items.items():
            is_over = self.jobs[job_id].state in (JobState.FINISHED, JobState.CANCELLED)
            is_done = before.chunks[item.chunk_id].state == ChunkState.DONE
            if is_over and is_done and not item.is_pruned and item.state in (ItemState.SCORED, ItemState.CANCELLED):
                item.is_pruned = True
                number += 1
        return number

    def risk(self, image_id: int, item: ItemModel, chunk_token: str | None) -> Quarantine:
        """Return an item's quarantine."""
        holding = self.held.get(chunk_token or "")
        if item.state != ItemState.QUEUED:
            return Quarantine.NONE
        if holding is not None and image_id == holding.alone:
            return Quarantine.ALONE
        if holding is not None and image_id in holding.flying:
            return Quarantine.IN_FLIGHT
        return Quarantine.SUSPECT if item.is_suspect else Quarantine.NONE

    def compare(self, now: Snapshot) -> None:
        """Check that the ledger holds exactly what the model holds."""
        items = {
            key: (
                item.chunk_id,
                item.state,
                item.reason,
                item.deaths,
                self.risk(key[1], item, now.chunks[item.chunk_id].token),
            )
            for key, item in self.items.items()
            if not item.is_pruned
        }
        assert {
            key: (row.chunk_id, row.state, row.reason, row.crashes, row.quarantine) for key, row in now.items.items()
        } == items
        counts = Counter((item.chunk_id, item.state) for item in self.items.values())
        assert {chunk.id: (chunk.size, chunk.scored, chunk.failed) for chunk in now.chunks.values()} == {
            chunk_id: (size, counts[chunk_id, ItemState.SCORED], counts[chunk_id, ItemState.FAILED])
            for chunk_id, size in self.sizes.items()
        }
        photos = {image.id: Photo(image.uri, image.version) for image in now.images.values()}
        assert {
            (photos[image_id], scorer_id): (row.score, row.job_id) for (image_id, scorer_id), row in now.scores.items()
        } == self.scores, "a score was not recorded under a valid lease, or is gone"
        assert {
            (photos[image_id], scorer_id, now.questions[question_id].name): (row.text, row.job_id)
            for (image_id, scorer_id, question_id), row in now.answers.items()
        } == self.answers, "an answer was not recorded under a valid lease, or is gone"
        assert {image.uri: image.version for image in now.images.values() if image.current} == self.current
        assert {chunk.token for chunk in now.chunks.values() if chunk.token is not None} == set(self.held)
        for job_id, job in self.jobs.items():
            row = now.jobs[job_id]
            if row.state == JobState.FINISHED and job.state == JobState.ACTIVE:
                job.state = JobState.FINISHED  # whether it may be is an invariant of the ledger itself
            assert (row.state, row.listed_at is not None, row.lister is not None, row.skipped, row.skipped_failed) == (
                job.state,
                job.is_listed,
                job.is_being_listed,
                job.skipped,
                job.skipped_failed,
            )
        for chunk in now.chunks.values():
            job = self.jobs[chunk.job_id]
            assert chunk.state != ChunkState.SENT or job.state == JobState.ACTIVE or job.is_loose, chunk
