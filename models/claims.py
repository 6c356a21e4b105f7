"""What the ledger and a worker exchange: queues, claims and results."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from qsit.questions import Answer, Question
from qsit.states import Reason


@dataclass(frozen=True)
class QueueKey:
    """
    The chunks that a worker takes: those for its model, sent through its broker.

    broker: "" for the fleet's broker, or the identity of the `qsit score` that owns a private one.
    job_id: the only job of a private broker.
    """

    model: str
    revision: str
    broker: str = ""
    job_id: int | None = None


@dataclass(frozen=True)
class ExistingResults:
    """What the ledger already has of an image: its score, and the ids of the answered questions."""

    score: float | None = None
    answered: frozenset[int] = frozenset()


@dataclass(frozen=True)
class ClaimedItem:
    image_id: int
    uri: str
    version: str
    suspect: bool  # was in flight when a worker died: must run alone
    found: ExistingResults = ExistingResults()


@dataclass(frozen=True)
class Claim:
    """
    A leased chunk: its open items, and the token without which nothing of it can be written.

    questions: what the job asks about its photos, by id. ask_below: it asks only about photos that score less.
    """

    chunk_id: int
    job_id: int
    scorer_id: int
    procedure: str
    rescore: bool
    token: str
    items: list[ClaimedItem]
    questions: Mapping[int, Question] = field(default_factory=dict)
    ask_below: float | None = None

    def to_ask(self, score: float, found: ExistingResults) -> list[int]:
        """Return the questions that an image of that score still needs an answer to."""
        if self.ask_below is not None and score >= self.ask_below:
            return []
        return [each for each in self.questions if self.rescore or each not in found.answered]

    def is_settled(self, found: ExistingResults) -> bool:
        """Return whether an image with these results needs nothing more."""
        return found.score is not None and not self.rescore and not self.to_ask(found.score, found)


@dataclass(frozen=True)
class Scored:
    image_id: int
    score: float
    logits: tuple[float, ...]  # Excellent, Good, Fair, Poor, Bad
    dtype: str
    version: str | None = None  # the one that was read, of an image whose version was unknown
    answers: Mapping[int, Answer] = field(default_factory=dict)  # by question


@dataclass(frozen=True)
class AlreadyScored:
    """An image that had its score already, and may have new answers. Fields are as in Scored."""

    image_id: int
    version: str | None = None
    dtype: str = ""  # of the answers
    answers: Mapping[int, Answer] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    image_id: int
    reason: Reason
    message: str


Result = Scored | AlreadyScored | Failed
