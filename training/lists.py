"""Lists in Q-SiT's format: a question about each image, the right answer, and the mean opinion score."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGE = "<image>\n"


@dataclass(frozen=True)
class Entry:
    """One question about one image. opinion: the mean opinion score, if the list has it."""

    image: Path
    question: str
    reply: str
    opinion: float | None


def read_list(path: Path) -> list[Entry]:
    """
    Read a list. `id` is "file->MOS" or another name, `image` is relative to the list, and `conversations` has one turn
    of "human" and one of "gpt".

    Raises:
        ValueError: when the file or an entry has another form; the message names the entry.
    """
    try:
        raws = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(raws, list):
        raise ValueError(f"{path} is not a list of entries")
    return [_parse_entry(path, number, raw) for number, raw in enumerate(raws, start=1)]


def _parse_entry(path: Path, number: int, raw: Any) -> Entry:
    try:
        human, gpt = raw["conversations"]
        if (human["from"], gpt["from"]) != ("human", "gpt") or not human["value"].startswith(IMAGE):
            raise ValueError("a conversation must be a question that begins with <image>, and its answer")
        _, arrow, opinion = str(raw["id"]).rpartition("->")
        image = path.parent / raw["image"]
        return Entry(image, human["value"].removeprefix(IMAGE), gpt["value"], float(opinion) if arrow else None)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}, entry {number}: {what}") from error
