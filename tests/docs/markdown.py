"""The Markdown files of the repository, and what is in them."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.support.paths import ROOT

NOT_OURS = {"site", "build", "dist"}


def markdown_files() -> list[Path]:
    """Return every Markdown file, by its path below the root; no built and no hidden folders."""
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    return sorted(path for path in found if not any(part.startswith(".") or part in NOT_OURS for part in path.parts))


@cache
def tokens(path: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse((ROOT / path).read_text(encoding="utf-8"))


def code_blocks(path: Path, *languages: str) -> list[str]:
    """Return the content of the fenced code blocks in one of the languages."""
    return [token.content for token in tokens(path) if token.type == "fence" and token.info in languages]


def code_spans(path: Path) -> Iterator[str]:
    return (child.content for child in _inline(path) if child.type == "code_inline")


def links(path: Path) -> list[str]:
    """Return the targets of links and images."""
    attributes = (child.attrGet("href" if child.type == "link_open" else "src") for child in _inline(path))
    return [str(target) for target in attributes if target]


def anchors(path: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub and the site make them."""
    every = tokens(path)
    titles = (every[index + 1].content for index, token in enumerate(every) if token.type == "heading_open")
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _inline(path: Path) -> Iterator[Token]:
    return (child for token in tokens(path) for child in token.children or ())
