"""Fixtures of the tests that start programs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from migrations.upgrade import upgrade
from models import db
from tests.support.chaos import watch_for_twice
from tests.support.fleet import SETTINGS
from tests.support.programs import make_photos
from tests.support.stage import Stage


@pytest.fixture
def stage(tmp_path: Path, broker_url: str) -> Iterator[Stage]:
    url = f"sqlite:///{tmp_path}/qsit.db"
    upgrade(url)
    engine = db.connect(url)
    watch_for_twice(engine)
    photos = make_photos(tmp_path / "photos", 200)
    variables = SETTINGS | {"QSIT_BROKER_URL": broker_url, "QSIT_ROOTS": str(photos)}
    yield Stage(url, engine, photos, tmp_path, variables)
    engine.dispose()
