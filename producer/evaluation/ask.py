"""Asking a model, in this process, one question about each photo."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from qsit.errors import ImageError, one_line
from qsit.questions import Answer, Question
from qsit.rating import Score
from qsit.sources.filters import check_bytes
from qsit.states import Reason
from worker.imaging.decode import decode

Result = tuple[int, Answer | ImageError]
"""The index of a question, with the answer or the reason why there is none."""


class Model(Protocol):
    """The part of QSit that asking needs. `prepare` returns an image with its number of `tokens`."""

    def prepare(self, image: Any) -> Any: ...

    def look(
        self, images: Sequence[Any], questions: Sequence[Question], *, asks: Callable[[int, Score], Sequence[int]]
    ) -> list[tuple[Score, list[Answer]]]: ...


def ask_all(
    model: Model,
    asked: Iterable[tuple[str, Question]],
    *,
    batch_tokens: int,
    loaders: int,
    max_pixels: int,
    as_stored: bool,
) -> Iterator[Result]:
    """
    Ask each question about the photo at its path, and yield results in any order.

    batch_tokens: image tokens in one batch. loaders: threads that read and prepare photos.
    """

    def prepare(path: str) -> Any:
        try:
            return model.prepare(decode(_read(Path(path)), max_pixels=max_pixels, as_stored=as_stored))
        except ImageError as error:
            return error

    waiting = enumerate(asked)
    batch: list[tuple[int, Any, Question]] = []
    with ThreadPoolExecutor(loaders) as threads:
        while some := list(islice(waiting, 2 * loaders)):
            images = threads.map(prepare, [path for _, (path, _) in some])
            for (index, (_, question)), image in zip(some, images, strict=True):
                if isinstance(image, ImageError):
                    yield index, image
                    continue
                if batch and sum(other.tokens for _, other, _ in batch) + image.tokens > batch_tokens:
                    yield from _ask_batch(model, batch)
                    batch = []
                batch.append((index, image, question))
    if batch:
        yield from _ask_batch(model, batch)


def _read(file: Path) -> bytes:
    try:
        check_bytes(file.stat().st_size)
        return file.read_bytes()
    except OSError as error:
        raise ImageError(Reason.UNREADABLE, f"the file cannot be read: {error.strerror}") from error


def _ask_batch(model: Model, batch: Sequence[tuple[int, Any, Question]]) -> Iterator[Result]:
    """Ask about each photo its own question. Split a batch that fails until one photo fails alone."""
    indices, images, questions = zip(*batch, strict=True)
    try:
        looks = model.look(images, questions, asks=lambda place, _: [place])
    except MemoryError as error:
        failure = ImageError(Reason.OUT_OF_MEMORY, one_line(error))
    except Exception as error:  # noqa: BLE001 -- any error belongs to one of these photos or questions
        failure = ImageError(Reason.MODEL_ERROR, one_line(error))
    else:
        yield from ((index, answer) for index, (_, [answer]) in zip(indices, looks, strict=True))
        return
    # the error is gone here, and with it the frames that held the batch's memory
    if len(batch) == 1:
        yield indices[0], failure
        return
    half = len(batch) // 2
    yield from _ask_batch(model, batch[:half])
    yield from _ask_batch(model, batch[half:])
