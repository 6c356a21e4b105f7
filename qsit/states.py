"""The states of jobs, chunks, items and workers, and the reasons why items fail."""

from enum import StrEnum


class JobState(StrEnum):
    """The state of a job."""

    ACTIVE = "active"  # it is listed or worked on
    PAUSED = "paused"  # none of its chunks is sent until it is resumed
    CANCELLED = "cancelled"  # its unfinished items are dropped
    FINISHED = "finished"  # its listing is complete and every item has a result


class ChunkState(StrEnum):
    """The state of a chunk."""

    QUEUED = "queued"  # no message for it is in Redis yet
    SENT = "sent"  # a message for it is in Redis; it is sent again if no worker claims it in time
    LEASED = "leased"  # a worker holds it until its lease expires
    DONE = "done"  # no item of it is queued


class ItemState(StrEnum):
    """The state of an image in a job."""

    QUEUED = "queued"  # it has no result yet
    SCORED = "scored"  # it has its score and all answers that the job asks for
    FAILED = "failed"  # it cannot be scored, for a Reason
    CANCELLED = "cancelled"  # its job was cancelled first


class Quarantine(StrEnum):
    """Whether a queued item may be what killed a worker."""

    NONE = "none"  # no worker holds it, and none died with it
    IN_FLIGHT = "in flight"  # a worker holds it together with other items
    SUSPECT = "suspect"  # a worker died while it was in flight; it runs alone next
    ALONE = "alone"  # a worker holds it and no other item


class WorkerState(StrEnum):
    """The state of a worker process."""

    LOADING = "loading"  # it loads its model
    READY = "ready"  # it takes chunks
    STOPPED = "stopped"  # it was told to end, or could not load its model


class Reason(StrEnum):
    """Why an item failed."""

    MISSING = "missing"  # it was deleted between listing and reading
    UNREADABLE = "unreadable"  # permission is missing, or the disk failed
    CHANGED = "changed"  # it no longer has the version that was listed
    OUTSIDE = "outside"  # a link leads out of the worker's roots
    EMPTY = "empty"  # it has zero bytes
    NOT_AN_IMAGE = "not_an_image"  # its format is unknown, or it is not a file
    UNSUPPORTED = "unsupported"  # it is an image of a kind that cannot be read
    TOO_LARGE = "too_large"  # it has more pixels or bytes than the limit
    CORRUPT = "corrupt"  # its data is truncated or broken
    TIMEOUT = "timeout"  # decoding took longer than the limit
    MODEL_ERROR = "model_error"  # the model failed on it, also alone
    OUT_OF_MEMORY = "out_of_memory"  # it does not fit on the device, also alone
    CRASHED = "crashed"  # it ended its worker three times while it ran alone


UNKNOWN_VERSION = ""
"""The version of an image that is listed by its URI alone. The worker finds out the version when it opens the image."""

PASSING_REASONS = (Reason.MISSING, Reason.UNREADABLE, Reason.CHANGED, Reason.OUTSIDE, Reason.OUT_OF_MEMORY)
"""Failures that say nothing about the photo itself: the next job tries again."""
