"""Engines and transactions for the ledger's database."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from qsit.errors import DatabaseError, DatabaseUnavailable, SchemaMismatch, one_line

SCHEMA = "0007"
"""The migration that this program needs; a test compares it with the newest one."""

LOCKED_S = 10.0
"""How long another process may write to SQLite before the database counts as unavailable."""
CONNECT_ARGS = {
    "connect_timeout": 10,
    # a server that vanishes is noticed within half a minute
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}


def parse_url(url: str) -> URL:
    """
    Return the URL with its driver: psycopg 3 for PostgreSQL.

    Raises DatabaseError when it is not a URL of SQLite or PostgreSQL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        message = (
            "QSIT_DATABASE_URL is not a database URL; write sqlite:////path/qsit.db or postgresql://user@host/name"
        )
        raise DatabaseError(message) from error
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername in ("sqlite", "sqlite+pysqlite") and parsed.database not in (None, "", ":memory:"):
        return parsed
    raise DatabaseError(
        f"QSIT_DATABASE_URL: {redacted(parsed)} is neither a SQLite file (sqlite:////path/qsit.db) "
        "nor PostgreSQL (postgresql://user@host/name)"
    )


def redacted(url: URL) -> str:
    """Return the URL with its password removed."""
    return url.difference_update_query(["password"]).render_as_string()


def connect(url: str, *, create: bool = False, async_commit: bool = False) -> Engine:
    """
    Return an engine for the ledger. It connects when first used. A missing SQLite file is refused unless `create`.

    async_commit: use `synchronous_commit=off`: a crash of PostgreSQL's machine may lose the last second of commits, but
    never reorders them. A worker then does that work again. SQLite always works like that here.

    Raises DatabaseError when the URL cannot be used, or there is no such file.
    """
    parsed = parse_url(url)
    if parsed.drivername.startswith("postgresql"):
        try:
            engine = create_engine(parsed, connect_args=CONNECT_ARGS, pool_pre_ping=True)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise DatabaseError("PostgreSQL needs psycopg: pip install 'qsit[postgres]'") from error
        event.listen(engine, "connect", _postgresql_connected)
        if async_commit:
            event.listen(engine, "connect", _postgresql_async_commit)
        return engine
    path = Path(parsed.database or "")
    if create:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseError(f"cannot create {path.parent} for the database: {error.strerror}") from error
    elif not path.exists():
        raise DatabaseError(f"there is no database at {path} yet; `qsit score` makes it, or: qsit db upgrade")
    engine = create_engine(parsed, connect_args={"timeout": 1})
    event.listen(engine, "connect", _sqlite_connected)
    event.listen(engine, "begin", _sqlite_begin)
    return engine


def _postgresql_connected(connection: Any, _: object) -> None:
    # Indexes answer every query here, for few rows. Plans that read whole tables, start parallel workers or compile
    # are never faster, though old statistics may say so.
    for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "max_parallel_workers_per_gather", "jit"):
        connection.execute(f"SET {setting} = 0")
    connection.commit()


def _postgresql_async_commit(connection: Any, _: object) -> None:
    connection.execute("SET synchronous_commit = off")
    connection.commit()


def _sqlite_connected(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions begin in _sqlite_begin
    _retry_while_locked(lambda: connection.execute("PRAGMA journal_mode = WAL"))
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA cache_size = -65536")


def _sqlite_begin(connection: Connection) -> None:
    # A transaction that will write takes the lock first: one that reads before it writes could not wait for it.
    if not connection.get_execution_options().get("qsit_writes"):
        connection.exec_driver_sql("BEGIN")
        return
    try:
        _retry_while_locked(lambda: connection.connection.cursor().execute("BEGIN IMMEDIATE"))
    except sqlite3.OperationalError:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # fails again, but as an error of SQLAlchemy


def _retry_while_locked(statement: Callable[[], object]) -> None:
    """Run a statement of SQLite, for up to LOCKED_S while another process holds the lock."""
    deadline = time.monotonic() + LOCKED_S
    while True:  # each attempt takes one second at most: SQLite handles no signals while it waits
        try:
            statement()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)  # some statements do not wait for the lock themselves
        else:
            return


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that only reads. Raises DatabaseError, in one line, when the database refuses."""
    with _translated(engine), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that writes, and commit it at the end of the block. Raises DatabaseError as `reading` does."""
    with _translated(engine), engine.connect().execution_options(qsit_writes=True) as connection, connection.begin():
        yield connection


def advisory_lock(connection: Connection, what: str) -> None:
    """Let no other transaction do the same until this one ends. SQLite's write lock ensures that by itself."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"qsit.{what}"))))


def analyse(engine: Engine, *tables: str) -> None:
    """Update PostgreSQL's statistics of some tables; its autovacuum may be minutes late."""
    if engine.dialect.name == "postgresql":
        with writing(engine) as connection:
            connection.execute(text(f"ANALYZE {', '.join(tables)}"))


@contextmanager
def _translated(engine: Engine) -> Iterator[None]:
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseUnavailable(
            f"no connection to the database {redacted(engine.url)} became free in time"
        ) from error
    except DBAPIError as error:
        reason = one_line(error.orig) if error.orig is not None else one_line(error)
        kind = DatabaseUnavailable if _may_pass(error) else DatabaseError
        raise kind(f"the database {redacted(engine.url)} cannot be used: {reason}") from error


def _may_pass(error: DBAPIError) -> bool:
    # Python reports a missing table or wrong SQL of SQLite as an operational error with this code
    is_wrong = getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
    is_standby = getattr(error.orig, "sqlstate", None) == "25006"  # PostgreSQL takes no writes for now
    return error.connection_invalidated or is_standby or (isinstance(error, OperationalError) and not is_wrong)


def sanitize_text(text: str) -> str:
    """Return text that every database accepts: undecodable bytes of file names, and NUL, are escaped."""
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")


def check_schema(engine: Engine) -> None:
    """
    Check that the database has this program's schema.

    Raises SchemaMismatch when it has none or another one; the message names the command to run.
    """
    found = _schema_of(engine)
    if found == SCHEMA:
        return
    refuse_newer_schema(engine)
    has = "no qsit schema yet" if found is None else f"schema {found}, and this qsit needs {SCHEMA}"
    raise SchemaMismatch(f"the database {redacted(engine.url)} has {has}; run: qsit db upgrade")


def open_ledger(url: str) -> Engine:
    """
    Return an engine for an existing ledger with this program's schema.

    Raises DatabaseError when it cannot be used as it is.
    """
    engine = connect(url)
    check_schema(engine)
    return engine


def refuse_newer_schema(engine: Engine) -> None:
    """
    Check that the database has no schema, an older one or this program's.

    Raises SchemaMismatch when a newer qsit made it.
    """
    found = _schema_of(engine)
    if found is not None and found > SCHEMA:
        where = redacted(engine.url)
        raise SchemaMismatch(f"the database {where} has schema {found}, newer than this qsit's {SCHEMA}; upgrade qsit")


def _schema_of(engine: Engine) -> str | None:
    with reading(engine) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return None if found is None else str(found)
