"""Items from a slow iterator in batches, each on time."""

import threading
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


def batch_within(items: Iterator[T], size: int, within_s: float) -> Generator[list[T]]:
    """
    Yield the items in order, in batches of at most `size`. A batch waits at most `within_s` seconds for more items,
    even while the iterator blocks: another thread iterates. Errors of the iterator come after the items before them.
    """
    buffer = _Buffer(items, size)
    threading.Thread(target=buffer.fill, name="list", daemon=True).start()  # a daemon: a dead NAS blocks it forever
    try:
        while batch := buffer.take(within_s):
            yield batch
    finally:
        buffer.stop()


class _Buffer(Generic[T]):
    """Up to `size` items between the thread that iterates and the thread that takes batches."""

    def __init__(self, items: Iterator[T], size: int) -> None:
        self._items = items
        self._size = size
        self._ready: list[T] = []
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._is_exhausted = False
        self._is_stopped = False

    def fill(self) -> None:
        """Move items into the buffer until the iterator ends, or `stop` is called."""
        try:
            for item in self._items:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_stopped or len(self._ready) < self._size)
                    if self._is_stopped:
                        return
                    self._ready.append(item)
                    if len(self._ready) in (1, self._size):
                        self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 -- `take` raises it
            self._error = error
        finally:
            with self._changed:
                self._is_exhausted = True
                self._changed.notify_all()

    def take(self, within_s: float) -> list[T]:
        """Return the next batch; an empty one at the end. Raises what the iterator raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._is_exhausted)
            self._changed.wait_for(lambda: len(self._ready) >= self._size or self._is_exhausted, within_s)
            batch, self._ready = self._ready, []
            self._changed.notify_all()
        if not batch and self._error is not None:
            raise self._error
        return batch

    def stop(self) -> None:
        """End `fill` with the next item."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
