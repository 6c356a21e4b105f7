"""Lists in Q-SiT's own format: what is asked about each image, what is to be said, and its mean opinion score."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGE = "<image>\n"


@dataclass(frozen=True)
class Entry:
    """One question about one image; opinion: as the list has it, or None."""

    image: Path
    question: str
    reply: str
    opinion: float | None


def read(path: Path) -> list[Entry]:
    """
    The entries of a list: `id` is "file->MOS" or any other name, `image` lies beside the list, and `conversations`
    holds one turn of "human" and one of "gpt".

    Raises:
        ValueError: naming the entry, when it is another thing.
    """
    try:
        raws = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(raws, list):
        raise ValueError(f"{path} holds no list of entries")
    return [_entry(path, number, raw) for number, raw in enumerate(raws, start=1)]


def _entry(path: Path, number: int, raw: Any) -> Entry:
    try:
        human, gpt = raw["conversations"]
        if (human["from"], gpt["from"]) != ("human", "gpt") or not human["value"].startswith(IMAGE):
            raise ValueError("a conversation is a question that begins with <image>, and its answer")
        _, arrow, opinion = str(raw["id"]).rpartition("->")
        image = path.parent / raw["image"]
        return Entry(image, human["value"].removeprefix(IMAGE), gpt["value"], float(opinion) if arrow else None)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}, entry {number}: {what}") from error
