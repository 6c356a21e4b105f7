"""That freed memory is used again, in a process of its own."""

import platform
import subprocess
import sys

import pytest

from worker import memory

FAULTS = """
import resource, threading
from PIL import Image
from worker import memory

assert memory.keep_freed()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        Image.new("RGB", (4000, 3000), "grey")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

for _ in range(2):
    loader = threading.Thread(target=faults)
    loader.start()
    loader.join()
"""
"""Prints the page faults of a thread that makes five images of 48 MB, and of the next that does."""

PAGES = 5 * 4000 * 3000 * 4 // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_the_memory_of_one_photo_is_used_for_the_next() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    first, second = map(int, done.stdout.split())

    assert first < 0.3 * PAGES
    assert second < 0.01 * PAGES


def test_where_it_cannot_be_told_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    assert not memory.keep_freed()
