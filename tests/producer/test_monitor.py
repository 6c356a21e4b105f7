"""Waiting for a job, on a clock of its own."""

import io
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console
from sqlalchemy import Engine, event, update

from models.db import writing
from models.ledger import control
from models.ledger.listing import begin_listing
from models.queries.progress import Progress
from models.tables import JobRow
from producer import monitor
from producer.monitor import POLL_S, TAKE_OVER_S, JobMonitor
from producer.notices import NoticePrinter
from qsit.errors import DatabaseUnavailable
from qsit.states import JobState
from tests.support.ledger import listed, photos


class Clock:
    """A clock that a sleep moves at once; `events` happen when it has passed their time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[tuple[float, Callable[[], object]]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        while self.events and self.events[0][0] <= self.now:
            self.events.pop(0)[1]()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(monitor, "time", clock)
    return clock


@pytest.fixture
def sums(engine: Engine) -> Iterator[list[str]]:
    """The statements so far that sum up chunks."""
    statements: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        if "GROUP BY chunks.state" in statement:
            statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine, "before_cursor_execute", note)


def printer_to(output: io.StringIO) -> NoticePrinter:
    return NoticePrinter(Console(file=output, width=20))


def test_chunks_are_summed_once_per_second_and_the_end_is_noticed_at_once(
    engine: Engine, clock: Clock, sums: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobMonitor, "_show_notices", lambda _: None)  # which have a pace of their own
    job = listed(engine, photos(3))
    clock.events.append((10.1, lambda: control.cancel(engine, job)))
    shown: list[Progress] = []

    done = JobMonitor(engine, job, printer_to(io.StringIO()), shown.append).wait_until_done()

    assert (done.state, done.cancelled) == (JobState.CANCELLED, 3)
    assert clock.now - 10.1 <= POLL_S
    assert len(sums) <= 10.1 + 2
    assert shown[-1] == done


def test_a_listing_that_another_process_gave_up_is_taken_over_in_turns(engine: Engine, clock: Clock) -> None:
    job = listed(engine, photos(1))
    with writing(engine) as connection:
        connection.execute(update(JobRow).values(listed_at=None))
    assert begin_listing(engine, job)
    clock.events.append((3.5 * TAKE_OVER_S, lambda: control.cancel(engine, job)))
    taken_over: list[float] = []

    JobMonitor(
        engine, job, printer_to(io.StringIO()), lambda _: None, take_over=lambda: taken_over.append(clock.now)
    ).wait_until_done()

    assert len(taken_over) == 3
    assert taken_over[0] >= TAKE_OVER_S


def test_what_holds_a_job_up_is_said_once_and_what_check_raises_ends_the_wait(engine: Engine, clock: Clock) -> None:
    job = listed(engine, photos(1))
    output = io.StringIO()

    def check(_: Progress) -> None:
        if clock.now > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        JobMonitor(engine, job, printer_to(output), lambda _: None, check=check).wait_until_done()

    [line] = output.getvalue().splitlines()
    assert line.startswith(f"job {job}: ")
    assert "qsit worker --model" in line


def test_notices_are_shown_once_and_again_when_they_come_back() -> None:
    output = io.StringIO()
    printer = printer_to(output)

    for keys in ("a", "ab", "b", "ab"):
        printer.show_new({key: f"notice {key}" for key in keys})

    assert output.getvalue().split("\n") == ["notice a", "notice b", "notice a", ""]


def test_an_outage_is_announced_once_for_each_reason_until_the_database_is_back() -> None:
    output = io.StringIO()
    printer = printer_to(output)
    first, second = DatabaseUnavailable("it is locked"), DatabaseUnavailable("it is gone")

    for error in (first, first, second, None, None, second):
        printer.on_outage(error)

    reasons = [line.split(";")[0] for line in output.getvalue().splitlines()]
    assert reasons == ["it is locked", "it is gone", "it is gone"]


def test_a_message_is_printed_as_it_is_in_one_escaped_line() -> None:
    output = io.StringIO()

    printer_to(output).say("[bold]/p/:smile: and a long name.jpg[/bold] \x1b[31m\n\u202e")

    assert output.getvalue() == "[bold]/p/:smile: and a long name.jpg[/bold] \\x1b[31m\\n\\u202e\n"
