"""Items from a slow iterator in batches, each on time."""

import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")


def batch_within(items: Iterator[T], size: int, within_s: float) -> Generator[list[T]]:
    """
    Yield the items in order, in batches of at most `size`. A batch waits at most `within_s` seconds for more items,
    even while the iterator blocks: another thread iterates. Errors of the iterator come after the items before them.
    """
    changed = threading.Condition()
    ready: list[T] = []
    errors: list[BaseException] = []
    is_exhausted = is_stopped = False

    def fill() -> None:
        nonlocal is_exhausted
        try:
            for item in items:
                with changed:
                    changed.wait_for(lambda: is_stopped or len(ready) < size)
                    if is_stopped:
                        return
                    ready.append(item)
                    if len(ready) in (1, size):
                        changed.notify_all()
        except BaseException as error:  # noqa: BLE001 -- raised below
            errors.append(error)
        finally:
            with changed:
                is_exhausted = True
                changed.notify_all()

    threading.Thread(target=fill, name="list", daemon=True).start()  # a daemon: a dead NAS blocks it forever
    try:
        while True:
            with changed:
                changed.wait_for(lambda: ready or is_exhausted)
                changed.wait_for(lambda: len(ready) >= size or is_exhausted, within_s)
                batch = ready.copy()
                ready.clear()
                changed.notify_all()
            if not batch:
                break
            yield batch
        if errors:
            raise errors[0]
    finally:
        with changed:
            is_stopped = True
            changed.notify_all()
