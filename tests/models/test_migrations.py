"""The schema, the views, and what a program says to a database of another schema."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, func, select, text, update

from migrations.upgrade import upgrade
from models import db
from models.claims import Failed
from models.db import SCHEMA, check_schema, reading, writing
from models.ledger import leases, scheduling
from models.tables import Base, ChunkRow
from qsit import process_id
from qsit.errors import DatabaseError, DatabaseUnavailable, SchemaMismatch
from qsit.questions import Question
from qsit.states import Reason
from tests.support.ledger import QUEUE, SPEC, claimed, listed, photos, score_all
from tests.support.paths import ROOT

VIEWS = {
    "qsit_scores": (
        "uri version score logit_excellent logit_good logit_fair logit_poor logit_bad model revision procedure dtype "
        "scored_at job"
    ),
    "qsit_failures": "uri version reason message model revision procedure job",
    "qsit_answers": (
        "uri version question text choices answer cut probabilities model revision procedure dtype answered_at job"
    ),
    "qsit_backlog": "job name state model revision priority created_at waiting",
}


def test_the_migrations_make_the_tables(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_the_newest_migration_is_the_schema_of_the_program() -> None:
    assert ScriptDirectory(str(ROOT / "migrations")).get_current_head() == SCHEMA


def test_upgrading_twice_changes_nothing(database_url: str) -> None:
    upgrade(database_url)
    upgrade(database_url)
    engine = db.connect(database_url)

    check_schema(engine)
    engine.dispose()


def migrate(engine: Engine, function: Callable[[str, MigrationContext], list[Any]]) -> None:
    with writing(engine) as connection:
        context = MigrationContext.configure(connection, opts={"fn": function})
        with Operations.context(context):
            context.run_migrations()


def test_rows_survive_downgrade_and_upgrade(engine: Engine) -> None:
    listed(engine, photos(40), replace(SPEC, questions=(Question("overall", "How is it?"),), ask_below=0.5))
    score_all(engine, failing=(photos(1)[0].uri,))
    script = ScriptDirectory(str(ROOT / "migrations"))

    migrate(engine, lambda revision, _: script._downgrade_revs("0001", revision))
    with pytest.raises(SchemaMismatch, match="schema 0001"):
        check_schema(engine)
    migrate(engine, lambda revision, _: script._upgrade_revs("head", revision))

    check_schema(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        assert connection.execute(text("SELECT count(*) FROM qsit_scores")).scalar() == 39
        assert connection.execute(text("SELECT count(*) FROM qsit_failures")).scalar() == 1


def test_chunks_survive_the_migration_of_their_columns(engine: Engine) -> None:
    listed(engine, photos(160))
    claim = claimed(engine, worker="far:1:1.00")
    scheduling.stage_chunks(engine, QUEUE, ahead=1, lease_s=60)
    script = ScriptDirectory(str(ROOT / "migrations"))
    every_chunk = select(*ChunkRow.__table__.columns).order_by(ChunkRow.id)
    with writing(engine) as connection:
        resting = select(func.max(ChunkRow.id)).scalar_subquery()
        connection.execute(update(ChunkRow).where(ChunkRow.id == resting).values(available_at=5.0))
        before = connection.execute(every_chunk).all()
    assert {row.state for row in before} == {"queued", "sent", "leased"}

    migrate(engine, lambda revision, _: script._downgrade_revs("0006", revision))
    with engine.connect() as connection:
        old = connection.execute(text("SELECT state, owner, until FROM chunks ORDER BY id")).all()
    migrate(engine, lambda revision, _: script._upgrade_revs("head", revision))

    leased = next(row for row in before if row.id == claim.chunk_id)
    assert ("leased", "far:1:1.00", leased.lease_expires_at) in old
    assert ("queued", None, 5.0) in old
    with reading(engine) as connection:
        assert connection.execute(every_chunk).all() == before


def test_each_ledger_has_its_own_permanent_id(engine: Engine, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/other.db"
    upgrade(url)
    other = db.connect(url)

    names = {scheduling.ledger_id(engine), scheduling.ledger_id(other)}
    upgrade(engine.url.render_as_string(hide_password=False))

    assert len(names) == 2
    again = db.connect(engine.url.render_as_string(hide_password=False))
    assert scheduling.ledger_id(again) == scheduling.ledger_id(engine)
    other.dispose()
    again.dispose()


def test_a_database_with_another_schema_is_refused_with_the_command_to_run(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    with pytest.raises(SchemaMismatch, match="run: qsit db upgrade"):
        check_schema(engine)
    with writing(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaMismatch, match="upgrade qsit"):
        check_schema(engine)
    with pytest.raises(SchemaMismatch, match="upgrade qsit"):
        upgrade(engine.url.render_as_string(hide_password=False))
    with writing(engine) as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    with pytest.raises(SchemaMismatch, match="no qsit schema yet; run: qsit db upgrade"):
        check_schema(engine)


def test_the_views_have_the_documented_columns(engine: Engine) -> None:
    with reading(engine) as connection:
        for view, columns in VIEWS.items():
            assert list(connection.execute(text(f"SELECT * FROM {view}")).keys()) == columns.split()


def test_the_views_show_scores_failures_and_what_waits(engine: Engine) -> None:
    job = listed(engine, photos(40))
    with reading(engine) as connection:
        assert connection.execute(text("SELECT job, waiting FROM qsit_backlog")).one() == (job, 40)
    (message, *_) = scheduling.stage_chunks(engine, QUEUE, ahead=1, lease_s=60)
    claim = leases.claim(engine, message.chunk_id, QUEUE, process_id.identity(), 60)
    assert claim is not None
    leases.record(engine, claim, [Failed(claim.items[0].image_id, Reason.CORRUPT, "broken")], 60)
    leases.release(engine, claim)
    score_all(engine)

    with reading(engine) as connection:
        assert connection.execute(text("SELECT count(*), min(score) FROM qsit_scores")).one() == (39, 0.5)
        rows = connection.execute(text("SELECT uri, reason, message, job FROM qsit_failures")).all()
        assert rows == [(photos(1)[0].uri, "corrupt", "broken", job)]
        assert connection.execute(text("SELECT count(*) FROM qsit_backlog")).scalar() == 0


@pytest.mark.parametrize("url", ["mysql://host/x", "sqlite://", "sqlite:///:memory:", "not a url"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(DatabaseError, match="QSIT_DATABASE_URL"):
        db.connect(url)


def test_connecting_does_not_create_a_missing_sqlite_file(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="qsit db upgrade"):
        db.connect(f"sqlite:///{tmp_path}/none.db")

    assert not (tmp_path / "none.db").exists()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, and it is long enough to tell" * 100)

    with pytest.raises(DatabaseError, match="cannot be used"):
        check_schema(db.connect(f"sqlite:///{tmp_path}/text.db"))


def test_an_unreachable_server_is_an_outage() -> None:
    engine = db.connect("postgresql://me:secret@127.0.0.1:9/x")

    with pytest.raises(DatabaseUnavailable) as caught:
        check_schema(engine)
    assert "secret" not in str(caught.value)
