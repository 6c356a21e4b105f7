"""The model's answers to questions of which the right answers are known."""

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console

from producer.evaluation import ask, llvisionqa, matching, published
from producer.evaluation.llvisionqa import Item, Tally
from producer.evaluation.skipped import LeftOut
from producer.exit_codes import ExitCode
from producer.formatting import DEMO_NOTE, count
from qsit import checkpoints
from qsit.errors import ImageError, UsageError
from qsit.settings import Settings
from qsit.sources.uris import S3_SCHEME
from qsit.states import Reason

REASONS = {
    **llvisionqa.REASONS,
    "missing": "the image is not there",
    "broken": "the image cannot be read",
    "failed": "the model failed on it",
}
FAILED = (Reason.MODEL_ERROR, Reason.OUT_OF_MEMORY)


def evaluate_answers(
    chosen: Settings, file: str, console: Console, *, images: str | None, model: str | None, revision: str | None,
    device: str | None, limit: int | None, as_stored: bool, form: str,
) -> int:  # fmt: skip
    """
    Ask, and print the share of right answers; the exit status.

    Raises:
        QsitError: when it could not run: no questions, no such model or device, no torch.
    """
    if images is not None and images.startswith(S3_SCHEME):
        raise UsageError("--images: questions are asked about photos in a folder")
    left_out = LeftOut(REASONS, "question")
    items = llvisionqa.read(file, left_out)[:limit]
    folder = images or os.path.dirname(os.path.abspath(os.path.expanduser(file)))
    there = [(item, path) for item in items if (path := _found(item, folder, left_out)) is not None]
    tally = Tally()
    name = checkpoints.full_name(model or chosen.model)
    if revision is None and model in (None, chosen.model):
        revision = chosen.revision
    if there:
        revision = checkpoints.resolve(name, revision)
    if there and revision is not None:
        _ask(chosen, console, name, revision, device, there, tally, left_out, as_stored=as_stored)
    for line in (*left_out.lines(), *_notes(tally, name)):
        click.echo(line, err=True)
    if form == "json":
        click.echo(json.dumps(_record(tally, name, revision, left_out)))
    else:
        click.echo("\n".join(_table(tally, name, revision)))
    return ExitCode.OK if tally.asked else ExitCode.COULD_NOT_RUN


def _found(item: Item, folder: str, left_out: LeftOut) -> Path | None:
    file = matching.place_of(item.image, folder).file
    if file is None:
        left_out.add("missing", item.image)
    return file


def _ask(
    chosen: Settings, console: Console, name: str, revision: str, device: str | None,
    there: list[tuple[Item, Path]], tally: Tally, left_out: LeftOut, *, as_stored: bool,
) -> None:  # fmt: skip
    """Load the model, ask, and count."""
    from worker.devices import find_devices

    where = find_devices(device or chosen.device)[0]
    try:
        from worker.qsit import QSit
    except ImportError as error:
        raise UsageError("answering needs torch: pip install 'qsit[worker]'") from error
    model = QSit.load(name, device=where, dtype=chosen.dtype, revision=revision)
    answers = ask.ask(
        model,
        [(file, item.asked) for item, file in there],
        batch_tokens=chosen.batch_tokens or model.batch_tokens,
        loaders=chosen.loaders,
        max_pixels=chosen.max_pixels,
        as_stored=as_stored,
    )
    with warnings.catch_warnings(), ask.progress(console, len(there)) as show:
        warnings.filterwarnings("ignore", module="PIL")  # of odd metadata, once a photo
        for done, (place, answer) in enumerate(answers, start=1):
            item = there[place][0]
            if not isinstance(answer, ImageError):
                tally.add(item, answer.text)
            else:
                left_out.add("failed" if answer.reason in FAILED else "broken", f"{item.image} ({answer})")
            show(done)


def _notes(tally: Tally, name: str) -> Iterator[str]:
    if not tally.asked:
        yield "no question could be asked, so there is no accuracy"
        return
    yield "a reply is right when it is the letter of the right choice, dot or no dot, or its words; capitals or not"
    if tally.unclear:
        yield f"{count(tally.unclear, 'question')} got a reply that is none of the choices, and counts as wrong"
    yield "published: of all test questions of LLVisionQA"
    if name == checkpoints.DEMO:
        yield f"note: {DEMO_NOTE}"


def _table(tally: Tally, name: str, revision: str | None) -> Iterator[str]:
    yield f"model {name} at revision {revision}" if revision is not None else f"model {name}"
    yield _line("", "n", "right")
    yield _line("here", f"{tally.asked:,}", _percent(tally.accuracy))
    for kind, values in tally.by_kind().items():
        for value, figures in values.items():
            yield _line(f"here, {kind} {value}", f"{figures['n']:,}", _percent(figures["accuracy"]))
    for model, accuracy in published.LLVISIONQA.items():
        yield _line(f"{model}, published", "", _percent(accuracy))


def _line(name: str, n: str, accuracy: str) -> str:
    return f"{name:22}{n:>9}{accuracy:>10}"


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{100 * accuracy:.2f} %"


def _record(tally: Tally, name: str, revision: str | None, left_out: LeftOut) -> dict[str, object]:
    return {
        "n": tally.asked,
        "right": tally.right,
        "accuracy": tally.accuracy,
        "unclear": tally.unclear,
        "by": tally.by_kind(),
        "model": name,
        "revision": revision,
        "left_out": left_out.counts(),
        "published": {"dataset": "LLVisionQA", **published.LLVISIONQA},
    }
