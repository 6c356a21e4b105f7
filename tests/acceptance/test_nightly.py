"""The examples for a nightly run, run as cron and systemd run them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import func, select

from migrations.upgrade import upgrade
from models import db
from models.tables import JobRow, ScoreRow
from tests.support.paths import ROOT
from tests.support.programs import BIN, environment, make_photos, started

NIGHTLY = ROOT / "examples" / "nightly"


def of_cron() -> list[str]:
    """Return the commands of the crontab, read as crontab(5) says."""
    lines = (NIGHTLY / "crontab").read_text().splitlines()
    entries = [line for line in lines if line and not line.startswith("#") and not re.match(r"\w+=", line)]
    for entry in entries:
        assert not re.search(r"(?<!\\)%", entry), "cron ends a command at a bare %"
    return [entry.split(maxsplit=5)[5].replace("\\%", "%") for entry in entries]


def of_systemd() -> list[str]:
    """Return the commands of the nightly service, read as systemd.service(5) says."""
    lines = (NIGHTLY / "qsit-nightly.service").read_text().splitlines()
    commands = [line.split("=", 1)[1] for line in lines if line.startswith(("ExecStart=", "ExecStopPost="))]
    return [shlex.join(shlex.split(command.replace("%%", "%").replace("$$", "$"))) for command in commands]


@pytest.mark.parametrize("commands", [of_cron, of_systemd])
def test_two_nights_at_once_score_every_photo_once(commands: object, broker_url: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/qsit.db"
    upgrade(url)
    photos = make_photos(tmp_path / "photos", 100)
    assert callable(commands)
    nightly, prune = (
        command.replace("/opt/qsit/bin/", f"{BIN}/").replace("/photos", str(photos)) for command in commands()
    )
    variables = {
        "QSIT_BROKER_URL": broker_url,
        "QSIT_MODEL": "demo",
        "QSIT_ROOTS": str(photos),
        "QSIT_DEVICE": "cpu",
        "NULL_BATCH_S": "0.1",
    }
    own = environment(url, variables)
    worker = (sys.executable, "-m", "tests.support.null_worker")

    with started(*worker, database_url=url, log=tmp_path / "log", cwd=ROOT, **variables):
        tonight = nightly.replace("night-", "tonight-")
        nights = [
            subprocess.Popen(command, shell=True, env=own, cwd=os.sep, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for command in (nightly, tonight, nightly)  # one of them twice, as when somebody starts it by hand
        ]
        said = [night.communicate(timeout=240) for night in nights]
    assert [night.returncode for night in nights] == [0, 0, 0], said
    assert subprocess.run(prune, shell=True, env=own, capture_output=True).returncode == 0

    engine = db.connect(url)
    with db.reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(ScoreRow)).scalar() == 100
        names = connection.execute(select(JobRow.name).order_by(JobRow.name)).scalars().all()
    engine.dispose()
    assert len(names) == 2
    assert all(re.fullmatch(r"(to)?night-\d{4}-\d\d-\d\d", name or "") for name in names)
