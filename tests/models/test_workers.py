"""Workers as the ledger knows them."""

import os
import socket
import subprocess
import sys

import pytest
from sqlalchemy import Engine, update

from models.db import writing
from models.dialects import now_s
from models.ledger import workers
from models.tables import WorkerRow
from qsit import process_id
from qsit.states import WorkerState


def worker(owner: str, broker: str = "") -> WorkerRow:
    return WorkerRow(
        owner=owner, broker=broker, model="demo", revision="r1", device="cpu", dtype="float32", state="loading"
    )


def test_this_process_is_not_dead() -> None:
    assert not process_id.is_dead(process_id.identity())
    assert process_id.identity() == process_id.identity()


def test_an_ended_process_of_this_host_is_dead() -> None:
    code = "from qsit import process_id; print(process_id.identity(), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    owner = child.stdout.readline().strip()
    assert not process_id.is_dead(owner)

    child.communicate("\n")

    assert process_id.is_dead(owner)


def test_a_process_that_reuses_a_number_is_another_process() -> None:
    host = process_id.identity().rsplit(":", 2)[0]

    assert process_id.is_dead(f"{host}:{os.getpid()}:12345.00")


def test_nothing_is_known_of_another_host() -> None:
    assert not process_id.is_dead("elsewhere.example:1:12345.00")


def test_nothing_is_known_of_a_container_of_the_same_name() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux has containers")
    container = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*container, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a namespace")
    code = "from qsit import process_id; print(process_id.identity())"

    done = subprocess.run([*container, sys.executable, "-c", code], capture_output=True, text=True, check=True)

    owner = done.stdout.strip()
    assert owner.startswith(f"{socket.gethostname()}.")
    assert owner.rsplit(":", 2)[0] != process_id.identity().rsplit(":", 2)[0]
    assert not process_id.is_dead(owner)


def test_without_proc_the_host_is_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(os, "readlink", refuse)

    assert process_id._host.__wrapped__() == socket.gethostname()


def test_workers_register_and_set_notices(engine: Engine) -> None:
    workers.register(engine, worker("a:1:1.00"))
    workers.register(engine, worker("b:1:1.00", broker="b"))

    workers.set_notice(engine, "a:1:1.00", state=WorkerState.READY, notice="odd \udcff name\0")

    (one,) = workers.workers(engine, broker="")
    assert (one.owner, one.state, one.notice) == ("a:1:1.00", WorkerState.READY, "odd \\udcff name\\0")
    assert [found.owner for found in workers.workers(engine)] == ["a:1:1.00", "b:1:1.00"]


def test_a_heartbeat_updates_the_time_a_worker_was_seen(engine: Engine) -> None:
    workers.register(engine, worker("a:1:1.00"))
    with writing(engine) as connection:
        connection.execute(update(WorkerRow).values(seen_at=now_s() - 100))
    assert workers.workers(engine, seen_within_s=60) == []

    with writing(engine) as connection:
        workers.heartbeat(connection, "a:1:1.00")

    (one,) = workers.workers(engine, seen_within_s=60)
    assert one.quiet_s == pytest.approx(0, abs=30)


def test_workers_not_seen_for_a_day_are_removed(engine: Engine) -> None:
    workers.register(engine, worker("a:1:1.00"))
    with writing(engine) as connection:
        connection.execute(update(WorkerRow).values(seen_at=now_s() - workers.FORGOTTEN_S - 1))

    workers.register(engine, worker("b:1:1.00"))

    assert [found.owner for found in workers.workers(engine, seen_within_s=1e9)] == ["b:1:1.00"]
