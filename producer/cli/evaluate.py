"""The command `qsit evaluate`: against opinions of people, or with questions whose answers are known."""

from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from producer.evaluation import published
from qsit import settings
from qsit.errors import UsageError

OF_LABELS = ("path_column", "score_column", "lower_is_better", "dataset", "job", "scores_first")
OF_QUESTIONS = ("device", "limit")


@click.command()
@click.argument("labels", required=False, metavar="[LABELS]")
@click.option("--images", metavar="DIR", help="The folder or s3:// place of the photos.  [default: where LABELS is]")
@click.option("--path-column", metavar="NAME", help="The column of LABELS that has the photos.")
@click.option("--score-column", metavar="NAME", help="The column of LABELS that has the opinions.")
@click.option("--lower-is-better", is_flag=True, help="A low opinion in LABELS means a good photo.")
@click.option("--dataset", type=click.Choice(list(published.KNOWN), case_sensitive=False),
              help="Show what was published for it.  [default: the one that the name of LABELS has]")  # fmt: skip
@click.option("--model", help="Scores of this model.  [default: that of the newest; with --score QSIT_MODEL]")
@click.option("--revision", help="Of this revision of the model.")
@click.option("--job", help="Of this job's model, revision and pixels.")
@click.option("--as-stored", is_flag=True, help="Of the pixels as the file has them: not turned, no profile.")
@click.option("--score", "scores_first", is_flag=True, help="First score what has no score, as `qsit score` does.")
@click.option("--llvisionqa", metavar="FILE", help="Put the questions of this file of LLVisionQA to the model instead.")
@click.option("--device", help="For --llvisionqa: auto, cpu, or cuda:0.  [default: QSIT_DEVICE or auto]")
@click.option("--limit", type=click.IntRange(min=1), help="For --llvisionqa: so many questions at most.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def evaluate(context: click.Context, /, labels: str | None, llvisionqa: str | None, **options: Any) -> int:
    """Compare scores with the opinions of people. LABELS is a CSV, TSV or JSON file of photos and opinions."""
    if (labels is None) == (llvisionqa is None):
        raise UsageError("name a file of labels, or --llvisionqa and a file of questions")
    foreign = OF_QUESTIONS if labels is not None else OF_LABELS
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in foreign and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{parameter.opts[0]} is for {'--llvisionqa' if labels is not None else 'LABELS'}")
    kept = {name: value for name, value in options.items() if name not in foreign}
    if labels is not None:
        from producer.evaluation.scores import evaluate_scores

        return evaluate_scores(settings.load(), labels, **kept)
    from producer.evaluation.answers import evaluate_answers

    return evaluate_answers(settings.load(), str(llvisionqa), Console(stderr=True), **kept)
