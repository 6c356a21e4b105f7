"""Threads that prepare photos ahead of the device, and batches cut by a budget of tokens."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from models.errors import ImageError, ModelBroken, WorkerFault
from models.ledger import ClaimedItem, Failed, Scored
from models.states import Reason
from worker.procedure import Score
from worker.tiles import Prepared

LOOK_AHEAD_BYTES = 512 * 1024 * 1024
"""Tiles that may wait for the device."""


class Model(Protocol):
    def score(self, images: Sequence[Prepared]) -> list[Score]: ...


@dataclass
class Pipeline:
    """
    Scores items with one model.

    probe: a good image, scored when another fails, to tell a broken model (a lost GPU, say) from a bad image.
    batch_tokens: the budget of a batch; an image over it goes alone. Halved when the device runs out of memory.
    look_ahead: the most photos in preparation or waiting.
    """

    model: Model
    dtype: str
    batch_tokens: int
    loaders: int
    probe: Prepared | None = None
    _fault: WorkerFault | None = None

    @property
    def look_ahead(self) -> int:
        return 32 + 2 * self.loaders

    def run(
        self,
        items: Sequence[ClaimedItem],
        prepare: Callable[[ClaimedItem], Prepared],
        start: Callable[[Sequence[int], bool], None],
        *,
        turn_s: float,
        stopping: Callable[[], bool],
    ) -> Iterator[list[Scored | Failed]]:
        """
        Results, a batch at a time: of suspects one by one and last, of the others in batches. Takes up nothing new
        after `turn_s` seconds, and drops what is in preparation when `stopping` says so.

        prepare: runs in the loader threads; may raise ImageError.
        start: called with image ids, and whether they run alone, before they are taken up.

        Raises:
            WorkerFault: at the end, when an item could not be read by the fault of this worker.
            ModelBroken: when the model fails on the probe, too.
        """
        deadline = time.monotonic() + turn_s
        self._fault = None
        suspects = [item for item in items if item.suspect]
        others = iter([item for item in items if not item.suspect])
        pool = ThreadPoolExecutor(self.loaders, thread_name_prefix="loader")
        try:
            flying: deque[tuple[ClaimedItem, Future[Prepared]]] = deque()
            while not stopping():
                if (
                    time.monotonic() < deadline
                    and len(flying) <= self.look_ahead // 2
                    and _bytes(flying) < LOOK_AHEAD_BYTES
                ):
                    window = list(islice(others, self.look_ahead - len(flying)))
                    if window:
                        start([item.image_id for item in window], False)
                    flying.extend((item, pool.submit(prepare, item)) for item in window)
                if not flying:
                    break
                yield self._batch(flying)
            for item in suspects:
                if stopping() or time.monotonic() >= deadline:
                    break
                start([item.image_id], True)
                yield self._batch(deque([(item, pool.submit(prepare, item))]))
            if self._fault is not None:
                raise self._fault
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, flying: deque[tuple[ClaimedItem, Future[Prepared]]]) -> list[Scored | Failed]:
        """Take from the front as much as the budget allows, and score it."""
        batch: list[tuple[ClaimedItem, Prepared]] = []
        failed: list[Scored | Failed] = []
        tokens = 0
        while flying:
            item, future = flying[0]
            try:
                prepared = future.result()
            except ImageError as error:
                failed.append(Failed(item.image_id, error.reason, str(error)))
            except WorkerFault as fault:
                self._fault = self._fault or fault  # the others can be scored nevertheless
            except Exception as error:  # noqa: BLE001 -- whatever it is, it is of this photo
                failed.append(Failed(item.image_id, Reason.MODEL_ERROR, f"preparing it failed: {_line(error)}"))
            else:
                if batch and tokens + prepared.tokens > self.batch_tokens:
                    break
                batch.append((item, prepared))
                tokens += prepared.tokens
            flying.popleft()
        return failed + self._score(batch)

    def _score(self, batch: list[tuple[ClaimedItem, Prepared]]) -> list[Scored | Failed]:
        """A batch that fails is split until what fails is one image."""
        if not batch:
            return []
        try:
            scores = self.model.score([prepared for _, prepared in batch])
        except MemoryError as error:
            reason, words = Reason.OUT_OF_MEMORY, _line(error)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is of one of these photos
            reason, words = Reason.MODEL_ERROR, _line(error)
        else:
            return [
                Scored(item.image_id, score.value, score.logits, self.dtype)
                for (item, _), score in zip(batch, scores, strict=True)
            ]
        # by now the error is gone, and with it the frames that held the batch's memory
        if len(batch) == 1:
            item, prepared = batch[0]
            if reason is Reason.MODEL_ERROR:
                self._check_model()
            return [Failed(item.image_id, reason, f"{prepared.width} x {prepared.height} pixels: {words}")]
        if reason is Reason.OUT_OF_MEMORY:
            tokens = sum(prepared.tokens for _, prepared in batch)
            self.batch_tokens = max(1, min(self.batch_tokens, tokens // 2))
        half = len(batch) // 2
        return self._score(batch[:half]) + self._score(batch[half:])

    def _check_model(self) -> None:
        if self.probe is None:
            return
        try:
            self.model.score([self.probe])
        except Exception as error:
            raise ModelBroken(f"the model fails on every image, and is loaded anew: {_line(error)}") from error


def _bytes(flying: deque[tuple[ClaimedItem, Future[Prepared]]]) -> int:
    done = (future for _, future in flying if future.done() and not future.exception())
    return sum(future.result().tiles.nbytes for future in done)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
