"""How a worker process treats memory that it has freed."""

import ctypes
import sys

KEPT_BYTES = 512 * 1024 * 1024
"""Free memory up to this much stays with the process; what is above goes back to the system."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # from malloc.h
_LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024  # Pillow's blocks are of 16 MB, most photos' tiles smaller


def keep_freed() -> bool:
    """
    Have freed memory used again instead of given back; whether it could be told so, which it can with glibc only.

    By default glibc returns the pixels of each large photo to the system, which clears every page of them for the next:
    a tenth or more of the processor time of preparing it. Call it before there are threads.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # one arena, for the others are of 64 MB pieces, and give back each that is empty
    options = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), (_TRIM_THRESHOLD, KEPT_BYTES))
    return all(mallopt(option, value) == 1 for option, value in options)
