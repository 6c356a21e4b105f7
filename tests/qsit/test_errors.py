"""Errors as one line."""

import pytest

from qsit.errors import one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\n  second\t third"), "first second third"),
        (ValueError(), "ValueError"),
        (KeyboardInterrupt("\n"), "KeyboardInterrupt"),
    ],
)
def test_an_error_is_one_line(error: BaseException, line: str) -> None:
    assert one_line(error) == line
