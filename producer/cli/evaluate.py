"""The command `qsit evaluate`: scores against people's opinions, or answers against right answers."""

import json
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from producer.evaluation.published import CORRELATIONS
from producer.evaluation.report import Report
from producer.exit_codes import ExitCode
from qsit import settings
from qsit.errors import UsageError

LABELS_ONLY = ("path_column", "score_column", "lower_is_better", "dataset", "job")
QUESTIONS_ONLY = ("device", "limit")


@click.command()
@click.argument("labels", required=False, metavar="[LABELS]")
@click.option("--images", metavar="DIR", help="Folder or s3:// URI of the photos.  [default: the folder of LABELS]")
@click.option("--path-column", metavar="NAME", help="Column of LABELS with the photos.  [default: img_path]")
@click.option("--score-column", metavar="NAME", help="Column of LABELS with the opinions.  [default: gt_score]")
@click.option("--lower-is-better", is_flag=True, help="In LABELS, a lower opinion means a better photo.")
@click.option(
    "--dataset",
    type=click.Choice(list(CORRELATIONS), case_sensitive=False),
    help="Also show the figures published for this dataset.",
)
@click.option("--model", help="Use scores of this model, or ask it.  [default: the newest scores, or QSIT_MODEL]")
@click.option("--revision", help="Revision of the model.")
@click.option("--job", help="Use this job's model, revision and pixels.")
@click.option("--as-stored", is_flag=True, help="Use pixels as stored: no rotation, no color profile.")
@click.option("--llvisionqa", metavar="FILE", help="Ask the model the questions of this LLVisionQA file instead.")
@click.option("--device", help="With --llvisionqa: auto, cpu, or cuda:0.  [default: QSIT_DEVICE or auto]")
@click.option("--limit", type=click.IntRange(min=1), help="With --llvisionqa: ask at most this many questions.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def evaluate(context: click.Context, /, labels: str | None, llvisionqa: str | None, form: str, **options: Any) -> int:
    """Compare scores with people's opinions. LABELS is a CSV, TSV or JSON file of photos and opinions."""
    if (labels is None) == (llvisionqa is None):
        raise UsageError("give either a file of labels or --llvisionqa with a file of questions")
    foreign = QUESTIONS_ONLY if labels is not None else LABELS_ONLY
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in foreign and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{parameter.opts[0]} needs {'--llvisionqa' if labels is not None else 'LABELS'}")
    kept = {name: value for name, value in options.items() if name not in foreign}
    if labels is not None:
        from producer.evaluation.scores import evaluate_scores

        return _print(evaluate_scores(settings.load(), labels, **kept), form)
    from producer.evaluation.answers import evaluate_answers

    return _print(evaluate_answers(settings.load(), str(llvisionqa), Console(stderr=True), **kept), form)


def _print(report: Report, form: str) -> int:
    for line in report.notes:
        click.echo(line, err=True)
    click.echo(json.dumps(report.record) if form == "json" else "\n".join(report.table))
    return ExitCode.OK if report.has_figures else ExitCode.COULD_NOT_RUN
