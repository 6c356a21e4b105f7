"""Every Markdown file: its links lead somewhere, and the commands, settings and paths that it names exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import generate
from tests.docs.markdown import anchors, code_blocks, code_spans, links, markdown_files
from tests.support.paths import ROOT

README = Path("README.md")
CHANGELOG = Path("CHANGELOG.md")
"""Names also what was removed."""
PAGES = [path for path in markdown_files() if path != CHANGELOG]
COMMANDS = {name: context.command for name, context in generate.commands()}


def options_of(command: str) -> set[str]:
    return {name for parameter in COMMANDS[command].params for name in parameter.opts} | {"--help", "-h"}


@pytest.mark.parametrize("page", markdown_files(), ids=str)
def test_local_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    for link in links(page):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / page.parent / target).resolve() if target else ROOT / page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path.relative_to(ROOT)), link


def calls_of_qsit(page: Path) -> Iterator[list[str]]:
    """Yield the words after `qsit` wherever a code block of a shell calls it."""
    for block in code_blocks(page, "sh", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            for call in re.findall(r"(?:^|[\s/])qsit ([^|&;]*)", line.partition(" #")[0]):
                yield shlex.split(call)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_in_code_blocks_exist_with_their_options(page: Path) -> None:
    for words in calls_of_qsit(page):
        name = " ".join(("qsit", *words[: 2 if words[:1] == ["db"] else 1]))
        if not re.fullmatch(r"qsit (db )?[a-z]+", name):  # no command: `qsit --version`, or a folder of that name
            continue
        assert name in COMMANDS, words
        named = {word.partition("=")[0] for word in words if re.match(r"-[-a-z0-9]", word)} - {"-score"}
        assert named <= options_of(name), words


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_and_options_in_the_text_exist(page: Path) -> None:
    every = set().union(*map(options_of, COMMANDS)) | {"--version"}
    for span in code_spans(page):
        if command := re.match(r"qsit ((?:db )?[a-z]+)\b", span):
            assert f"qsit {command[1]}" in COMMANDS, span
        if span.startswith(("--", "qsit ")) and page.parts[0] not in ("benchmarks", "training"):
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)) <= every, span


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_settings_and_make_targets_exist(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"QSIT_[A-Z0-9_]*[A-Z0-9]", text)) <= generate.public_settings().keys()
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", [page for page in PAGES if page.parts[0] == "docs" or len(page.parts) == 1], ids=str)
def test_paths_in_the_text_exist(page: Path) -> None:
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    for span in code_spans(page):
        if re.fullmatch(r"[\w.-]+/[\w./-]*", span) and span.split("/")[0] in folders:
            assert (ROOT / span).exists(), span


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    text = (ROOT / README).read_text(encoding="utf-8")

    assert len(text.splitlines()) <= 150
    first = code_blocks(README, "sh")[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make demo", "make test"]


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))

    assert navigation == {str(page.relative_to("docs")) for page in PAGES if page.parts[0] == "docs"}
