"""Connections to the database."""

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from models import db
from qsit.errors import DatabaseUnavailable


def test_a_connection_waits_for_a_file_that_another_process_creates(tmp_path: Path) -> None:
    """Switching a new file to WAL fails at once while another connection holds its lock."""
    path = tmp_path / "qsit.db"
    engine = db.connect(f"sqlite:///{path}", create=True)
    is_locked = threading.Event()

    def hold_the_lock() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("CREATE TABLE made (id INTEGER)")
            other.execute("BEGIN EXCLUSIVE")
            is_locked.set()
            time.sleep(2)
            other.execute("COMMIT")

    holder = threading.Thread(target=hold_the_lock)
    holder.start()
    is_locked.wait()

    with db.reading(engine) as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    holder.join()
    engine.dispose()


def test_a_file_that_stays_locked_is_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "LOCKED_S", 0.1)
    path = tmp_path / "qsit.db"
    engine = db.connect(f"sqlite:///{path}", create=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE made (id INTEGER)")
        other.execute("BEGIN EXCLUSIVE")

        with pytest.raises(DatabaseUnavailable, match="locked"), db.reading(engine):
            pass
    engine.dispose()
