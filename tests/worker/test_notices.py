"""What a worker reports of its troubles: to the log once, and to `qsit status`."""

import logging
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from models.ledger import workers
from models.tables import WorkerRow
from qsit.errors import DatabaseUnavailable
from qsit.states import WorkerState
from worker.notices import Notices

OWNER = "host:1:1.00"


@pytest.fixture
def notices(engine: Engine) -> Notices:
    row = WorkerRow(
        owner=OWNER, broker="", model="demo", revision="1", device="cpu", dtype="float32", state=WorkerState.READY
    )
    workers.register(engine, row)
    return Notices(engine, OWNER, threading.Event())


def shown(engine: Engine) -> str | None:
    [worker] = workers.workers(engine)
    return worker.notice


def failing(times: int) -> Callable[[], str]:
    """A call of the ledger that fails so many times."""
    left = times

    def call() -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            raise DatabaseUnavailable("the database does not answer")
        return "done"

    return call


def test_notices_of_several_subjects_are_shown_together(engine: Engine, notices: Notices) -> None:
    notices.show("no root is mounted")
    notices.show("Redis is full", about="Redis")
    assert shown(engine) == "no root is mounted; Redis is full"

    notices.show(None)
    assert shown(engine) == "Redis is full"

    notices.show(None, about="Redis")
    assert shown(engine) is None


def test_the_standing_notice_is_shown_while_nothing_fails(engine: Engine, notices: Notices) -> None:
    notices.standing = "no GPU found"

    notices.show("no root is mounted")
    assert shown(engine) == "no root is mounted"

    notices.show(None)
    assert shown(engine) == "no GPU found"


def test_a_notice_is_logged_once(notices: Notices, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        notices.show("no root is mounted at /a%sb")

    assert [record.getMessage() for record in caplog.records] == ["no root is mounted at /a%sb"]


def test_a_call_is_repeated_until_the_database_answers_and_that_is_logged_once(
    notices: Notices, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.retry.PAUSE_S", 0.0)

    assert notices.retry(failing(3)) == "done"

    assert len(caplog.records) == 1


def test_a_stopping_worker_does_not_wait_for_the_database(engine: Engine) -> None:
    stopping = threading.Event()
    stopping.set()

    with pytest.raises(DatabaseUnavailable):
        Notices(engine, OWNER, stopping).retry(failing(1))


def test_two_activities_that_fail_with_the_same_error_log_it_once(
    notices: Notices, caplog: pytest.LogCaptureFixture
) -> None:
    for activity in ("heartbeat", "recovery", "heartbeat"):
        with notices.logging_errors(activity):
            raise DatabaseUnavailable("the database does not answer")

    assert len(caplog.records) == 1


def test_a_bug_is_logged_with_its_traceback(notices: Notices, caplog: pytest.LogCaptureFixture) -> None:
    with notices.logging_errors("recovery"):
        raise ZeroDivisionError

    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
