"""Batches come on time, however slow the iterator is."""

import threading
from collections.abc import Iterator

import pytest

from producer.listing.batches import batch_within

FOREVER_S = 3600.0


def test_all_items_come_in_order_in_full_batches() -> None:
    assert [item for batch in batch_within(iter(range(10_000)), 7, FOREVER_S) for item in batch] == list(range(10_000))
    assert max(map(len, batch_within(iter(range(1000)), 7, FOREVER_S))) <= 7
    assert list(batch_within(iter(range(0)), 7, FOREVER_S)) == []


def test_a_batch_does_not_wait_for_an_iterator_that_blocks() -> None:
    go_on = threading.Event()

    def slow() -> Iterator[int]:
        yield 1
        assert go_on.wait(60)
        yield 2

    batches = batch_within(slow(), 100, 0.01)

    assert next(batches) == [1]
    go_on.set()
    assert list(batches) == [[2]]


def test_an_error_comes_after_the_items_before_it() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    batches = batch_within(broken(), 100, FOREVER_S)

    assert next(batches) == [1]
    with pytest.raises(OSError, match="gone"):
        next(batches)


def test_an_iterator_that_nobody_reads_is_left() -> None:
    count = 0

    def endless() -> Iterator[int]:
        nonlocal count
        while True:
            count += 1
            yield count

    batches = batch_within(endless(), 10, FOREVER_S)
    next(batches)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "list"]
    batches.close()
    thread.join(60)

    assert not thread.is_alive()
