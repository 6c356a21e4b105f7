"""Kills the processes of a fleet at random moments while it scores photos, and checks what each photo became."""

import contextlib
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image as Picture
from sqlalchemy import Engine, func, select, text

from models import db
from models.tables import ChunkRow, ImageRow, ItemRow, JobRow, ScoreRow
from qsit.states import ChunkState, ItemState, JobState, Reason
from tests.support.fleet import KINDS, SETTINGS, broker_of, fleet
from tests.support.null_worker import DEADLY, ENDLESS
from tests.support.programs import family, make_photos, run, until

JOB = "chaos"


@dataclass(frozen=True)
class Plan:
    """What to score and what to kill. The same seed makes the same plan, though not the same run."""

    items: int
    kills: Sequence[str]  # of KINDS, in this order
    workers: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Report:
    """The names of photos that were lost, done twice, or failed though they are good; and whatever else is wrong."""

    items: int
    kills: Counter[str]
    lost: list[str]
    twice: list[str]
    falsely_failed: list[str]
    wrong: list[str]
    seconds: float

    def __str__(self) -> str:
        kills = ", ".join(f"{number} {kind}" for kind, number in sorted(self.kills.items()))
        return (
            f"{self.items} items, {self.kills.total()} kills ({kills}): {len(self.lost)} lost, "
            f"{len(self.twice)} twice, {len(self.falsely_failed)} falsely failed, "
            f"{len(self.wrong)} wrong, {self.seconds:.0f} s"
        )


def kills_of_every_kind(count: int, seed: int = 0) -> list[str]:
    """Return this many kills in a random order, each kind as often as the others."""
    kills = [KINDS[index % len(KINDS)] for index in range(count)]
    random.Random(seed).shuffle(kills)
    return kills


def plant(folder: Path, count: int, seed: int) -> dict[str, Reason]:
    """Make photos, and replace some by bad ones: 1 in 100 is broken, and 1 in 3,000 each is deadly or endless."""
    make_photos(folder, count)
    each = -(-count // 3000)
    reasons = [Reason.CORRUPT] * (count // 100) + [Reason.CRASHED] * each + [Reason.TIMEOUT] * each
    chosen = random.Random(seed).sample(range(count), len(reasons))
    planted = {f"{index:05d}.png": reason for index, reason in zip(chosen, reasons, strict=True)}
    for name, reason in planted.items():
        path = folder / name
        if reason is Reason.CORRUPT:
            path.write_bytes(path.read_bytes()[:-200])
        else:
            Picture.new("RGB", (32, 24), DEADLY if reason is Reason.CRASHED else ENDLESS).save(path)
    return planted


def chaos(database_url: str, scratch: Path, plan: Plan) -> Report:
    """
    Score photos with a fleet, kill as planned, wait until the job finishes, and report.

    The kills are spread over the job at random. Each comes within a second after a chosen number of photos is done.
    """
    photos = scratch / "photos"
    planted = plant(photos, plan.items, plan.seed)
    run("db", "upgrade", database_url=database_url)
    engine = db.connect(database_url)
    watch_for_twice(engine)
    chance = random.Random(plan.seed)
    moments = sorted(chance.uniform(0, 0.97) * plan.items for _ in plan.kills)
    done: Counter[str] = Counter()
    wrong: list[str] = []
    with fleet(database_url, photos, plan.workers, scratch) as running:
        began = time.monotonic()
        variables = SETTINGS | broker_of(running.broker_folder)
        run("submit", str(photos), "--name", JOB, database_url=database_url, **variables)
        for kind, moment in zip(plan.kills, moments, strict=True):
            until(lambda moment=moment: settled(engine) >= moment, timeout_s=180)
            time.sleep(chance.uniform(0, 1))
            running.kill(kind, chance)
            done[kind] += 1
        until(lambda: state_of(engine) == JobState.FINISHED, timeout_s=300)
        seconds = time.monotonic() - began
        for worker in running.workers:
            status = worker.stop()
            if status not in (0, -signal.SIGTERM):  # -SIGTERM: it was just starting
                wrong.append(f"a worker ended with {status}")
        running.broker.stop()
        with contextlib.suppress(AssertionError):
            until(lambda: family(database_url) == [], timeout_s=30)
        wrong += [f"left behind: {process}" for process in family(database_url)]
    wrong += _disagreements(engine, database_url, plan.items)
    for log in scratch.glob("worker*.log"):
        wrong += [line for line in log.read_text().splitlines() if "unexpected error" in line]
    lost, falsely_failed, mistaken = _fates(engine, photos, planted)
    report = Report(plan.items, done, lost, twice(engine), falsely_failed, wrong + mistaken, seconds)
    engine.dispose()
    return report


def settled(engine: Engine) -> int:
    """Return how many items are scored or failed."""
    with db.reading(engine) as connection:
        return int(connection.execute(select(func.sum(ChunkRow.scored + ChunkRow.failed))).scalar() or 0)


def state_of(engine: Engine) -> str:
    with db.reading(engine) as connection:
        return connection.execute(select(JobRow.state).where(JobRow.name == JOB)).scalar_one()


def watch_for_twice(engine: Engine) -> None:
    """Make the database note each score or answer that is overwritten, and each item that is settled again."""
    tables = {
        "scores": ("UPDATE", "true"),
        "answers": ("UPDATE", "true"),
        "items": ("UPDATE OF state", "OLD.state <> 'queued'"),
    }
    with db.writing(engine) as connection:
        connection.execute(text("CREATE TABLE twice (what TEXT, image_id BIGINT)"))
        for table, (event, condition) in tables.items():
            note = f"INSERT INTO twice VALUES ('{table}', NEW.image_id)"
            if engine.dialect.name == "sqlite":
                when = f"AFTER {event} ON {table} WHEN {condition}"
                connection.execute(text(f"CREATE TRIGGER twice_{table} {when} BEGIN {note}; END"))
                continue
            function = f"BEGIN {note}; RETURN NEW; END"
            connection.execute(
                text(f"CREATE FUNCTION note_{table}() RETURNS trigger LANGUAGE plpgsql AS $${function}$$")
            )
            when = f"AFTER {event} ON {table} FOR EACH ROW WHEN ({condition})"
            connection.execute(text(f"CREATE TRIGGER twice_{table} {when} EXECUTE FUNCTION note_{table}()"))


def twice(engine: Engine) -> list[str]:
    """Return what `watch_for_twice` has noted."""
    with db.reading(engine) as connection:
        return [f"{row.what} of image {row.image_id}" for row in connection.execute(text("SELECT * FROM twice"))]


def _fates(engine: Engine, photos: Path, planted: dict[str, Reason]) -> tuple[list[str], list[str], list[str]]:
    """Return the names of photos that are lost, falsely failed, or have a wrong score or reason."""
    query = (
        select(ImageRow.uri, ItemRow.state, ItemRow.reason, ScoreRow.excellent)
        .join(ItemRow, ItemRow.image_id == ImageRow.id)
        .outerjoin(ScoreRow, ScoreRow.image_id == ImageRow.id)
    )
    with db.reading(engine) as connection:
        found = connection.execute(query).all()
    rows = {Path(row.uri).name: row for row in found}
    lost, falsely_failed, wrong = [], [], [] if len(found) == len(rows) else ["photos with several rows"]
    for path in sorted(photos.iterdir()):
        row = rows.get(path.name)
        reason = planted.get(path.name)
        if row is None or row.state not in (ItemState.SCORED, ItemState.FAILED):
            lost.append(path.name)
        elif reason is not None:
            # a photo that never decodes runs alone for a second, in which three kills may hit it: then it is `crashed`
            reasons = {reason, Reason.CRASHED} if reason is Reason.TIMEOUT else {reason}
            if (row.state, row.excellent) != (ItemState.FAILED, None) or row.reason not in reasons:
                wrong.append(f"{path.name} is {row.state} {row.reason}, not {reason}")
        elif row.state == ItemState.FAILED:
            falsely_failed.append(f"{path.name} {row.reason}")
        elif row.excellent is None:
            lost.append(path.name)
        elif abs(row.excellent - _logit_of(path)) > 1e-5:
            wrong.append(f"{path.name} has the score of another photo")
    return lost, falsely_failed, wrong


def _logit_of(path: Path) -> float:
    with Picture.open(path) as picture:
        return float(np.asarray(picture).mean()) / 64


def _disagreements(engine: Engine, database_url: str, items: int) -> Iterator[str]:
    """Yield where counters, rows and `qsit status` disagree."""
    with db.reading(engine) as connection:
        chunks = connection.execute(
            select(ChunkRow.id, ChunkRow.state, ChunkRow.size, ChunkRow.scored, ChunkRow.failed).order_by(ChunkRow.id)
        ).all()
        by_chunk = {
            (row.chunk_id, row.state): row.number
            for row in connection.execute(
                select(ItemRow.chunk_id, ItemRow.state, func.count().label("number")).group_by(
                    ItemRow.chunk_id, ItemRow.state
                )
            )
        }
        failed_items = (
            select(ItemRow.reason, func.count()).where(ItemRow.state == ItemState.FAILED).group_by(ItemRow.reason)
        )
        reasons = {row[0]: row[1] for row in connection.execute(failed_items)}
        scores = connection.execute(select(func.count()).select_from(ScoreRow)).scalar_one()
    scored = failed = 0
    for chunk in chunks:
        counted = by_chunk.get((chunk.id, ItemState.SCORED), 0), by_chunk.get((chunk.id, ItemState.FAILED), 0)
        scored, failed = scored + counted[0], failed + counted[1]
        if (chunk.scored, chunk.failed) != counted or chunk.state != ChunkState.DONE or sum(counted) != chunk.size:
            yield f"chunk {chunk} has {counted} scored and failed items"
    if (scored + failed, scores) != (items, scored):
        yield f"{scored} scored and {failed} failed of {items} items, {scores} scores"
    status = json.loads(run("status", JOB, "--format", "json", database_url=database_url).stdout)
    told = [status[key] for key in ("state", "listed", "queued", "running", "scored", "failed", "failed_by_reason")]
    if told != ["finished", items, 0, 0, scored, failed, reasons]:
        yield f"status says {told}, the tables {[scored, failed, reasons]}"
