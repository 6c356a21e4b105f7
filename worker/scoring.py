"""Scores one batch. An error of the model costs only the images that cause it."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from models.claims import AlreadyScored, Claim, ClaimedItem, ExistingResults, Failed, Result, Scored
from qsit.errors import ProcessUnusable, one_line
from qsit.questions import Answer, Question
from qsit.rating import Score
from qsit.states import Reason
from worker.inference.tiles import Prepared


class Model(Protocol):
    """What scoring needs of `QSit`."""

    def upload(self, images: Sequence[Prepared]) -> Sequence[Prepared]: ...

    def score(self, images: Sequence[Prepared]) -> list[Score]: ...

    def look(
        self, images: Sequence[Prepared], questions: Sequence[Question], *, asks: Callable[[int, Score], Sequence[int]]
    ) -> list[tuple[Score, list[Answer]]]: ...


@dataclass(frozen=True)
class PreparedPhoto:
    """A photo that is ready for the model."""

    prepared: Prepared
    version: str | None = None  # the one that was read, where it was unknown
    found: ExistingResults = field(default_factory=ExistingResults)  # what the ledger has already


Batch = Sequence[tuple[ClaimedItem, PreparedPhoto]]


@dataclass
class BatchScorer:
    """
    Scores batches with one model.

    batch_tokens: the budget of a batch; an image over it runs alone. Halved when the device runs out of memory.
    probe: a good image. When the model fails on it too, the model is broken (a lost GPU, for example), not the photo.
    """

    model: Model
    dtype: str
    batch_tokens: int
    probe: Prepared | None = None

    def upload(self, batch: Batch) -> Sequence[Prepared]:
        """Start copying a batch to the device, and return its images for `score`."""
        images: Sequence[Prepared] = [photo.prepared for _, photo in batch]
        if images:
            with suppress(Exception):  # scoring meets the same error, and finds out what causes it
                images = self.model.upload(images)
        return images

    def score(self, batch: Batch, images: Sequence[Prepared], claim: Claim) -> list[Result]:
        """
        Return the result of each item; a batch that fails is split until the image that causes it is alone.

        images: as `upload` returned them. Raises ProcessUnusable when the model fails on the probe, too.
        """
        if not batch:
            return []
        try:
            return self._run_model(batch, images, claim)
        except MemoryError as error:
            reason, message = Reason.OUT_OF_MEMORY, one_line(error)
        except Exception as error:  # noqa: BLE001 -- one of these photos caused it
            reason, message = Reason.MODEL_ERROR, one_line(error)
        # outside of `except`: the error, and with it the frames that hold the batch's memory, is gone
        if len(batch) == 1:
            [(item, photo)] = batch
            if reason is Reason.MODEL_ERROR:
                self._check_model()
            size = f"{photo.prepared.width} x {photo.prepared.height} pixels"
            return [Failed(item.image_id, reason, f"{size}: {message}")]
        if reason is Reason.OUT_OF_MEMORY:
            tokens = sum(photo.prepared.tokens for _, photo in batch)
            self.batch_tokens = max(1, min(self.batch_tokens, tokens // 2))
        middle = len(batch) // 2
        halves = (batch[:middle], batch[middle:])
        return [result for half in halves for result in self.score(half, [photo.prepared for _, photo in half], claim)]

    def _run_model(self, batch: Batch, images: Sequence[Prepared], claim: Claim) -> list[Result]:
        """Return scores, and the answers that are still missing."""
        question_ids = list(claim.questions)
        asked: list[list[int]] = [[] for _ in batch]  # question ids, by image

        def asks(index: int, score: Score) -> list[int]:
            found = batch[index][1].found
            value = score.value if found.score is None or claim.rescore else found.score
            asked[index] = claim.to_ask(value, found)
            return [question_ids.index(question_id) for question_id in asked[index]]

        if question_ids:
            looks = self.model.look(images, list(claim.questions.values()), asks=asks)
        else:
            looks = [(score, []) for score in self.model.score(images)]
        results: list[Result] = []
        for (item, photo), ids, (score, given) in zip(batch, asked, looks, strict=True):
            answers = dict(zip(ids, given, strict=True))
            if photo.found.score is None or claim.rescore or not question_ids:
                results.append(Scored(item.image_id, score.value, score.logits, self.dtype, photo.version, answers))
            else:
                results.append(AlreadyScored(item.image_id, photo.version, self.dtype, answers))
        return results

    def _check_model(self) -> None:
        try:
            if self.probe is not None:
                self.model.score([self.probe])
        except Exception as error:
            raise ProcessUnusable(f"the model fails on every image and is loaded again: {one_line(error)}") from error
