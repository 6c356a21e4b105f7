"""The workers: who they are, what they hold, and whether they still live."""

import contextlib
import functools
import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import Connection, Engine, delete, select, update

from models.db import reading, storable, writing
from models.dialects import now_s
from models.tables import Worker
from qsit.states import WorkerState

FORGOTTEN_S = 24 * 3600
"""A worker not seen for so long is removed from the ledger."""


def identity() -> str:
    """host:pid:start of this process, with which it signs what it holds."""
    return _identity(os.getpid())


@functools.cache
def _identity(pid: int) -> str:
    return f"{_host()}:{pid}:{_started(pid)}"


@functools.cache
def _host() -> str:
    """The host's name, and on Linux a mark of its boot and of the container: others may have the same name."""
    try:
        seen = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}.{hashlib.sha256(seen.encode()).hexdigest()[:8]}"


def is_dead(owner: str) -> bool:
    """Whether `owner` is a process of this host and container that has ended. Of others nothing is known."""
    host, pid, start = owner.rsplit(":", 2)
    if host != _host():
        return False
    try:
        return _started(int(pid)) != start or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _started(pid: int) -> str:
    """When a process began: on Linux in ticks since boot, which no change of the clock moves. Raises NoSuchProcess."""
    began = psutil.Process(pid).create_time()
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]  # field 22 of proc(5)
    return f"{began:.2f}"


@dataclass(frozen=True)
class WorkerInfo:
    """A worker as `status` shows it; quiet_s is how long ago it was last seen."""

    owner: str
    broker: str
    model: str
    revision: str
    device: str
    dtype: str
    state: WorkerState
    load_s: float | None
    notice: str | None
    quiet_s: float


def announce(engine: Engine, worker: Worker) -> None:
    """Write a worker down, and forget those long gone."""
    with writing(engine) as connection:
        connection.execute(delete(Worker).where(Worker.seen_at < now_s() - FORGOTTEN_S))
        connection.execute(delete(Worker).where(Worker.owner == worker.owner))
        columns = ("owner", "broker", "model", "revision", "device", "dtype", "state", "load_s", "notice")
        row = {column: getattr(worker, column) for column in columns}
        connection.execute(Worker.__table__.insert().values(**row, seen_at=now_s()))  # type: ignore[attr-defined]


def beat(connection: Connection, owner: str) -> None:
    """Say that a worker lives."""
    connection.execute(update(Worker).where(Worker.owner == owner).values(seen_at=now_s()))


def say(engine: Engine, owner: str, *, state: WorkerState | None = None, notice: str | None = None) -> None:
    """Change what a worker has to say: its state if given, and its notice."""
    values: dict[str, object] = {"seen_at": now_s(), "notice": None if notice is None else storable(notice)}
    if state is not None:
        values["state"] = state
    with writing(engine) as connection:
        connection.execute(update(Worker).where(Worker.owner == owner).values(values))


def workers(engine: Engine, *, broker: str | None = None, seen_within_s: float = FORGOTTEN_S) -> list[WorkerInfo]:
    """The workers seen lately, of one broker if given, in a stable order."""
    now = now_s()
    query = select(
        Worker.owner, Worker.broker, Worker.model, Worker.revision, Worker.device, Worker.dtype, Worker.state,
        Worker.load_s, Worker.notice, (now - Worker.seen_at).label("quiet_s"),
    ).where(Worker.seen_at > now - seen_within_s).order_by(Worker.owner)  # fmt: skip
    if broker is not None:
        query = query.where(Worker.broker == broker)
    with reading(engine) as connection:
        return [
            WorkerInfo(**{**row, "state": WorkerState(row["state"])}) for row in connection.execute(query).mappings()
        ]
