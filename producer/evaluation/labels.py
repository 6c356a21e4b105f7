"""The labels of a dataset: photos, each with people's opinion of it."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from producer.evaluation.report import RowSkip, Skipped
from qsit.errors import SourceError, UsageError

ARROW = "->"
"""Separates the file name from the opinion in the ids of Q-SiT's lists."""


class Label(NamedTuple):
    """People's opinion of one photo; path: as the file has it."""

    path: str
    opinion: float


class Columns(NamedTuple):
    """The names of the columns with paths and opinions; None: as in the lists of Q-Align and Q-Bench."""

    path: str | None = None
    opinion: str | None = None

    def find(self, header: Sequence[str]) -> tuple[int, int]:
        """Return the indices of both columns. Raises UsageError when the header has one of them not exactly once."""
        path, opinion = self.path or "img_path", self.opinion or "gt_score"
        for name, option in ((path, "--path-column"), (opinion, "--score-column")):
            if header.count(name) != 1:
                many = "more than one column" if name in header else "no column"
                names = ", ".join(header) or "(no header)"
                raise UsageError(f"the labels have {many} {name}; set {option} to one of: {names}")
        return header.index(path), header.index(opinion)


Row = tuple[object, object]
"""A path and an opinion as the file has them."""


def read_labels(name: str, columns: Columns, skipped: Skipped) -> list[Label]:
    """
    Read a CSV or TSV file with a header, a JSON list of objects, or one of Q-SiT's lists, whose entries have ids such
    as `1.jpg->68.7`. Raises SourceError for another file, UsageError when it does not have the columns.
    """
    try:
        text = Path(name).expanduser().read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise SourceError(f"cannot read the labels {name}: {error.strerror}") from error
    try:
        rows = _read_json(text, columns) if text.lstrip().startswith(("[", "{")) else _read_table(text, columns)
        return list(_parse(rows, skipped))
    except (ValueError, RecursionError, csv.Error) as error:
        raise SourceError(f"cannot read the labels {name}: {error}") from error


def _parse(rows: Iterator[Row], skipped: Skipped) -> Iterator[Label]:
    for number, (path, opinion) in enumerate(rows, start=1):
        if not isinstance(path, str) or not path.strip():
            skipped.add(RowSkip.NO_PATH, f"row {number}")
        elif opinion is None or (isinstance(opinion, str) and not opinion.strip()):
            skipped.add(RowSkip.NO_LABEL, path)
        elif not math.isfinite(value := _parse_number(opinion)):
            skipped.add(RowSkip.NOT_A_NUMBER, path)
        else:
            yield Label(path.strip(), value)


def _parse_number(opinion: object) -> float:
    """Return NaN for what is not a number."""
    try:
        return float(opinion) if isinstance(opinion, str | int | float) and not isinstance(opinion, bool) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def _read_table(text: str, columns: Columns) -> Iterator[Row]:
    first = next(filter(str.strip, text.splitlines()), "")
    rows = filter(None, csv.reader(io.StringIO(text, newline=""), csv.excel_tab if "\t" in first else csv.excel))
    path, opinion = columns.find([name.strip() for name in next(rows, [])])
    for row in rows:
        cells = row + [""] * max(path, opinion)
        if any(row):
            yield cells[path], cells[opinion]


def _read_json(text: str, columns: Columns) -> Iterator[Row]:
    entries = json.loads(text)
    if not isinstance(entries, list):
        raise ValueError("it is JSON but not a list")
    objects = [entry if isinstance(entry, dict) else {} for entry in entries]
    if columns == Columns() and any(ARROW in str(entry.get("id")) for entry in objects):
        for entry in objects:
            path, _, opinion = str(entry.get("id", "")).rpartition(ARROW)
            yield entry.get("image") or path, opinion if path else None
        return
    keys = list(dict.fromkeys(key for entry in objects for key in entry))
    path_index, opinion_index = columns.find(keys) if entries else (0, 0)
    for entry in objects:
        yield entry.get(keys[path_index]), entry.get(keys[opinion_index])
