"""The task's turn on one chunk."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from models.claims import AlreadyScored, Claim, Result
from qsit.errors import LeaseLost
from worker import tasks


def test_a_lost_lease_ends_the_turn_and_its_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    def batches(*_: Any, **options: Any) -> Iterator[list[Result]]:
        try:
            yield [AlreadyScored(1)]
        finally:
            ended.append(True)

    def retry(call: Callable[[], object]) -> object:
        raise LeaseLost("the chunk has another owner")

    process: Any = SimpleNamespace(
        engine=None,
        lease_s=60.0,
        turn_s=20.0,
        is_interrupted=lambda: False,
        notices=SimpleNamespace(retry=retry),
        heartbeat=SimpleNamespace(holding=lambda claim: nullcontext()),
        pipeline=SimpleNamespace(run=batches),
    )

    with pytest.raises(LeaseLost) as lost:
        tasks._score_for_a_turn(process, Claim(1, 1, 1, "", False, "token", []))

    assert lost.traceback  # which keeps the generator alive, so that it is closed by the turn itself or not at all
    assert ended == [True]
