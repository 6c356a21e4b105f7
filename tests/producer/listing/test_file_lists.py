"""The lists of --files-from, as people and programs write them."""

import io
import os
import threading
from pathlib import Path

import pytest

from producer.listing.file_lists import opened_list
from qsit.errors import UsageError


def entries(
    content: bytes | str, folder: Path, column: str | None = None, *, null_separated: bool = False
) -> list[str]:
    path = folder / "list"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with opened_list(str(path), column, null_separated=null_separated) as found:
        assert found is not None
        return list(found.entries())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a.jpg\nb.jpg", ["a.jpg", "b.jpg"]),
        ("a.jpg\r\n\r\n  \nb c.jpg\r\n", ["a.jpg", "b c.jpg"]),
        ("\ufeffa.jpg\n", ["a.jpg"]),
        ('{"uri": "a.jpg"}\n', ['{"uri": "a.jpg"}']),
        ("a\tb.jpg\n", ["a\tb.jpg"]),
        ("{a}.jpg\n[b].jpg\n", ["{a}.jpg", "[b].jpg"]),
        ('"quoted" name.jpg\n', ['"quoted" name.jpg']),
        ("s3://bucket/a,b.jpg\n", ["s3://bucket/a,b.jpg"]),
        ("", []),
    ],
)
def test_lines(tmp_path: Path, content: str, expected: list[str]) -> None:
    assert entries(content, tmp_path) == expected


def test_names_between_nul_bytes_may_contain_any_other_bytes(tmp_path: Path) -> None:
    names = [b"a\nb.jpg", b"caf\xe9.jpg", b'{"uri": 1}']

    found = entries(b"\0".join(names) + b"\0", tmp_path, null_separated=True)

    assert [os.fsencode(name) for name in found] == names


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("id,path\n1,a.jpg\n2,b.jpg\n", ["a.jpg", "b.jpg"]),
        ('id,path\n1,"a, ""b"".jpg"\n', ['a, "b".jpg']),
        ('id,path\n1,"two\nlines.jpg"\n', ["two\nlines.jpg"]),
        ("path,id\na.jpg\n,2\n\nb.jpg,3,4\n", ["a.jpg", "b.jpg"]),
    ],
)
def test_tables(tmp_path: Path, content: str, expected: list[str]) -> None:
    assert entries(content, tmp_path, "path") == expected


@pytest.mark.parametrize(
    ("content", "column", "error", "words"),
    [
        ("id,path\n1,x\n", "file", UsageError, "--column file: the list has id, path"),
        ("", "file", UsageError, "no header line"),
    ],
)
def test_a_bad_list_is_refused_in_one_line(
    tmp_path: Path, content: str, column: str | None, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as said:
        entries(content, tmp_path, column)
    assert "\n" not in str(said.value)


def test_a_pipe_can_be_read_twice(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_text("a.jpg\nb.jpg\n"), daemon=True).start()

    with opened_list(str(pipe), None, null_separated=False) as found:
        assert found is not None
        assert list(found.entries()) == list(found.entries()) == ["a.jpg", "b.jpg"]


def test_standard_input_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (None, io.TextIOWrapper(io.BytesIO(b""))):
        monkeypatch.setattr("sys.stdin", stream)
        with opened_list("-", None, null_separated=False) as found:
            assert found is not None
            assert list(found.entries()) == []


@pytest.mark.parametrize(
    ("column", "null_separated", "words"), [("uri", False, "name one"), (None, True, "name one"), ("a", True, "-0 is")]
)
def test_options_of_a_list_need_a_list(column: str | None, null_separated: bool, words: str) -> None:
    with pytest.raises(UsageError, match=words), opened_list(None, column, null_separated=null_separated):
        pass
