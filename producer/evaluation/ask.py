"""Asking a model, in this process, one question about each photo."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from models.claims import Claim, ClaimedItem, ExistingResults, Failed
from qsit.errors import ImageError
from qsit.questions import Answer, Question
from qsit.rating import AS_STORED, UPRIGHT
from qsit.sources.photo import check_bytes
from qsit.sources.uris import path_of, uri_of
from qsit.states import Reason
from worker.imaging.decode import decode
from worker.pipeline import Pipeline
from worker.scoring import BatchScorer, Model, PreparedPhoto


class AskedModel(Model, Protocol):
    """What asking needs of `QSit`."""

    def prepare(self, image: Any) -> Any: ...


@dataclass(frozen=True)
class QuestionLoader:
    """Loads the photo of a question for a pipeline. The id of the question is that of its item."""

    model: AskedModel
    max_pixels: int

    def load(self, item: ClaimedItem, claim: Claim, on_decoding: Callable[[], None]) -> PreparedPhoto:
        """Read, decode and cut a photo, with all questions but its own marked as answered."""
        path = path_of(item.uri)
        try:
            check_bytes(path.stat().st_size)
            data = path.read_bytes()
        except OSError as error:
            raise ImageError(Reason.UNREADABLE, f"the file cannot be read: {error.strerror}") from error
        on_decoding()
        image = decode(data, max_pixels=self.max_pixels, as_stored=claim.procedure == AS_STORED)
        others = frozenset(claim.questions) - {item.image_id}
        return PreparedPhoto(self.model.prepare(image), found=ExistingResults(answered=others))


def ask_all(
    model: AskedModel,
    asked: Sequence[tuple[str, Question]],
    *,
    batch_tokens: int,
    loaders: int,
    max_pixels: int,
    as_stored: bool,
) -> Iterator[tuple[int, Answer | ImageError]]:
    """
    Ask each question about the photo at its path. Yield the index of a question and its answer or error, in any order.
    batch_tokens: image tokens in one batch. loaders: threads that load photos.
    """
    items = [ClaimedItem(index, uri_of(path), "", suspect=False) for index, (path, _) in enumerate(asked)]
    questions = {index: question for index, (_, question) in enumerate(asked)}
    claim = Claim(0, 0, 0, AS_STORED if as_stored else UPRIGHT, False, "", items, questions)
    scorer = BatchScorer(model, "", batch_tokens)
    pipeline = Pipeline(scorer, QuestionLoader(model, max_pixels), loaders, decode_s=math.inf)
    for results in pipeline.run(claim, lambda *_: None, turn_s=math.inf, stopping=lambda: False):
        for result in results:
            at = result.image_id
            yield at, ImageError(result.reason, result.message) if isinstance(result, Failed) else result.answers[at]
