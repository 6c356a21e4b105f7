"""Threads that prepare photos ahead of the device and keep it busy, and batches cut by a budget of tokens."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from models.claims import AlreadyScored, Claim, ClaimedItem, ExistingResults, Failed, Result, Scored
from qsit.errors import ImageError, ProcessUnusable, QsitError, WorkerFault
from qsit.questions import Answer, Question
from qsit.rating import Score
from qsit.states import Reason
from worker.inference.tiles import Prepared

LOOK_AHEAD_BYTES = 512 * 1024 * 1024
"""Tiles that may wait for the device."""
IDLE_S = 0.25
"""How long a device that has nothing to do waits for the next photo before it gets a batch that is not full."""


class Model(Protocol):
    def upload(self, images: Sequence[Prepared]) -> Sequence[Prepared]: ...

    def score(self, images: Sequence[Prepared]) -> list[Score]: ...

    def look(
        self,
        images: Sequence[Prepared],
        questions: Sequence[Question],
        *,
        asks: Callable[[int, Score], Sequence[int]],
    ) -> list[tuple[Score, list[Answer]]]: ...


@dataclass(frozen=True)
class PreparedPhoto:
    """A photo that is ready for the model; version: the one that was read, where it was unknown."""

    prepared: Prepared
    version: str | None = None
    found: ExistingResults = field(default_factory=ExistingResults)


@dataclass
class PrepareTask:
    """An item in the hands of a loader thread; decoding_since: on the monotonic clock."""

    item: ClaimedItem
    decoding_since: float | None = None
    future: Future[PreparedPhoto | AlreadyScored] = field(init=False)

    def decoding(self) -> None:
        """Tells that from now on it is the photo that takes its time."""
        self.decoding_since = time.monotonic()

    def is_done(self, wait_s: float, unless: "Future[list[Result]] | None" = None) -> bool:
        """Whether something has come of it, if need be after waiting so long, or until `unless` is done."""
        if not self.future.done():  # waiting costs more than a small photo, also for what is there
            waited_for: list[Future[Any]] = [self.future] if unless is None else [self.future, unless]
            wait(waited_for, timeout=wait_s, return_when=FIRST_COMPLETED)
        return self.future.done()

    def is_stuck(self, decode_s: float) -> bool:
        """Whether it is decoded for longer than it may."""
        return self.decoding_since is not None and time.monotonic() - self.decoding_since > decode_s

    @property
    def bytes(self) -> int:
        """Of tiles that wait for the device."""
        if not self.future.done() or self.future.exception() is not None:
            return 0
        ready = self.future.result()
        return ready.prepared.tiles.nbytes if isinstance(ready, PreparedPhoto) else 0


@dataclass
class Pipeline:
    """
    Scores items with one model.

    decode_s: how long decoding and cutting one photo may take.

    probe: a good image, scored when another fails, to tell a broken model (a lost GPU, say) from a bad image.
    batch_tokens: the budget of a batch; an image over it goes alone. Halved when the device runs out of memory.
    look_ahead: the most photos in preparation or waiting.
    """

    model: Model
    dtype: str
    batch_tokens: int
    loaders: int
    probe: Prepared | None = None
    decode_s: float = 60.0
    _fault: WorkerFault | None = None
    _claim: Claim | None = None
    _device: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="device"))

    @property
    def look_ahead(self) -> int:
        return 64 + 2 * self.loaders

    def run(
        self,
        items: Sequence[ClaimedItem],
        prepare: Callable[[ClaimedItem, Callable[[], None]], PreparedPhoto | AlreadyScored],
        start: Callable[[Sequence[int], bool], None],
        *,
        turn_s: float,
        stopping: Callable[[], bool],
        claim: Claim | None = None,
    ) -> Iterator[list[Result]]:
        """
        Results, a batch at a time: of suspects one by one and last, of the others in batches. While the caller has a
        batch's results, the next batch is scored. Takes up nothing new after `turn_s` seconds, and drops what is in
        preparation or waits for the device when `stopping` says so.

        prepare: runs in the loader threads, and calls its second argument when it has read and begins to decode; may
        raise ImageError.
        start: called with image ids, and whether they run alone, before they are taken up.
        claim: has the questions that are asked about them, if any.

        Raises:
            WorkerFault: at the end, when an item could not be read by the fault of this worker.
            ProcessSpent: when the model fails on the probe, too; at the end, when decoding does not come back.
        """
        deadline = time.monotonic() + turn_s
        self._fault = None
        self._claim = claim
        suspects = [item for item in items if item.suspect]
        others = iter([item for item in items if not item.suspect])
        pool = ThreadPoolExecutor(self.loaders, thread_name_prefix="loader")

        def load(item: ClaimedItem) -> PrepareTask:
            loading = PrepareTask(item)
            loading.future = pool.submit(prepare, item, loading.decoding)
            return loading

        flying: deque[PrepareTask] = deque()
        running: Future[list[Result]] | None = None
        try:
            while not (stopping() or self._is_spent):
                if (
                    time.monotonic() < deadline
                    and len(flying) <= self.look_ahead // 2
                    and sum(loading.bytes for loading in flying) < LOOK_AHEAD_BYTES
                ):
                    window = list(islice(others, self.look_ahead - len(flying)))
                    if window:
                        start([item.image_id for item in window], False)
                    flying.extend(map(load, window))
                if not flying:
                    break
                before, running = running, self._begin(flying, stopping, running)
                if before is not None:
                    yield before.result()
            if running is not None:
                yield running.result()
            for item in suspects:
                if stopping() or self._is_spent or time.monotonic() >= deadline:
                    break
                start([item.image_id], True)
                if (alone := self._begin(deque([load(item)]), stopping)) is not None:
                    yield alone.result()
            if self._fault is not None:
                raise self._fault
        finally:
            if running is not None:
                running.cancel()
            pool.shutdown(wait=not (self._is_spent or stopping()), cancel_futures=True)

    @property
    def _is_spent(self) -> bool:
        return isinstance(self._fault, ProcessUnusable)

    def _begin(
        self, flying: deque[PrepareTask], stopping: Callable[[], bool], running: Future[list[Result]] | None = None
    ) -> Future[list[Result]] | None:
        """Have the next batch scored as soon as the device is free, unless it is time to stop by then."""
        batch, settled = self._next(flying, stopping, running)
        if not batch and not settled:
            return None
        images: Sequence[Prepared] = [ready.prepared for _, ready in batch]
        if batch:
            with suppress(Exception):  # whatever it is, scoring will meet it, too, and find out whose fault it is
                images = self.model.upload(images)
        return self._device.submit(lambda: settled if stopping() else settled + self._score(batch, images))

    def _next(
        self, flying: deque[PrepareTask], stopping: Callable[[], bool], running: Future[list[Result]] | None
    ) -> tuple[list[tuple[ClaimedItem, PreparedPhoto]], list[Result]]:
        """
        Take from the front as much as the budget allows, or is there when it is time to stop or the device has nothing
        to do: a batch, and what has its result already.
        """
        batch: list[tuple[ClaimedItem, PreparedPhoto]] = []
        settled: list[Result] = []
        tokens = 0
        while flying and not self._is_spent:
            item = flying[0].item
            patience_s = min(1.0, self.decode_s / 2)
            if not flying[0].is_done(patience_s, running):
                is_idle = running is not None and running.done()
                if stopping() or (is_idle and not flying[0].is_done(IDLE_S)):
                    break
                # twice: a process that was stopped meanwhile, or its whole machine, finds the time gone
                if flying[0].is_stuck(self.decode_s) and not flying[0].is_done(patience_s):
                    words = f"decoding it takes longer than {self.decode_s:g} s (QSIT_DECODE_S)"
                    settled.append(Failed(item.image_id, Reason.TIMEOUT, words))
                    self._fault = ProcessUnusable("decoding a photo takes too long; the process is replaced")
                continue
            try:
                ready = flying[0].future.result()
            except ImageError as error:
                settled.append(Failed(item.image_id, error.reason, str(error)))
            except QsitError as fault:  # the others can be scored nevertheless
                self._fault = self._fault or (fault if isinstance(fault, WorkerFault) else WorkerFault(str(fault)))
            except Exception as error:  # noqa: BLE001 -- whatever it is, it is of this photo
                settled.append(Failed(item.image_id, Reason.MODEL_ERROR, f"preparing it failed: {_line(error)}"))
            else:
                if isinstance(ready, AlreadyScored):
                    settled.append(ready)
                elif batch and tokens + ready.prepared.tokens > self.batch_tokens:
                    break
                else:
                    batch.append((item, ready))
                    tokens += ready.prepared.tokens
            flying.popleft()
        return batch, settled

    def _score(self, batch: list[tuple[ClaimedItem, PreparedPhoto]], images: Sequence[Prepared]) -> list[Result]:
        """A batch that fails is split until what fails is one image."""
        if not batch:
            return []
        try:
            return self._looked_at(batch, images)
        except MemoryError as error:
            reason, words = Reason.OUT_OF_MEMORY, _line(error)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is of one of these photos
            reason, words = Reason.MODEL_ERROR, _line(error)
        # by now the error is gone, and with it the frames that held the batch's memory
        if len(batch) == 1:
            item, prepared = batch[0][0], batch[0][1].prepared
            if reason is Reason.MODEL_ERROR:
                self._check_model()
            return [Failed(item.image_id, reason, f"{prepared.width} x {prepared.height} pixels: {words}")]
        if reason is Reason.OUT_OF_MEMORY:
            tokens = sum(ready.prepared.tokens for _, ready in batch)
            self.batch_tokens = max(1, min(self.batch_tokens, tokens // 2))
        del images
        half = len(batch) // 2
        halves = (batch[:half], batch[half:])
        return [result for part in halves for result in self._score(part, [ready.prepared for _, ready in part])]

    def _looked_at(self, batch: list[tuple[ClaimedItem, PreparedPhoto]], images: Sequence[Prepared]) -> list[Result]:
        """What the model finds in a batch: scores, and the answers that are still to be given."""
        claim = self._claim
        if claim is None or not claim.questions:
            return [
                Scored(item.image_id, score.value, score.logits, self.dtype, ready.version)
                for (item, ready), score in zip(batch, self.model.score(images), strict=True)
            ]
        question_ids = list(claim.questions)
        asked: list[list[int]] = [[] for _ in batch]

        def asks(place: int, score: Score) -> list[int]:
            found = batch[place][1].found
            known = score.value if found.score is None or claim.rescore else found.score
            asked[place] = claim.to_ask(known, found)
            return [question_ids.index(each) for each in asked[place]]

        looks = self.model.look(images, list(claim.questions.values()), asks=asks)
        results: list[Result] = []
        for (item, ready), ids, (score, answers) in zip(batch, asked, looks, strict=True):
            given = dict(zip(ids, answers, strict=True))
            if ready.found.score is None or claim.rescore:
                results.append(Scored(item.image_id, score.value, score.logits, self.dtype, ready.version, given))
            else:
                results.append(AlreadyScored(item.image_id, ready.version, self.dtype, given))
        return results

    def _check_model(self) -> None:
        if self.probe is None:
            return
        try:
            self.model.score([self.probe])
        except Exception as error:
            raise ProcessUnusable(f"the model fails on every image, and is loaded anew: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
