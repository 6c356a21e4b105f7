"""The states that jobs, chunks and items go through, and the reasons why an item fails."""

from enum import StrEnum


class JobState(StrEnum):
    ACTIVE = "active"  # being listed or worked on
    PAUSED = "paused"  # nothing more of it is sent until it is resumed
    CANCELLED = "cancelled"  # nothing more of it will be done
    FINISHED = "finished"  # its listing is complete and nothing is left


class ChunkState(StrEnum):
    QUEUED = "queued"  # to be sent
    SENT = "sent"  # a message for it is in Redis; until `until` it is not sent again
    LEASED = "leased"  # a worker holds it until `until`
    DONE = "done"  # nothing of it is left


class ItemState(StrEnum):
    QUEUED = "queued"
    SCORED = "scored"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Quarantine(StrEnum):
    """What a queued item has to do with the death of a worker."""

    NONE = "none"
    IN_FLIGHT = "in flight"  # a worker holds it beside others
    SUSPECT = "suspect"  # it was in flight when a worker died; it runs alone next
    ALONE = "alone"  # a worker holds it and nothing else


class WorkerState(StrEnum):
    LOADING = "loading"  # its model is on the way to the device
    READY = "ready"
    STOPPED = "stopped"  # told to end, or could not load its model


class Reason(StrEnum):
    """Why an item failed."""

    MISSING = "missing"  # gone between listing and reading
    UNREADABLE = "unreadable"  # no permission, or the disk failed
    CHANGED = "changed"  # no longer what was listed
    OUTSIDE = "outside"  # leads out of the worker's roots
    EMPTY = "empty"  # zero bytes
    NOT_AN_IMAGE = "not_an_image"  # of no known image format, or no file at all
    UNSUPPORTED = "unsupported"  # an image, of a kind that is not read
    TOO_LARGE = "too_large"  # more pixels or bytes than the limit
    CORRUPT = "corrupt"  # its data is truncated or broken
    TIMEOUT = "timeout"  # decoding it took longer than the limit
    MODEL_ERROR = "model_error"  # the model failed on it, alone too
    OUT_OF_MEMORY = "out_of_memory"  # does not fit the device, alone too
    CRASHED = "crashed"  # ended its worker three times while running alone


UNKNOWN_VERSION = ""
"""The version of an image of which only the URI is known; whoever reads it learns the version."""

PASSING_REASONS = (Reason.MISSING, Reason.UNREADABLE, Reason.CHANGED, Reason.OUTSIDE, Reason.OUT_OF_MEMORY)
"""Failures that say nothing about the photo itself: the next job tries again."""
