"""Scores against people's opinions."""

import os
from collections.abc import Iterator

from sqlalchemy import Engine

from models import db
from models.ledger import jobs
from models.queries import scorers
from models.queries.scorers import ScorerInUse
from producer.evaluation.labels import Columns, read_labels
from producer.evaluation.matching import find_uris, match_newest
from producer.evaluation.metrics import FIGURES, Agreement, import_stats, measure_agreement
from producer.evaluation.published import CORRELATIONS
from producer.evaluation.report import Report, RowSkip, Skipped, table_line
from producer.formatting import DEMO_NOTE
from qsit import checkpoints
from qsit.errors import QsitError
from qsit.rating import AS_STORED
from qsit.settings import Settings
from qsit.sources.source import parse_source

CLEARLY_NEGATIVE = -0.3


def evaluate_scores(
    settings: Settings,
    file: str,
    *,
    images: str | None,
    path_column: str | None,
    score_column: str | None,
    lower_is_better: bool,
    dataset: str | None,
    model: str | None,
    revision: str | None,
    job: str | None,
    as_stored: bool,
) -> Report:
    """Compare scores with the labels in a file. Raises QsitError when there are no such scores."""
    import_stats()  # fails early
    skipped = Skipped(RowSkip, "row")
    labels = read_labels(file, Columns(path_column, score_column), skipped)
    folder = parse_source(images or os.path.dirname(os.path.abspath(os.path.expanduser(file))))
    engine = db.open_ledger(settings.database_url)
    candidates = _find_scorers(engine, model, revision, job, as_stored=as_stored)
    matches = match_newest(engine, candidates, labels, {label.path: find_uris(label.path, folder) for label in labels})
    for reason, name in matches.skipped:
        skipped.add(reason, name)
    scorer = matches.scorer
    scores, opinions = [pair.score for pair in matches.pairs], [pair.opinion for pair in matches.pairs]
    result = measure_agreement(scores, opinions, lower_is_better=lower_is_better)
    figures = {name: getattr(result, name) for name in FIGURES}
    record = {
        "n": result.n,
        **figures,
        "model": scorer.model,
        "revision": scorer.revision,
        "procedure": scorer.procedure,
        "lower_is_better": lower_is_better,
        "left_out": skipped.counts(),
        "published": None if dataset is None else {"dataset": dataset, **CORRELATIONS[dataset]},
    }
    others = [other for other in candidates if other is not scorer]
    notes = _write_notes(result, scorer, others, dataset, lower_is_better=lower_is_better)
    has_figures = any(figure is not None for figure in figures.values())
    return Report(list(_make_table(result, scorer, dataset)), record, [*skipped.lines(), *notes], has_figures)


def _find_scorers(
    engine: Engine, model: str | None, revision: str | None, job: str | None, *, as_stored: bool
) -> list[ScorerInUse]:
    """Return the scorers that the options allow, the newest first. Raises QsitError when they allow none."""
    name = None if model is None else checkpoints.full_name(model)
    found = scorers.in_use(engine, job=None if job is None else jobs.find_job(engine, job))
    allowed = [
        scorer
        for scorer in found
        if name in (None, scorer.model)
        and scorer.revision.startswith(revision or "")
        and (scorer.procedure == AS_STORED or not as_stored)
    ]
    if allowed:
        return allowed
    others = f"; the database has scores of {', '.join(map(_describe, found))}" if found else ""
    raise QsitError(f"no photo has such a score; run qsit score first{others}")


def _describe(scorer: ScorerInUse) -> str:
    pixels = "pixels as stored" if scorer.procedure == AS_STORED else "upright pixels"
    return f"{scorer.model} at revision {scorer.revision} ({pixels})"


def _write_notes(
    result: Agreement, scorer: ScorerInUse, others: list[ScorerInUse], dataset: str | None, *, lower_is_better: bool
) -> Iterator[str]:
    yield from result.notes
    if others:
        names = ", ".join(map(_describe, others))
        yield f"other scores: {names}; choose with --model, --revision, --job or --as-stored"
    if result.rmse is not None:
        yield "RMSE is in the unit of the labels, from the least-squares line from score to label"
    if dataset is not None:
        yield f"published for {dataset}: correlations of unfitted scores, of models trained on SPAQ and KonIQ"
    if result.srcc is not None and result.srcc < CLEARLY_NEGATIVE:
        other = "higher labels are better, omit" if lower_is_better else "lower labels are better, as in a DMOS, add"
        yield f"scores and labels disagree; if {other} --lower-is-better"
    if scorer.model == checkpoints.DEMO:
        yield f"note: {DEMO_NOTE}"


def _make_table(result: Agreement, scorer: ScorerInUse, dataset: str | None) -> Iterator[str]:
    yield f"model {_describe(scorer)}"
    yield table_line("", "n", *map(str.upper, FIGURES))
    correlations = ("-" if value is None else f"{value:.4f}" for value in (result.srcc, result.plcc, result.krcc))
    rmse = "-" if result.rmse is None else f"{result.rmse:.4g}"
    yield table_line("here", f"{result.n:,}", *correlations, rmse)
    for model, figures in CORRELATIONS[dataset].items() if dataset is not None else ():
        cells = (f"{figures[name]:.3f} " for name in ("srcc", "plcc"))
        yield table_line(f"{model}, published", "", *cells).rstrip()
