"""A fleet scores photos while its processes are killed at random: no photo is lost, done twice or falsely failed."""

import logging
import os
from pathlib import Path

import pytest
from sqlalchemy import Engine, update

from models import db
from models.claims import QueueKey, Scored
from models.ledger.jobs import JobSpec, open_job
from models.ledger.leases import claim, record
from models.ledger.listing import add_images, begin_listing
from models.tables import ItemRow
from qsit.sources.photo import ListedPhoto
from qsit.states import ItemState
from tests.support.chaos import Plan, chaos, kills_of_every_kind, twice, watch_for_twice

log = logging.getLogger("chaos")

LONG = int(os.environ.get("CHAOS_KILLS", "0"))
"""Set by `make chaos`. Without it, only the short form runs."""


def check(database_url: str, scratch: Path, plan: Plan) -> None:
    report = chaos(database_url, scratch, plan)

    log.info("%d worker(s), %s: %s", plan.workers, database_url.split(":")[0], report)
    assert (report.lost, report.twice, report.falsely_failed, report.wrong) == ([], [], [], [])
    assert sorted(report.kills.elements()) == sorted(plan.kills)


def test_a_second_write_is_noticed(engine: Engine) -> None:
    watch_for_twice(engine)
    queue = QueueKey("model", "revision")
    job = open_job(engine, JobSpec("key", None, queue.model, queue.revision, "procedure"))
    begin_listing(engine, job.id)
    add_images(engine, job.id, [ListedPhoto("file:///photo", "1")])
    claimed = claim(engine, 1, queue, "host:1:1", 60)
    assert claimed is not None
    scored = Scored(claimed.items[0].image_id, 0.5, (0.0,) * 5, "float32")
    record(engine, claimed, [scored], 60)
    assert twice(engine) == []

    with db.writing(engine) as connection:
        connection.execute(update(ItemRow).values(state=ItemState.QUEUED))
    record(engine, claimed, [scored], 60)

    assert sorted(twice(engine)) == ["items of image 1", "scores of image 1"]


if LONG:

    @pytest.mark.parametrize("workers", [1, 3])
    def test_many_kills_of_every_kind_lose_no_photo(database_url: str, tmp_path: Path, workers: int) -> None:
        items = int(os.environ.get("CHAOS_ITEMS", "10000"))
        seed = int(os.environ.get("CHAOS_SEED", "0"))

        check(database_url, tmp_path, Plan(items, kills_of_every_kind(LONG, seed), workers, seed))

else:

    def test_a_killed_worker_process_and_broker_lose_no_photo(tmp_path: Path) -> None:
        plan = Plan(items=200, kills=("parent", "child", "emptied broker"), seed=1)

        check(f"sqlite:///{tmp_path}/qsit.db", tmp_path, plan)
