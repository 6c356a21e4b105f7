"""What workers report: that they live, what they hold, and what blocks them."""

from dataclasses import dataclass

from sqlalchemy import Connection, Engine, delete, select, update

from models.db import reading, sanitize_text, writing
from models.dialects import now_s
from models.tables import WorkerRow
from qsit.states import WorkerState

FORGOTTEN_S = 24 * 3600
"""Workers not seen for so long are removed from the ledger."""


@dataclass(frozen=True)
class WorkerInfo:
    """A worker as `qsit status` shows it. quiet_s: seconds since it was last seen."""

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


def register(engine: Engine, worker: WorkerRow) -> None:
    """Add or replace a worker, and remove those not seen for long."""
    with writing(engine) as connection:
        connection.execute(delete(WorkerRow).where(WorkerRow.seen_at < now_s() - FORGOTTEN_S))
        connection.execute(delete(WorkerRow).where(WorkerRow.owner == worker.owner))
        columns = ("owner", "broker", "model", "revision", "device", "dtype", "state", "load_s", "notice")
        row = {column: getattr(worker, column) for column in columns}
        connection.execute(WorkerRow.__table__.insert().values(**row, seen_at=now_s()))  # type: ignore[attr-defined]


def heartbeat(connection: Connection, owner: str) -> None:
    """Note that a worker lives."""
    connection.execute(update(WorkerRow).where(WorkerRow.owner == owner).values(seen_at=now_s()))


def set_notice(engine: Engine, owner: str, *, state: WorkerState | None = None, notice: str | None = None) -> None:
    """Set a worker's notice, and its state if given."""
    values: dict[str, object] = {"seen_at": now_s(), "notice": None if notice is None else sanitize_text(notice)}
    if state is not None:
        values["state"] = state
    with writing(engine) as connection:
        connection.execute(update(WorkerRow).where(WorkerRow.owner == owner).values(values))


def workers(engine: Engine, *, broker: str | None = None, seen_within_s: float = FORGOTTEN_S) -> list[WorkerInfo]:
    """Return the workers seen lately, of one broker if given, in a stable order."""
    now = now_s()
    columns = [column for column in WorkerRow.__table__.columns if column.name != "seen_at"]
    query = select(*columns, (now - WorkerRow.seen_at).label("quiet_s"))
    query = query.where(WorkerRow.seen_at > now - seen_within_s).order_by(WorkerRow.owner)
    if broker is not None:
        query = query.where(WorkerRow.broker == broker)
    with reading(engine) as connection:
        return [
            WorkerInfo(**{**row, "state": WorkerState(row["state"])}) for row in connection.execute(query).mappings()
        ]
