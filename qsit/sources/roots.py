"""What a worker must be allowed to read for a list of sources: a few folders and buckets."""

import os
from collections.abc import Iterable, Iterator

from qsit.errors import SourceError
from qsit.sources.s3_source import S3Source
from qsit.sources.source import parse_source
from qsit.sources.uris import s3_uri

MAX_ROOTS = 64
"""Folders of a list above which they are merged into their parents."""


def collect_roots(entries: Iterable[str]) -> set[str]:
    """Return the folders of the local entries of a list, the outermost ones only, and the buckets of the others."""
    folders: set[str] = set()
    buckets: set[str] = set()
    for entry in entries:
        try:
            source = parse_source(entry)
        except SourceError:  # the listing reports it
            continue
        if isinstance(source, S3Source):
            buckets.add(s3_uri(source.bucket))
        else:
            folders |= source.roots()
    return buckets | merge_folders(folders)


def merge_folders(folders: set[str]) -> set[str]:
    """
    Return at most MAX_ROOTS folders that contain these, if there are such without the root folder.

    A folder is never replaced by one on another device: a worker finds out by each root whether its mount is there.
    """
    devices: dict[str, int] = {}

    def is_mergeable(folder: str, parent: str) -> bool:
        return _device_of(folder, devices) == _device_of(parent, devices)

    def without_nested(some: set[str]) -> set[str]:
        return {
            folder
            for folder in some
            if not any(parent in some and is_mergeable(folder, parent) for parent in _parents(folder))
        }

    merged = without_nested(folders)
    while len(merged) > MAX_ROOTS:
        parents = {folder: os.path.dirname(folder) for folder in merged}
        mergeable = [folder for folder, parent in parents.items() if parent != "/" and is_mergeable(folder, parent)]
        if not mergeable:
            break
        depth = max(folder.count("/") for folder in mergeable)
        deepest = {folder for folder in mergeable if folder.count("/") == depth}
        merged = without_nested((merged - deepest) | {parents[folder] for folder in deepest})
    return merged


def _parents(folder: str) -> Iterator[str]:
    while (parent := os.path.dirname(folder)) != folder:
        yield parent
        folder = parent


def _device_of(folder: str, known: dict[str, int]) -> int:
    """Return the device of a folder, or of its nearest parent that exists."""
    for existing in (folder, *_parents(folder)):
        if existing not in known:
            try:
                known[existing] = os.stat(existing).st_dev
            except OSError:
                continue
        return known.setdefault(folder, known[existing])
    raise AssertionError("/ exists")
