"""Questions from the command line to the answers, with workers that are killed meanwhile."""

import json
import signal
from pathlib import Path
from typing import Any

from PIL import Image
from sqlalchemy import func, select

from models import db
from models.tables import AnswerRow, ScoreRow
from qsit.states import JobState
from tests.support.chaos import twice, watch_for_twice
from tests.support.gate import held
from tests.support.programs import QSIT, family, kill, make_photos, run, started, until
from tests.support.stage import Stage, send

ANSWERS = select(func.count()).select_from(AnswerRow)
SCORES = select(func.count(), func.max(ScoreRow.scored_at)).select_from(ScoreRow)


def answers_in(database_url: str, job: str) -> dict[str, list[dict[str, Any]]]:
    """Return the exported answers about each photo."""
    done = run("results", "--job", job, "--answers", "--format", "jsonl", database_url=database_url)
    return {record["uri"]: record["answers"] for record in map(json.loads, done.stdout.splitlines())}


def test_a_question_about_a_scored_library_is_answered_once_though_the_worker_is_killed(stage: Stage) -> None:
    with stage.worker("scores"):
        stage.submit("--wait")
    with db.reading(stage.engine) as connection:
        before = connection.execute(SCORES).one()

    stage.submit("--ask", "Is it hazy?", "--ask", "sharpness")
    with stage.worker("first", NULL_BATCH_S="0.1") as first:
        until(lambda: stage.count(ANSWERS) > 40)
        send(first, signal.SIGKILL)
    with stage.worker("second"):
        until(lambda: stage.jobs() == [JobState.FINISHED] * 2)

    assert stage.count(ANSWERS) == 400
    assert twice(stage.engine) == []
    with db.reading(stage.engine) as connection:
        assert connection.execute(SCORES).one() == before, "only the answers were computed"
    found = answers_in(stage.url, "2")
    assert len(found) == 200
    for answers in found.values():
        assert [answer["question"] for answer in answers] == ["Is it hazy?", "sharpness"]
        assert answers[0]["answer"].startswith("Is it hazy? ")


def test_only_photos_below_a_score_are_asked_about_in_the_pass_that_scores_them(stage: Stage) -> None:
    for number, path in enumerate(stage.photos.iterdir()):
        Image.new("RGB", (32, 24), "white" if number < 150 else "black").save(path)
    asking = ("--ask", "Is it hazy?", "--ask-below", "0.8")
    with stage.worker("worker"):
        stage.submit(*asking, "--wait")

    assert stage.count(select(func.count()).where(ScoreRow.score < 0.8)) == 50
    assert stage.count(ANSWERS) == 50
    stage.submit(*asking, "--name", "again")
    assert stage.jobs() == [JobState.FINISHED] * 2, "every answer exists, so no worker is needed"


def test_the_demo_model_answers_every_question_though_everything_is_killed(tmp_path: Path) -> None:
    sqlite_url = f"sqlite:///{tmp_path}/qsit.db"
    photos = str(make_photos(tmp_path / "photos", 24))
    run("score", photos, "--model", "demo", database_url=sqlite_url)
    engine = db.connect(sqlite_url)
    watch_for_twice(engine)
    asking = ("score", photos, "--model", "demo", "--ask", "Is it sharp?", "--ask", "noise", "--max-new-tokens", "40")

    def answered() -> int:
        with db.reading(engine) as connection:
            return connection.execute(ANSWERS).scalar_one()

    log = tmp_path / "killed.log"
    with (
        held(sqlite_url, "answers", image_id=24),
        started(QSIT, *asking, database_url=sqlite_url, log=log, QSIT_BATCH_TOKENS="100"),
    ):
        until(lambda: answered() > 0)
        kill(family(sqlite_url))
    assert 0 < answered() < 48
    run(*asking, database_url=sqlite_url)

    found = answers_in(sqlite_url, "2")
    assert [len(answers) for answers in found.values()] == [2] * 24
    assert twice(engine) == []
    for prose, chosen in found.values():
        assert prose["text"] == "Is it sharp?"
        assert chosen["answer"] in ("very low", "low", "acceptable", "high")
        assert abs(sum(chosen["probabilities"].values()) - 1) < 1e-9
    engine.dispose()
