"""What a worker must be allowed to read for a list of sources: a few folders and buckets."""

import os
from collections.abc import Iterable

from qsit.errors import SourceError
from qsit.sources.s3_source import S3Source
from qsit.sources.source import parse_source
from qsit.sources.uris import s3_uri

MAX_ROOTS = 64
"""Folders of a list above which wider ones take their place."""


def collect_roots(entries: Iterable[str]) -> set[str]:
    """Return the folders of the local entries of a list, and the buckets of the others."""
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
    return buckets | (folders if len(folders) <= MAX_ROOTS else {widen(folder) for folder in folders})


def widen(folder: str) -> str:
    """
    Return the mount point of a folder, or its first two parts where that is `/`. So no root crosses a mount, and a
    worker sees at each root whether its mount is missing.
    """
    mount = folder
    while not os.path.ismount(mount):
        mount = os.path.dirname(mount)
    return mount if mount != "/" else "/" + "/".join(folder.split("/")[1:3])
