"""The lists of --files-from: lines, names separated by NUL bytes, and CSV."""

import csv
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from qsit.errors import SourceError, UsageError


@contextmanager
def opened_list(name: str | None, column: str | None, *, null_separated: bool) -> Iterator["ListFile | None"]:
    """Open the list of --files-from. Standard input and pipes are copied to a temporary file."""
    if column is not None and null_separated:
        raise UsageError("--column is for lists with lines; -0 is for lists without")
    if name is None:
        if column is not None or null_separated:
            raise UsageError("--column and -0 describe the list of --files-from; name one")
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


@dataclass(frozen=True)
class ListFile:
    """A list of sources in a file that can be read more than once. name: as the user gave it."""

    path: Path
    name: str
    column: str | None  # of a CSV file
    null_separated: bool

    def entries(self) -> Iterator[str]:
        """Yield the sources in the list as text. Empty ones are left out."""
        try:
            with self.path.open("r", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                if self.null_separated:
                    found = _split_at_nul(file)
                elif self.column is not None:
                    found = _read_column(file, self.column)
                else:
                    found = (line.rstrip("\r\n") for line in file if line.strip())
                yield from filter(None, found)
        except (OSError, csv.Error) as error:
            raise SourceError(f"cannot read the list {self.name}: {error}") from error


def _split_at_nul(file: IO[str]) -> Iterator[str]:
    rest = ""
    while block := file.read(1 << 20):
        *complete, rest = (rest + block).split("\0")
        yield from complete
    yield rest


def _read_column(file: IO[str], column: str) -> Iterator[str]:
    rows = csv.reader(file)
    header = next(rows, [])
    if column not in header:
        raise UsageError(f"--column {column}: the list has {', '.join(header) or 'no header line'}")
    index = header.index(column)
    for row in rows:
        if len(row) > index:
            yield row[index]
