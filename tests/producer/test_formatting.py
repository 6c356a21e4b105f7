"""Results and numbers as text."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from producer import formatting
from producer.exit_codes import ExitCode, exit_status
from qsit.sources.uris import uri_of
from qsit.states import JobState
from tests.support.records import HOSTILE, PROGRESS, RESULT


@pytest.mark.parametrize(("scale", "text"), [("0-1", "0.2500"), ("0-5", "1.250"), ("1-5", "2.000")])
def test_a_score_is_shown_on_each_scale(scale: str, text: str) -> None:
    assert formatting.scaled(0.25, scale) == text


def test_times_are_in_utc() -> None:
    local = datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))

    assert formatting.utc(local) == "2025-12-31T23:00:00.000000Z"
    assert formatting.utc(local.astimezone(UTC)) == "2025-12-31T23:00:00.000000Z"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("/p/清晰 ä.jpg", "/p/清晰 ä.jpg"),
        ("a\u3000b\u00a0c", "a\u3000b\u00a0c"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb\u2066c\u200fd", r"a\u202eb\u2066c\u200fd"),
        ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text: str, escaped: str) -> None:
    assert formatting.in_one_line(text) == escaped
    assert formatting.in_one_line(escaped) == escaped


def test_a_row_is_one_line_whatever_the_file_is_called() -> None:
    row = formatting.row(replace(RESULT, uri=uri_of("/p/" + HOSTILE)), "0-1")

    assert row.isprintable()
    assert row.split()[:2] == ["0.2500", "Bad"]


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (95, "1 min 35 s"), (7260, "2 h 1 min")])
def test_a_duration_has_two_units(seconds: float, text: str) -> None:
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("allowed", "failed", "tolerated"),
    [("0", 0, True), ("0", 1, False), ("3", 3, True), ("1%", 10, True), ("1%", 11, False)],
)
def test_the_exit_status_says_whether_more_failed_than_allowed(allowed: str, failed: int, tolerated: bool) -> None:
    progress = replace(PROGRESS, scored=1000 - failed, failed=failed, max_failed=allowed)

    assert progress.tolerated is tolerated
    assert exit_status(progress) == (ExitCode.OK if tolerated else ExitCode.HAS_FAILURES)
    assert exit_status(replace(progress, state=JobState.CANCELLED)) == ExitCode.COULD_NOT_RUN
