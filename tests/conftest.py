"""What all tests share: the slow tier, clean settings, both kinds of database, and a broker."""

import os
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine

from migrations.upgrade import upgrade
from models import db
from tests.support.servers import postgres_server, valkey

SLOW_FOLDERS = {"acceptance", "chaos"}
SERVERS = {"postgres", "broker_url", "moto"}
TEMPLATE = "qsit_template"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what is in a slow folder or uses a server."""
    for item in items:
        in_slow_folder = bool(SLOW_FOLDERS & set(item.path.relative_to(Path(__file__).parent).parts))
        on_postgres = isinstance(item, pytest.Function) and "postgresql" in _parameters(item)
        if in_slow_folder or on_postgres or SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


def _parameters(item: pytest.Function) -> list[object]:
    return list(item.callspec.params.values()) if hasattr(item, "callspec") else []


@pytest.fixture(autouse=True, scope="session")
def _skip_what_starts_a_process_or_a_server(request: pytest.FixtureRequest) -> None:
    """With `-m "not slow"`, skip each test at the moment when it starts a program or listens on a socket."""
    if request.config.getoption("markexpr") != "not slow":
        return

    def refuse(event: str, _: tuple[object, ...]) -> None:
        if event in ("subprocess.Popen", "socket.bind"):
            pytest.skip("starts a process or a server")

    sys.addaudithook(refuse)


@pytest.fixture(autouse=True, scope="session")
def _signals_as_in_a_terminal() -> None:
    """Programs inherit ignored signals, which tests that run in the background of a shell have."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("QSIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of the database `postgres` on a PostgreSQL server."""
    with postgres_server() as server:
        yield server.get_uri()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema, for copies. All copies share the ledger's id."""
    path = tmp_path_factory.mktemp("template") / "qsit.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres: str) -> str:
    """The name of a PostgreSQL database with the schema, for copies. All copies share the ledger's id."""
    upgrade(create_database(postgres, TEMPLATE))
    return TEMPLATE


def create_database(server: str, name: str, template: str = "template1") -> str:
    """Create a database on a PostgreSQL server and return its URL."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database of each kind, empty unless the test also uses `engine`."""
    migrated = "engine" in request.fixturenames
    if request.param == "sqlite":
        if migrated:
            shutil.copyfile(request.getfixturevalue("migrated_sqlite"), tmp_path / "qsit.db")
        yield f"sqlite:///{tmp_path}/qsit.db"
        return
    server = request.getfixturevalue("postgres")
    name = f"t{uuid.uuid4().hex[:12]}"
    yield create_database(server, name, request.getfixturevalue("migrated_postgres") if migrated else "template1")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A database of each kind, with the schema."""
    engine = db.connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def broker_url() -> Iterator[str]:
    """The URL of a Valkey server that only this test uses."""
    with valkey() as url:
        yield url
