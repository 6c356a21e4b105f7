"""The labels of a dataset: photos, each with what people think of it."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from producer.evaluation.skipped import LeftOut
from qsit.errors import SourceError, UsageError

PATHS = frozenset((
    *("path", "file", "file_name", "filename", "file_path", "filepath", "name", "uri"),
    *("image", "image_name", "image_path", "image_file", "images", "img", "img_name", "img_path", "dist_img"),
))  # fmt: skip
"""What columns with photos are usually called: KADID's is dist_img, Q-Bench's img_path."""
OPINIONS = frozenset((
    *("mos", "dmos", "mos_quality", "quality_mos", "mean_opinion_score", "opinion", "opinion_score", "gt_score"),
    *("score", "quality", "quality_score", "rating", "label"),
))  # fmt: skip
"""What columns with opinions are usually called: AGIQA-3K's is mos_quality, Q-Bench's gt_score."""
ARROW = "->"
"""Between photo and opinion in the ids of Q-SiT's own lists."""

REASONS = {
    "no_path": "no photo is named",
    "no_label": "there is no label",
    "not_a_number": "the label is no number",
}
"""Why a row is no label."""


@dataclass(frozen=True)
class Label:
    """What people think of one photo; path: as the labels have it."""

    path: str
    opinion: float


@dataclass(frozen=True)
class Columns:
    """The columns that the user names; None: to be guessed."""

    path: str | None = None
    opinion: str | None = None

    def places(self, header: Sequence[str]) -> tuple[int, int]:
        """Where paths and opinions are. Raises UsageError when that is not plain."""
        path = _place(header, self.path, PATHS, "--path-column", "photos")
        return path, _place(header, self.opinion, OPINIONS, "--score-column", "opinions")


Row = tuple[object, object]
"""A path and an opinion as the file has them."""


def read(name: str, columns: Columns, left_out: LeftOut) -> list[Label]:
    """
    The labels of a file: CSV or TSV with a header, a JSON list of objects, or one of Q-SiT's own lists, whose entries
    have ids such as `1.jpg->68.7`.

    Raises:
        SourceError: when it cannot be read, or is no such file.
        UsageError: when it is not plain which columns are meant.
    """
    try:
        text = Path(name).expanduser().read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise SourceError(f"cannot read the labels {name}: {error.strerror}") from error
    try:
        rows = _of_json(text, columns) if text.lstrip().startswith(("[", "{")) else _of_table(text, columns)
        return list(_labels(rows, left_out))
    except (ValueError, RecursionError, csv.Error) as error:
        raise SourceError(f"cannot read the labels {name}: {error}") from error


def _labels(rows: Iterator[Row], left_out: LeftOut) -> Iterator[Label]:
    for number, (path, opinion) in enumerate(rows, start=1):
        if not isinstance(path, str) or not path.strip():
            left_out.add("no_path", f"row {number}")
        elif opinion is None or (isinstance(opinion, str) and not opinion.strip()):
            left_out.add("no_label", path)
        elif (value := _number(opinion)) is None:
            left_out.add("not_a_number", path)
        else:
            yield Label(path.strip(), value)


def _number(opinion: object) -> float | None:
    if isinstance(opinion, bool) or not isinstance(opinion, str | int | float):
        return None
    try:
        value = float(opinion)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _of_table(text: str, columns: Columns) -> Iterator[Row]:
    first = next(filter(str.strip, text.splitlines()), "")
    rows = filter(None, csv.reader(io.StringIO(text, newline=""), csv.excel_tab if "\t" in first else csv.excel))
    path, opinion = columns.places(next(rows, []))
    for row in rows:
        cells = row + [""] * max(path, opinion)
        if any(row):
            yield cells[path], cells[opinion]


def _of_json(text: str, columns: Columns) -> Iterator[Row]:
    entries = json.loads(text)
    if not isinstance(entries, list):
        raise ValueError("it is JSON, but no list")
    objects = [entry if isinstance(entry, dict) else {} for entry in entries]
    if columns == Columns() and any(ARROW in str(entry.get("id")) for entry in objects):
        for entry in objects:
            path, _, opinion = str(entry.get("id", "")).rpartition(ARROW)
            yield entry.get("image") or path, opinion if path else None
        return
    keys = list(dict.fromkeys(key for entry in objects for key in entry))
    path_place, opinion_place = columns.places(keys) if entries else (0, 0)
    for entry in objects:
        yield entry.get(keys[path_place]), entry.get(keys[opinion_place])


def _place(header: Sequence[str], named: str | None, usual: frozenset[str], option: str, what: str) -> int:
    if named is None:
        found = [place for place, name in enumerate(header) if _plain(name) in usual]
    else:
        found = [place for place, name in enumerate(header) if name == named]
    if len(found) == 1:
        return found[0]
    there_are = f"the labels have {', '.join(header) or 'no header line'}"
    if named is not None:
        raise UsageError(f"{option} {named}: {there_are}")
    several = "more than one column may have" if found else "no column is plainly the one with"
    raise UsageError(f"{several} the {what}; name it with {option}: {there_are}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_")
