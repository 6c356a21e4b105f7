"""How a worker is started: its command, environment and exit status."""

import sys

COMMAND = [sys.executable, "-m", "worker"]
"""Runs a worker; needs ENVIRONMENT."""
ENVIRONMENT = {
    "PYTHONSAFEPATH": "1",  # a folder called worker or models in the current folder is not imported in place of ours
    # glibc keeps up to 512 MB of freed memory for the next photo. By default it returns the pixels of each large photo
    # to the system, which then clears every page again: a tenth or more of the processor time of preparing a photo.
    "MALLOC_ARENA_MAX": "1",  # other arenas consist of 64 MB pieces, and return each one that is empty
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024 * 1024),  # Pillow's blocks have 16 MB, most photos' tiles fewer
    "MALLOC_TRIM_THRESHOLD_": str(512 * 1024 * 1024),
}
"""What every process of a worker has in its environment."""
TRY_AGAIN = 75
"""Exit status of a private worker that did not find its database or Redis: `qsit score` starts it again."""
