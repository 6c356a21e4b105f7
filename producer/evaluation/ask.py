"""Putting to a model, in this process, questions that are each about a photo of their own."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from producer.monitor import PLAIN_LINES_S
from qsit.errors import ImageError
from qsit.questions import Answer, Question
from qsit.rating import Score
from qsit.sources.photo import check_bytes
from qsit.states import Reason
from worker.imaging.decode import decode
from worker.inference.tiles import Prepared

Asked = tuple[Path, Question]
Look = list[tuple[Score, list[Answer]]]


class Model(Protocol):
    def prepare(self, image: Any) -> Prepared: ...

    def look(
        self,
        images: Sequence[Prepared],
        questions: Sequence[str | Question],
        *,
        asks: Callable[[int, Score], Sequence[int]] | None = None,
    ) -> Look: ...


def ask(
    model: Model, asked: Iterable[Asked], *, batch_tokens: int, loaders: int, max_pixels: int, as_stored: bool
) -> Iterator[tuple[int, Answer | ImageError]]:
    """
    The place of each question, and its answer or why there is none; in any order.

    batch_tokens: image tokens in one batch; loaders: threads that read and cut photos.
    """

    def prepared(file: Path) -> Prepared | ImageError:
        try:
            return model.prepare(decode(_read(file), max_pixels=max_pixels, as_stored=as_stored))
        except ImageError as error:
            return error

    places = enumerate(asked)
    batch: list[tuple[int, Prepared, Question]] = []
    with ThreadPoolExecutor(loaders) as threads:
        while some := list(islice(places, 2 * loaders)):
            ready = threads.map(prepared, (file for _, (file, _) in some))
            for (place, (_, question)), image in zip(some, ready, strict=True):
                if isinstance(image, ImageError):
                    yield place, image
                    continue
                if batch and sum(other.tokens for _, other, _ in batch) + image.tokens > batch_tokens:
                    yield from _answers(model, batch)
                    batch = []
                batch.append((place, image, question))
    yield from _answers(model, batch)


def _read(file: Path) -> bytes:
    try:
        check_bytes(file.stat().st_size)
        return file.read_bytes()
    except OSError as error:
        raise ImageError(Reason.UNREADABLE, f"the file cannot be read: {error.strerror}") from error


def _answers(
    model: Model, batch: Sequence[tuple[int, Prepared, Question]]
) -> Iterator[tuple[int, Answer | ImageError]]:
    """Ask of each photo its question; what fails together is tried in halves."""
    if not batch:
        return
    questions = [question for _, _, question in batch]
    try:
        looks = model.look([image for _, image, _ in batch], questions, asks=lambda place, _: [place])
    except MemoryError as error:
        failure = ImageError(Reason.OUT_OF_MEMORY, str(error) or "the photo does not fit on the device")
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is of one of these photos or questions
        failure = ImageError(Reason.MODEL_ERROR, " ".join(str(error).split()) or type(error).__name__)
    else:
        for (place, _, _), (_, answers) in zip(batch, looks, strict=True):
            yield place, answers[0]
        return
    # by now the error is gone, and with it the frames that held the batch's memory
    if len(batch) == 1:
        yield batch[0][0], failure
        return
    half = len(batch) // 2
    yield from _answers(model, batch[:half])
    yield from _answers(model, batch[half:])


@contextmanager
def progress(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line now and then elsewhere; to be told how many are done."""
    if console.is_terminal:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    last = time.monotonic()

    def say(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_LINES_S:
            last = time.monotonic()
            console.print(f"{done:,} of {total:,} asked", markup=False, highlight=False)

    yield say
