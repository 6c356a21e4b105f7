"""What goes between the ledger and a worker: lanes, claims and results."""

from dataclasses import dataclass

from models.states import Reason


@dataclass(frozen=True)
class Lane:
    """
    Which chunks a worker takes: those for its model, sent through its broker.

    broker: "" for the broker that the fleet shares, or the identity of the `qsit score` that owns a private one;
    job_id: the only job of a private broker.
    """

    model: str
    revision: str
    broker: str = ""
    job_id: int | None = None


@dataclass(frozen=True)
class ClaimedItem:
    image_id: int
    uri: str
    version: str
    suspect: bool  # it was in flight when a worker died, and must run alone


@dataclass(frozen=True)
class Claim:
    """A leased chunk: its open items, and the token without which nothing of it can be written."""

    chunk_id: int
    job_id: int
    scorer_id: int
    procedure: str
    rescore: bool
    token: str
    items: list[ClaimedItem]


@dataclass(frozen=True)
class Scored:
    """version: the one that was read, of an image whose version was unknown."""

    image_id: int
    score: float
    logits: tuple[float, ...]  # Excellent, Good, Fair, Poor, Bad
    dtype: str
    version: str | None = None


@dataclass(frozen=True)
class Known:
    """An image that has its score already. version: as for Scored."""

    image_id: int
    version: str | None = None


@dataclass(frozen=True)
class Failed:
    image_id: int
    reason: Reason
    message: str


Result = Scored | Known | Failed
