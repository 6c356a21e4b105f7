"""Measure the ledger's share of a worker's time: each change of a chunk, and the queries that timers repeat.

    python -m benchmarks.ledger sqlite|postgresql [--items N] [--chunk N] [--rounds N] [--folder DIR] [--seed N]

Submits a job of generated keys as `qsit submit` does, in chunks of one batch each, and scores half of them by SQL. Then
times each call that one of sixteen workers makes for a chunk, while the others hold theirs. Prints a table and a line
of JSON. The databases are those of scale.py.
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
from benchmarks.scale import LANE, compute_percentiles, make_parser, make_scratch, run_database, submit
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
CLAIM_AND_RECORD = "claim and record"
JOB = 1


class Clock:
    """Milliseconds, statements and transactions of each operation."""

    def __init__(self, engine: Engine) -> None:
        self.took: dict[str, list[float]] = defaultdict(list)
        self.statements: dict[str, int] = defaultdict(int)
        self.transactions: dict[str, int] = defaultdict(int)
        self._count: Counter[str] = Counter()
        event.listen(engine, "before_cursor_execute", lambda *_: self._count.update(["statements"]))
        event.listen(engine, "begin", lambda *_: self._count.update(["transactions"]))

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Time one call of an operation."""
        self._count.clear()
        start = time.perf_counter()
        yield
        self.took[name].append((time.perf_counter() - start) * 1000)
        self.statements[name] = max(self.statements[name], self._count["statements"])
        self.transactions[name] = max(self.transactions[name], self._count["transactions"])


def make_job(engine: Engine, items: int, chunk: int) -> None:
    """List a job and score every second chunk."""
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


def start_workers(engine: Engine) -> deque[int]:
    """Register sixteen workers, let all but the first claim a chunk, and return the chunks in the queue."""
    for number in range(1, WORKERS + 1):
        workers.register(
            engine,
            WorkerRow(
                owner=owner(number),
                broker="",
                model=LANE.model,
                revision=LANE.revision,
                device="cuda:0",
                dtype="float16",
                state=WorkerState.READY,
            ),
        )
    waiting = deque(message.chunk_id for message in stage(engine))
    for number in range(2, WORKERS + 1):
        leases.claim(engine, waiting.popleft(), LANE, owner(number), LEASE_S)
    waiting.extend(message.chunk_id for message in stage(engine))
    return waiting


def stage(engine: Engine) -> list[scheduling.Message]:
    return scheduling.stage_chunks(engine, LANE, ahead=2, lease_s=LEASE_S)


def run_rounds(engine: Engine, clock: Clock, waiting: deque[int], count: int, chosen: random.Random) -> None:
    """Do what a worker does with one chunk after another."""
    for number in range(count):
        claim = claim_chunk(engine, clock, waiting.popleft())
        with clock.timing("stage_chunks: one chunk"):
            waiting.extend(message.chunk_id for message in stage(engine))
        with clock.timing("stage_chunks: nothing to send"):
            stage(engine)
        ids = [item.image_id for item in claim.items]
        failed = FAILED if number % 4 == 3 else 0
        for low in range(0, len(ids), BATCH):
            record_batch(engine, clock, claim, ids[low : low + BATCH], failed, chosen)
        if len(ids) == BATCH and not failed:
            clock.took[CLAIM_AND_RECORD].append(clock.took["claim"][-1] + clock.took["record"][-1])
        with clock.timing("release"):
            leases.release(engine, claim)


def claim_chunk(engine: Engine, clock: Clock, chunk_id: int) -> Claim:
    with clock.timing("claim"):
        claim = leases.claim(engine, chunk_id, LANE, owner(1), LEASE_S)
    assert claim is not None
    return claim


def record_batch(
    engine: Engine, clock: Clock, claim: Claim, ids: list[int], failed: int, chosen: random.Random
) -> None:
    with clock.timing("mark_in_flight"):
        leases.mark_in_flight(engine, claim, ids)
    results: list[Scored | Failed] = [
        Failed(image_id, Reason.CORRUPT, "the file is truncated")
        if index < failed
        else Scored(image_id, chosen.random(), tuple(chosen.uniform(-9, 9) for _ in range(5)), "float16")
        for index, image_id in enumerate(ids)
    ]
    with clock.timing(f"record: {failed} failed" if failed else "record"):
        leases.record(engine, claim, results, LEASE_S)


def run_timers(engine: Engine, clock: Clock, count: int, claim: Claim) -> None:
    """Do what each worker and each waiting client repeats every few seconds."""

    def beat() -> None:
        with db.writing(engine) as connection:
            workers.heartbeat(connection, owner(1))
            leases.renew(connection, claim, LEASE_S)

    calls: dict[str, Callable[[], object]] = {
        "heartbeat": beat,
        "finish_done_jobs": lambda: jobs.finish_done_jobs(engine),
        "requeue_of_dead": lambda: rescue.requeue_of_dead(engine),
        "queues_with_work": lambda: scheduling.queues_with_work(engine),
        "job_progress": lambda: job_progress(engine, JOB),
    }
    for name, call in calls.items():
        for _ in range(count):
            with clock.timing(name):
                call()


def measure(url: str, args: argparse.Namespace) -> dict[str, Any]:
    upgrade(url)
    engine = db.connect(url)
    make_job(engine, args.items, args.chunk)
    engine.dispose()
    return time_calls(db.connect(url, async_commit=True), args)  # as a worker does


def time_calls(engine: Engine, args: argparse.Namespace) -> dict[str, Any]:
    clock = Clock(engine)
    waiting = start_workers(engine)
    run_rounds(engine, clock, waiting, args.rounds, random.Random(args.seed))
    run_timers(engine, clock, args.rounds, claim_chunk(engine, clock, waiting.popleft()))
    engine.dispose()
    print("\n| operation | p50 ms | p95 ms | statements | transactions |\n|---|---|---|---|---|")
    ms = {name: compute_percentiles(took) for name, took in clock.took.items()}
    for name, (p50, p95) in ms.items():
        counts = (clock.statements.get(name, ""), clock.transactions.get(name, ""))
        print("| {} | {:.1f} | {:.1f} | {} | {} |".format(name, p50, p95, *counts))
    return {"ms": ms, "statements": clock.statements, "transactions": clock.transactions}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--chunk", type=int, default=BATCH, help="items in a chunk")
    parser.add_argument("--rounds", type=int, default=400, help="chunks to process")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    report: dict[str, Any] = {name: getattr(args, name) for name in ("database", "items", "chunk", "rounds")}
    with make_scratch("ledger", args.folder) as folder, run_database(args.database, folder) as create:
        report |= measure(create("ledger"), args)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
