"""What the ledger takes of a worker's time: each change of state of a chunk, and what is asked every few seconds.

    python -m benchmarks.ledger sqlite|postgresql [--items N] [--chunk N] [--rounds N] [--folder DIR] [--seed N]

Submits a job of generated keys as `qsit submit` does, in chunks of the size of one batch, and scores half of them by
SQL. Then goes with one worker of sixteen through rounds of what it does with a chunk, the others' chunks held
meanwhile, and times each call. Prints a table and a line of JSON. The databases are those of scale.py.
"""

import argparse
import json
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event, text

from benchmarks.library import DIALECT
from benchmarks.scale import LANE, databases, options, percentiles, scratch, submit
from migrations.upgrade import upgrade
from models import db
from models.claims import Claim, Failed, Scored
from models.ledger import ingest, jobs, leases, rescue, scheduling, workers
from models.queries.progress import job_progress
from models.tables import WorkerRow
from qsit.states import Reason, WorkerState

BATCH = 64
"""Results in one record."""
WORKERS = 16
FAILED = 4
"""Photos of a batch that fail, in every fourth round."""
LEASE_S = 3600.0
TOGETHER = "claim and record together"
JOB = 1


class Clock:
    """What each operation took in milliseconds, and its statements and transactions."""

    def __init__(self, engine: Engine) -> None:
        self.took: dict[str, list[float]] = defaultdict(list)
        self.statements: dict[str, int] = defaultdict(int)
        self.transactions: dict[str, int] = defaultdict(int)
        self._count: Counter[str] = Counter()
        event.listen(engine, "before_cursor_execute", lambda *_: self._count.update(["statements"]))
        event.listen(engine, "begin", lambda *_: self._count.update(["transactions"]))

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """One call of an operation."""
        self._count.clear()
        start = time.perf_counter()
        yield
        self.took[name].append((time.perf_counter() - start) * 1000)
        self.statements[name] = max(self.statements[name], self._count["statements"])
        self.transactions[name] = max(self.transactions[name], self._count["transactions"])


def make(engine: Engine, items: int, chunk: int) -> None:
    """A listed job, the first half of which is scored."""
    ingest.CHUNK_SIZE = chunk
    start = time.perf_counter()
    submit(engine.url.render_as_string(hide_password=False), items, "a library")
    half = "(SELECT id FROM chunks WHERE id % 2 = 0)"
    random_of = DIALECT[engine.dialect.name]["random"]
    with db.writing(engine) as connection:
        for statement in (
            f"INSERT INTO scores SELECT image_id, 1, {random_of}, 0, 0, 0, 0, 0, 'float16', job_id, CURRENT_TIMESTAMP "
            f"FROM items WHERE chunk_id IN {half}",
            f"UPDATE items SET state = 'scored' WHERE chunk_id IN {half}",
            f"UPDATE chunks SET state = 'done', scored = size WHERE id IN {half}",
        ):
            connection.execute(text(statement))
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
    print(f"{items:,} items in chunks of {chunk} made in {time.perf_counter() - start:.0f} s", flush=True)


def owner(number: int) -> str:
    return f"gpu{number}:1:1.00"


def begin(engine: Engine) -> deque[int]:
    """Sixteen workers, all but the first with a chunk in hand. What waits in Redis."""
    for number in range(1, WORKERS + 1):
        workers.register(
            engine,
            WorkerRow(
                owner=owner(number), broker="", model=LANE.model, revision=LANE.revision, device="cuda:0",
                dtype="float16", state=WorkerState.READY,
            ),
        )  # fmt: skip
    waiting = deque(message.chunk_id for message in send(engine))
    for number in range(2, WORKERS + 1):
        leases.claim(engine, waiting.popleft(), LANE, owner(number), LEASE_S)
    waiting.extend(message.chunk_id for message in send(engine))
    return waiting


def send(engine: Engine) -> list[scheduling.Message]:
    return scheduling.stage_chunks(engine, LANE, ahead=2, lease_s=LEASE_S)


def rounds(engine: Engine, clock: Clock, waiting: deque[int], count: int, chosen: random.Random) -> None:
    """A worker's way with one chunk after another."""
    for number in range(count):
        claim = claimed(engine, clock, waiting.popleft())
        with clock.timing("send: one chunk"):
            waiting.extend(message.chunk_id for message in send(engine))
        with clock.timing("send: nothing to send"):
            send(engine)
        ids = [item.image_id for item in claim.items]
        failed = FAILED if number % 4 == 3 else 0
        for low in range(0, len(ids), BATCH):
            one_batch(engine, clock, claim, ids[low : low + BATCH], failed, chosen)
        if len(ids) == BATCH and not failed:
            clock.took[TOGETHER].append(clock.took["claim"][-1] + clock.took["record"][-1])
        with clock.timing("hand_back"):
            leases.release(engine, claim)


def claimed(engine: Engine, clock: Clock, chunk_id: int) -> Claim:
    with clock.timing("claim"):
        claim = leases.claim(engine, chunk_id, LANE, owner(1), LEASE_S)
    assert claim is not None
    return claim


def one_batch(engine: Engine, clock: Clock, claim: Claim, ids: list[int], failed: int, chosen: random.Random) -> None:
    with clock.timing("start"):
        leases.mark_in_flight(engine, claim, ids)
    results: list[Scored | Failed] = [
        Failed(image_id, Reason.CORRUPT, "the file is truncated")
        if index < failed
        else Scored(image_id, chosen.random(), tuple(chosen.uniform(-9, 9) for _ in range(5)), "float16")
        for index, image_id in enumerate(ids)
    ]
    with clock.timing(f"record: {failed} of them failed" if failed else "record"):
        leases.record(engine, claim, results, LEASE_S)


def asked_by_timers(engine: Engine, clock: Clock, count: int, claim: Claim) -> None:
    """What each worker, and each that waits for a job, does every few seconds."""

    def beat() -> None:
        with db.writing(engine) as connection:
            workers.heartbeat(connection, owner(1))
            leases.renew(connection, claim, LEASE_S)

    asked: dict[str, Callable[[], object]] = {
        "heartbeat": beat,
        "finish_done_jobs": lambda: jobs.finish_done_jobs(engine),
        "free_the_dead": lambda: rescue.requeue_of_dead(engine),
        "lanes": lambda: scheduling.queues_with_work(engine),
        "progress": lambda: job_progress(engine, JOB),
    }
    for name, ask in asked.items():
        for _ in range(count):
            with clock.timing(name):
                ask()


def measured(url: str, args: argparse.Namespace) -> dict[str, Any]:
    upgrade(url)
    engine = db.connect(url)
    make(engine, args.items, args.chunk)
    engine.dispose()
    return timed_all(db.connect(url, async_commit=True), args)  # as a worker does


def timed_all(engine: Engine, args: argparse.Namespace) -> dict[str, Any]:
    clock = Clock(engine)
    waiting = begin(engine)
    rounds(engine, clock, waiting, args.rounds, random.Random(args.seed))
    asked_by_timers(engine, clock, args.rounds, claimed(engine, clock, waiting.popleft()))
    engine.dispose()
    print("\n| operation | p50 ms | p95 ms | statements | transactions |\n|---|---|---|---|---|")
    ms = {name: percentiles(took) for name, took in clock.took.items()}
    for name, (p50, p95) in ms.items():
        counts = (clock.statements.get(name, ""), clock.transactions.get(name, ""))
        print("| {} | {:.1f} | {:.1f} | {} | {} |".format(name, p50, p95, *counts))
    return {"ms": ms, "statements": clock.statements, "transactions": clock.transactions}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--chunk", type=int, default=BATCH, help="items in a chunk")
    parser.add_argument("--rounds", type=int, default=400, help="chunks to work on")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    report: dict[str, Any] = {name: getattr(args, name) for name in ("database", "items", "chunk", "rounds")}
    with scratch("ledger", args.folder) as folder, databases(args.database, folder) as create:
        report |= measured(create("ledger"), args)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
