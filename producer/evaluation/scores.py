"""Scores against the opinions of people."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict

import click
from rich.console import Console
from sqlalchemy import Engine

from models import db
from models.ledger import jobs
from models.queries import scorers
from models.queries.scorers import ScorerInUse
from producer.evaluation import labels, matching, published
from producer.evaluation.labels import Columns
from producer.evaluation.matching import Joined, Place
from producer.evaluation.metrics import FIGURES, Agreement, agreement, statistics
from producer.evaluation.skipped import LeftOut
from producer.exit_codes import ExitCode
from producer.formatting import DEMO_NOTE
from qsit import checkpoints
from qsit.errors import QsitError, UsageError
from qsit.rating import AS_STORED, UPRIGHT
from qsit.settings import Settings

CLEARLY_NEGATIVE = -0.3


def evaluate_scores(
    chosen: Settings, file: str, *, images: str | None, path_column: str | None, score_column: str | None,
    lower_is_better: bool, dataset: str | None, model: str | None, revision: str | None, job: str | None,
    as_stored: bool, scores_first: bool, form: str,
) -> int:  # fmt: skip
    """
    Print how well scores agree with labels; the exit status.

    Raises:
        QsitError: when it could not run: no labels, no scores, no scipy.
    """
    if scores_first and job is not None:
        raise UsageError("--score makes a job of its own; leave it or --job out")
    statistics()  # which is missed before the work rather than after
    unread = LeftOut(labels.REASONS, "row")
    found = labels.read(file, Columns(path_column, score_column), unread)
    folder = images or os.path.dirname(os.path.abspath(os.path.expanduser(file)))
    places = {label.path: matching.place_of(label.path, folder) for label in found}
    procedure = AS_STORED if as_stored else UPRIGHT if scores_first else None
    if scores_first:
        if revision is None and model in (None, chosen.model):
            revision = chosen.revision
        model = checkpoints.full_name(model or chosen.model)
        revision = checkpoints.resolve(model, revision)
        if not _score(chosen, places.values(), model, revision, as_stored=as_stored):
            return ExitCode.COULD_NOT_RUN
    engine = db.open_ledger(chosen.database_url)
    candidates = _scorers(engine, model, revision, job, procedure)
    joined = matching.join_newest(engine, candidates, found, places)
    result = agreement(joined.scores, joined.opinions, lower_is_better=lower_is_better)
    known = dataset or published.dataset_in(os.path.basename(file))
    notes = _notes(result, joined.scorer, candidates, known, lower_is_better=lower_is_better)
    for line in (*unread.lines(), *joined.left_out.lines(), *notes):
        click.echo(line, err=True)
    if form == "json":
        left_out = unread.counts() | joined.left_out.counts()
        click.echo(json.dumps(_record(result, joined, left_out, known, lower_is_better=lower_is_better)))
    else:
        click.echo("\n".join(_table(result, joined.scorer, known)))
    return ExitCode.OK if result.has_figures else ExitCode.COULD_NOT_RUN


def _score(chosen: Settings, places: Iterable[Place], model: str, revision: str, *, as_stored: bool) -> bool:
    """Score the labelled photos that are there. False when that was cancelled; failed photos are left out later."""
    from producer.score import score
    from producer.submit import Request

    sources = dict.fromkeys(source for place in places if (source := _source(place)) is not None)
    if not sources:
        click.echo("none of the labelled photos is there, so none is scored", err=True)
        return True
    with tempfile.NamedTemporaryFile(prefix="qsit-labels-") as file:
        file.write(b"\0".join(map(os.fsencode, sources)))
        file.flush()
        request = Request(
            files_from=file.name, null_separated=True, model=model, revision=revision, as_stored=as_stored
        )
        return score(chosen, request, Console(stderr=True), "0-1") in (ExitCode.OK, ExitCode.HAS_FAILURES)


def _source(place: Place) -> str | None:
    """What is to be scored: the file that is there, or an object in S3, which only its worker may find missing."""
    if place.file is not None:
        return str(place.file)
    return place.uris[0] if place.is_in_s3 else None


def _scorers(
    engine: Engine, model: str | None, revision: str | None, job: str | None, procedure: str | None
) -> list[ScorerInUse]:
    """The scorers that are meant, the newest first. Raises QsitError when there is none."""
    name = None if model is None else checkpoints.full_name(model)
    found = scorers.in_use(engine, job=None if job is None else jobs.find_job(engine, job))
    meant = [
        scorer
        for scorer in found
        if name in (None, scorer.model)
        and scorer.revision.startswith(revision or "")
        and procedure in (None, scorer.procedure)
    ]
    if meant:
        return meant
    others = f"; there are scores of {_listed(found)}" if found else ""
    raise QsitError(f"no photo has such a score: --score scores the labelled photos first{others}")


def _listed(found: list[ScorerInUse]) -> str:
    return ", ".join(map(_named, found))


def _named(scorer: ScorerInUse) -> str:
    pixels = "pixels as stored" if scorer.procedure == AS_STORED else "upright pixels"
    return f"{scorer.model} at revision {scorer.revision} ({pixels})"


def _notes(
    result: Agreement, scorer: ScorerInUse, candidates: list[ScorerInUse], known: str | None, *, lower_is_better: bool
) -> Iterator[str]:
    yield from result.notes
    others = [other for other in candidates if other is not scorer]
    if others:
        yield f"there are scores, too, of {_listed(others)}: choose with --model, --revision, --job or --as-stored"
    if result.rmse is not None:
        yield "RMSE is in the labels' unit, from the least-squares line from score to label"
    if known is not None:
        yield f"published for {known}: of models trained on SPAQ and KonIQ; correlations of plain scores, as here"
    if result.srcc is not None and result.srcc < CLEARLY_NEGATIVE:
        if lower_is_better:
            yield "scores and labels disagree: perhaps higher is better in these labels; leave --lower-is-better out"
        else:
            yield "scores and labels disagree: if higher is worse in these labels, as in a DMOS, say --lower-is-better"
    if scorer.model == checkpoints.DEMO:
        yield f"note: {DEMO_NOTE}"


def _table(result: Agreement, scorer: ScorerInUse, known: str | None) -> Iterator[str]:
    yield f"model {_named(scorer)}"
    yield _line("", "n", *map(str.upper, FIGURES))
    digits = f"{result.rmse:.4g}" if result.rmse is not None else "-"
    correlations = (_figure(value) for value in (result.srcc, result.plcc, result.krcc))
    yield _line("here", f"{result.n:,}", *correlations, digits)
    for model, figures in published.KNOWN[known].items() if known is not None else ():
        yield _line(f"{model}, published", "", f"{figures['srcc']:.3f} ", f"{figures['plcc']:.3f} ").rstrip()


def _line(name: str, n: str, *cells: str) -> str:
    return f"{name:22}{n:>9}" + "".join(f"{cell:>10}" for cell in cells)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _record(
    result: Agreement, joined: Joined, left_out: dict[str, int], known: str | None, *, lower_is_better: bool
) -> dict[str, object]:
    figures = {name: value for name, value in asdict(result).items() if name != "notes"}
    return figures | {
        "model": joined.scorer.model,
        "revision": joined.scorer.revision,
        "procedure": joined.scorer.procedure,
        "lower_is_better": lower_is_better,
        "left_out": left_out,
        "published": None if known is None else {"dataset": known, **published.KNOWN[known]},
    }
