"""The lists of --files-from: lines, NUL-separated names, CSV, TSV and JSON Lines."""

import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO

from qsit.errors import SourceError, UsageError


@dataclass(frozen=True)
class ListFile:
    """
    A list of sources in a file that can be read more than once.

    name: as the user gave it; column: of CSV and TSV, or key of JSON Lines.
    """

    path: Path
    name: str
    column: str | None = None
    null_separated: bool = False

    def sources(self) -> Iterator[str]:
        """
        The sources of the list, streaming; empty ones are left out.

        Raises:
            UsageError: when the list has no such column.
            SourceError: when it cannot be read.
        """
        try:
            with self.path.open("r", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                yield from filter(None, self._entries(file))
        except (OSError, csv.Error) as error:
            raise SourceError(f"cannot read the list {self.name}: {error}") from error

    def _entries(self, file: IO[str]) -> Iterator[str]:
        if self.null_separated:
            return _null_separated(file)
        first = file.readline()
        if _is_json(first):
            return self._json_lines(chain([first], file))
        if self.column is not None:
            return self._column_of(first, file)
        return (line.rstrip("\r\n") for line in chain([first], file) if line.strip())

    def _column_of(self, header: str, file: IO[str]) -> Iterator[str]:
        dialect = csv.excel_tab if "\t" in header else csv.excel
        names = next(csv.reader([header], dialect), [])
        if self.column not in names:
            raise UsageError(f"--column {self.column}: the list has {', '.join(names) or 'no header line'}")
        place = names.index(self.column)
        for row in csv.reader(file, dialect):
            if len(row) > place:
                yield row[place]

    def _json_lines(self, lines: Iterator[str]) -> Iterator[str]:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SourceError(f"cannot read the list {self.name}: line {number} is no JSON: {error}") from error
            if isinstance(entry, dict):
                if self.column is None:
                    raise UsageError(f"the list is JSON Lines; say with --column where its photos are: {_keys(entry)}")
                if self.column not in entry and number == 1:
                    raise UsageError(f"--column {self.column}: the list has {_keys(entry)}")
                entry = entry.get(self.column)
            if not isinstance(entry, str | None):
                raise SourceError(f"cannot read the list {self.name}: line {number} has {entry!r} where a name belongs")
            yield entry or ""


@contextmanager
def opened_list(name: str | None, column: str | None, *, null_separated: bool) -> Iterator[ListFile | None]:
    """
    The list of --files-from, kept in a file of its own where it is standard input or a pipe.

    Raises:
        UsageError: when options of a list are given without one, or contradict each other.
        SourceError: when there is no such file.
    """
    if column is not None and null_separated:
        raise UsageError("--column is of lists with lines; -0 is of lists without")
    if name is None:
        if column is not None or null_separated:
            raise UsageError("--column and -0 are about the list of --files-from; name one")
        yield None
        return
    path = Path(name).expanduser()
    if name != "-" and path.is_file():
        yield ListFile(path, name, column, null_separated)
        return
    with tempfile.NamedTemporaryFile(prefix="qsit-list-") as copy:
        try:
            if name != "-":
                with path.open("rb") as pipe:
                    shutil.copyfileobj(pipe, copy)
            elif sys.stdin is not None:
                shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.flush()
        except OSError as error:
            raise SourceError(f"cannot read the list {name}: {error.strerror}") from error
        yield ListFile(Path(copy.name), name, column, null_separated)


def _is_json(line: str) -> bool:
    if not line.lstrip().startswith(("{", '"')):
        return False
    try:
        return isinstance(json.loads(line), dict | str)
    except (ValueError, RecursionError):
        return False


def _keys(entry: dict[str, object]) -> str:
    return ", ".join(entry) or "no key"


def _null_separated(file: IO[str]) -> Iterator[str]:
    rest = ""
    while block := file.read(1 << 20):
        *complete, rest = (rest + block).split("\0")
        yield from complete
    yield rest
