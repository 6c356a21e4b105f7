"""The model's answers against the right answers of LLVisionQA."""

import os
import warnings
from collections.abc import Iterator

from rich.console import Console

from producer.evaluation import ask
from producer.evaluation.llvisionqa import Item, Tally, read_items
from producer.evaluation.published import LLVISIONQA
from producer.evaluation.report import QuestionSkip, Report, Skipped, table_line
from producer.formatting import DEMO_NOTE, count
from producer.monitor import Counts, display
from qsit import checkpoints
from qsit.errors import ImageError, SourceError, UsageError
from qsit.questions import Answer
from qsit.settings import Settings
from qsit.sources.local_source import LocalSource
from qsit.sources.source import parse_below, parse_source
from qsit.states import Reason


def evaluate_answers(
    settings: Settings,
    file: str,
    console: Console,
    *,
    images: str | None,
    model: str | None,
    revision: str | None,
    device: str | None,
    limit: int | None,
    as_stored: bool,
) -> Report:
    """
    Ask the model the questions of a file, in this process, and count its right answers. Raises QsitError when there is
    no such model or device, or no torch.
    """
    folder = parse_source(images or os.path.dirname(os.path.abspath(os.path.expanduser(file))))
    if not isinstance(folder, LocalSource):
        raise UsageError("--images must be a folder for --llvisionqa")
    skipped = Skipped(QuestionSkip, "question")
    tally = Tally()
    items: list[tuple[Item, str]] = []
    for item in read_items(file, skipped)[:limit]:
        if (path := _find_photo(item.image, folder)) is not None:
            items.append((item, path))
        else:
            skipped.add(QuestionSkip.MISSING, item.image)
    name = checkpoints.full_name(model or settings.model)
    if revision is None:
        revision = settings.revision_for(model)
    if items:
        revision = checkpoints.resolve(name, revision)
        answers = _ask(settings, name, revision, device, items, as_stored=as_stored)
        with warnings.catch_warnings(), display(console) as show:
            warnings.filterwarnings("ignore", module="PIL")  # it warns about unusual metadata, once per photo
            for done, (item, answer) in enumerate(answers, start=1):
                if not isinstance(answer, ImageError):
                    tally.add(item, answer.text)
                else:
                    by_model = answer.reason in (Reason.MODEL_ERROR, Reason.OUT_OF_MEMORY)
                    skipped.add(QuestionSkip.FAILED if by_model else QuestionSkip.BROKEN, f"{item.image} ({answer})")
                show(Counts(len(items), scored=tally.asked, failed=done - tally.asked))
    record: dict[str, object] = {
        "n": tally.asked,
        "right": tally.right,
        "accuracy": tally.accuracy,
        "unclear": tally.unclear,
        "by": tally.by_kind(),
        "model": name,
        "revision": revision,
        "left_out": skipped.counts(),
        "published": {"dataset": "LLVisionQA", **LLVISIONQA},
    }
    notes = [*skipped.lines(), *_write_notes(tally, name)]
    return Report(list(_make_table(tally, name, revision)), record, notes, bool(tally.asked))


def _find_photo(name: str, folder: LocalSource) -> str | None:
    """Return the path of the photo of a question, or None when there is no such file."""
    try:
        source = parse_below(name, folder)
    except SourceError:
        return None
    return source.name if isinstance(source, LocalSource) and os.path.isfile(source.path) else None


def _ask(
    settings: Settings, name: str, revision: str, device: str | None, items: list[tuple[Item, str]], *, as_stored: bool
) -> Iterator[tuple[Item, Answer | ImageError]]:
    """Load the model and ask it. Return an iterator over each item with its answer or error, in any order."""
    from worker.devices import find_devices

    first_device = find_devices(device or settings.device)[0]
    try:
        from worker.qsit import QSit
    except ImportError as error:
        raise UsageError("answering questions needs torch: pip install 'qsit[worker]'") from error
    model = QSit.load(name, device=first_device, dtype=settings.dtype, revision=revision)
    answers = ask.ask_all(
        model,
        [(path, item.prompt) for item, path in items],
        batch_tokens=settings.batch_tokens or model.batch_tokens,
        loaders=settings.loaders,
        max_pixels=settings.max_pixels,
        as_stored=as_stored,
    )
    return ((items[index][0], answer) for index, answer in answers)


def _write_notes(tally: Tally, name: str) -> Iterator[str]:
    if not tally.asked:
        yield "no question could be asked, so there is no accuracy"
        return
    yield "a reply is right when it is the letter of the right choice, with or without a dot, or its words, in any case"
    if tally.unclear:
        yield f"{count(tally.unclear, 'question')} got a reply that names no choice, and count as wrong"
    yield "published: of all test questions of LLVisionQA"
    if name == checkpoints.DEMO:
        yield f"note: {DEMO_NOTE}"


def _make_table(tally: Tally, name: str, revision: str | None) -> Iterator[str]:
    yield f"model {name} at revision {revision}" if revision is not None else f"model {name}"
    yield table_line("", "n", "right")
    yield table_line("here", f"{tally.asked:,}", _format_percent(tally.accuracy))
    for kind, values in tally.by_kind().items():
        for value, figures in values.items():
            yield table_line(f"here, {kind} {value}", f"{figures['n']:,}", _format_percent(figures["accuracy"]))
    for model, accuracy in LLVISIONQA.items():
        yield table_line(f"{model}, published", "", _format_percent(accuracy))


def _format_percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy:.2f} %"
