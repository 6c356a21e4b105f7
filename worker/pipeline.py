"""Loader threads prepare photos ahead of the device, and batches are cut by a budget of tokens."""

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from models.claims import AlreadyScored, Claim, ClaimedItem, Failed, Result
from qsit.errors import ImageError, ProcessUnusable, QsitError, WorkerFault, one_line
from qsit.states import Reason
from worker.scoring import BatchScorer, PreparedPhoto

LOOK_AHEAD_BYTES = 512 * 1024 * 1024
"""Tiles that may wait for the device."""
IDLE_S = 0.25
"""How long an idle device waits for the next photo before it gets a batch that is not full."""
Running = Future[list[Result]]
"""A batch that the device scores."""


class Loader(Protocol):
    """Its method runs in the loader threads, and calls on_decoding when it has read and starts to decode."""

    def load(
        self, item: ClaimedItem, claim: Claim, on_decoding: Callable[[], None]
    ) -> PreparedPhoto | AlreadyScored: ...


@dataclass
class PrepareTask:
    """An item in the hands of a loader thread."""

    item: ClaimedItem
    future: Future[PreparedPhoto | AlreadyScored] = field(init=False)
    decoding_since: float = math.inf  # on the pipeline's clock. Reading may take any time: the storage may be slow

    def is_done(self, wait_s: float, unless: Running | None = None) -> bool:
        """Wait this long, or until `unless` is done, and return whether the photo is loaded or has failed."""
        if not self.future.done():  # even when nothing is left to wait for, `wait` costs more than a small photo
            futures: list[Future[Any]] = [self.future] if unless is None else [self.future, unless]
            wait(futures, timeout=wait_s, return_when=FIRST_COMPLETED)
        return self.future.done()

    @property
    def bytes(self) -> int:
        """The size of its tiles that wait for the device."""
        if not self.future.done() or self.future.exception() is not None:
            return 0
        photo = self.future.result()
        return photo.prepared.tiles.nbytes if isinstance(photo, PreparedPhoto) else 0


@dataclass
class Pipeline:
    """Scores the items of a claim."""

    scorer: BatchScorer
    loader: Loader
    loaders: int  # threads
    decode_s: float = 60.0  # how long decoding and cutting one photo may take
    idle_s: float = IDLE_S
    clock: Callable[[], float] = time.monotonic
    _fault: WorkerFault | None = None
    _device: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="device"))

    @property
    def look_ahead(self) -> int:
        """The most photos in preparation or waiting."""
        return 64 + 2 * self.loaders

    def run(
        self,
        claim: Claim,
        mark_in_flight: Callable[[Sequence[int], bool], None],
        *,
        turn_s: float,
        stopping: Callable[[], bool],
    ) -> Generator[list[Result], None, None]:
        """
        Yield results by batch: first those of most items in full batches, then those of suspects one by one.

        While the caller records a batch, the device scores the next one. After `turn_s` seconds the pipeline starts no
        further photo. Once `stopping` returns True, it drops what it prepares and what waits for the device.

        mark_in_flight: called with image ids, and whether they run alone, before they are loaded.

        Raises ProcessUnusable when the model fails on the probe and, at the end, when decoding does not return; and
        WorkerFault, at the end, when this worker could not read an item that others may.
        """
        deadline = self.clock() + turn_s
        self._fault = None
        suspects = [item for item in claim.items if item.suspect]
        others = iter([item for item in claim.items if not item.suspect])
        pool = ThreadPoolExecutor(self.loaders, thread_name_prefix="loader")

        def prepare(item: ClaimedItem) -> PrepareTask:
            def note_decoding() -> None:
                task.decoding_since = self.clock()

            task = PrepareTask(item)
            task.future = pool.submit(self.loader.load, item, claim, note_decoding)
            return task

        in_flight: deque[PrepareTask] = deque()
        running: Running | None = None
        try:
            while not (stopping() or self._is_unusable):
                if self.clock() < deadline and self._has_room(in_flight):
                    window = list(islice(others, self.look_ahead - len(in_flight)))
                    if window:
                        mark_in_flight([item.image_id for item in window], False)
                    in_flight.extend(map(prepare, window))
                if not in_flight:
                    break
                before, running = running, self._start_batch(claim, in_flight, stopping, running)
                if before is not None:
                    yield before.result()
            if running is not None:
                yield running.result()
            for item in suspects:
                if stopping() or self._is_unusable or self.clock() >= deadline:
                    break
                mark_in_flight([item.image_id], True)
                if (alone := self._start_batch(claim, deque([prepare(item)]), stopping)) is not None:
                    yield alone.result()
            if self._fault is not None:
                raise self._fault
        finally:
            if running is not None:
                running.cancel()
            pool.shutdown(wait=not (self._is_unusable or stopping()), cancel_futures=True)

    @property
    def _is_unusable(self) -> bool:
        return isinstance(self._fault, ProcessUnusable)

    def _has_room(self, in_flight: deque[PrepareTask]) -> bool:
        return len(in_flight) <= self.look_ahead // 2 and sum(task.bytes for task in in_flight) < LOOK_AHEAD_BYTES

    def _start_batch(
        self, claim: Claim, in_flight: deque[PrepareTask], stopping: Callable[[], bool], running: Running | None = None
    ) -> Running | None:
        """Have the next batch scored as soon as the device is free, unless the worker is stopping by then."""
        batch, settled = self._next_batch(in_flight, stopping, running)
        if not batch and not settled:
            return None
        images = self.scorer.upload(batch)
        return self._device.submit(lambda: settled if stopping() else settled + self.scorer.score(batch, images, claim))

    def _next_batch(
        self, in_flight: deque[PrepareTask], stopping: Callable[[], bool], running: Running | None
    ) -> tuple[list[tuple[ClaimedItem, PreparedPhoto]], list[Result]]:
        """
        Take a batch from the front, and the results of items that need no model.

        The batch is as large as the budget allows, or smaller when the worker is stopping or the device is idle.
        """
        batch: list[tuple[ClaimedItem, PreparedPhoto]] = []
        settled: list[Result] = []
        tokens = 0
        while in_flight and not self._is_unusable:
            task = in_flight[0]
            image_id = task.item.image_id
            wait_s = min(1.0, self.decode_s / 2)
            if not task.is_done(wait_s, running):
                is_idle = running is not None and running.done()
                if stopping() or (is_idle and not task.is_done(self.idle_s)):
                    break
                # the second wait is for a process or machine that was suspended: its clock went on, its decoder did not
                if self.clock() - task.decoding_since > self.decode_s and not task.is_done(wait_s):
                    message = f"decoding it takes longer than {self.decode_s:g} s (QSIT_DECODE_S)"
                    settled.append(Failed(image_id, Reason.TIMEOUT, message))
                    self._fault = ProcessUnusable("decoding a photo takes too long; the process is replaced")
                continue
            try:
                photo = task.future.result()
            except ImageError as error:
                settled.append(Failed(image_id, error.reason, str(error)))
            except QsitError as fault:  # the other items can still be scored
                self._fault = self._fault or (fault if isinstance(fault, WorkerFault) else WorkerFault(str(fault)))
            except Exception as error:  # noqa: BLE001 -- this photo caused it
                settled.append(Failed(image_id, Reason.MODEL_ERROR, f"preparing it failed: {one_line(error)}"))
            else:
                if isinstance(photo, AlreadyScored):
                    settled.append(photo)
                elif batch and tokens + photo.prepared.tokens > self.scorer.batch_tokens:
                    break
                else:
                    batch.append((task.item, photo))
                    tokens += photo.prepared.tokens
            in_flight.popleft()
        return batch, settled
