"""
Several workers, timers and people at one ledger at the same moment: nobody hears of a deadlock, no chunk is sent twice,
what holds of a ledger (tests/ledger_invariants.py) holds in the end, and every job comes to its end.

LEDGER_ROUNDS=10000 goes on for so many operations a thread, other ones each time.
"""

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import Connection, Engine, event, func, select, text, update

from models import db
from models.claims import Failed, Scored
from models.db import reading, writing
from models.ledger import control, expiry, ingest, jobs, leases, listing, rescue, scheduling
from models.queries.pagination import ResultFilter
from models.queries.results import find_results
from models.tables import ChunkRow, ItemRow
from qsit import process_id
from qsit.errors import JobCancelled, LeaseLost, UsageError
from qsit.states import ChunkState, ItemState, JobState, Reason
from tests.support import ledger_invariants
from tests.support.ledger import DEAD, HERE, QUEUE, SPEC, listed, pass_time, photos
from tests.support.ledger_invariants import ENDED
from tests.support.programs import until

THREADS = 6
ROUNDS = 60
LEASE_S = 600.0
MOST_JOBS = 8  # that are not at their end
OWNERS = (HERE, DEAD, "far:1:1.00")
REASONS = (Reason.CORRUPT, Reason.MISSING)

MOVES = {
    "sqlite": """
        CREATE TABLE moves (id INTEGER PRIMARY KEY, chunk INTEGER, was TEXT, state TEXT);
        CREATE TRIGGER moved AFTER UPDATE OF state ON chunks WHEN old.state != new.state BEGIN
            INSERT INTO moves (chunk, was, state) VALUES (old.id, old.state, new.state); END
    """,
    "postgresql": """
        CREATE TABLE moves (id SERIAL PRIMARY KEY, chunk BIGINT, was TEXT, state TEXT);
        CREATE FUNCTION note() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO moves (chunk, was, state) VALUES (old.id, old.state, new.state); RETURN NULL; END $$;
        CREATE TRIGGER moved AFTER UPDATE OF state ON chunks FOR EACH ROW
            WHEN (old.state != new.state) EXECUTE FUNCTION note()
    """,
}
"""The database itself writes down each change of a chunk's state."""


@pytest.fixture
def noted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A ledger with small chunks that logs their changes of state."""
    monkeypatch.setattr(ingest, "SMALLEST_CHUNK", 3)
    monkeypatch.setattr(control, "CHUNKS_AT_ONCE", 2)
    monkeypatch.setattr(control, "FAILURES_AT_ONCE", 3)
    with contextlib.closing(engine.raw_connection()) as connection:
        if engine.dialect.name == "sqlite":
            connection.executescript(MOVES["sqlite"])
        else:
            connection.cursor().execute(MOVES["postgresql"])
        connection.commit()
    return engine


class Crowd:
    """What all threads share: every message and every score so far."""

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.seed = seed
        self.messages: list[int] = []
        self.scores: list[float] = []  # recorded under a valid lease
        self.did: Counter[str] = Counter()

    def together(self, what: Callable[["Member"], None], number: int = THREADS) -> None:
        """Run a function in so many threads at once. Raise the first error."""
        begin = threading.Barrier(number)

        def run(index: int) -> None:
            with member(self, index) as one:
                begin.wait()
                what(one)

        with ThreadPoolExecutor(number) as pool:
            for future in [pool.submit(run, index) for index in range(number)]:
                future.result()


@contextlib.contextmanager
def member(crowd: Crowd, index: int) -> Iterator["Member"]:
    """A thread's own connections. Some statements are delayed, so that other threads come between."""
    engine = db.connect(crowd.url)
    one = Member(crowd, engine, random.Random(f"{crowd.seed} {index}"))

    @event.listens_for(engine, "after_cursor_execute")
    def dawdle(*_: object) -> None:
        if one.random.random() < 0.2:
            time.sleep(one.random.random() * 0.003)

    try:
        yield one
    finally:
        engine.dispose()


class Member:
    """One thread of the crowd."""

    def __init__(self, crowd: Crowd, engine: Engine, random: random.Random) -> None:
        self.crowd = crowd
        self.engine = engine
        self.random = random

    def any_job(self) -> int:
        with reading(self.engine) as connection:
            return self.random.choice(connection.execute(text("SELECT id FROM jobs")).scalars().all())

    def any_chunk(self) -> int:
        with reading(self.engine) as connection:
            return self.random.choice(connection.execute(text("SELECT id FROM chunks")).scalars().all())

    def submit(self) -> None:
        with reading(self.engine) as connection:
            left = "SELECT count(*) FROM jobs WHERE state IN ('active', 'paused')"
            if connection.execute(text(left)).scalar_one() >= MOST_JOBS:
                return
        found = self.random.sample(photos(20), self.random.randint(4, 12))
        spec = replace(
            SPEC, key=f"k{self.random.random()}", rescore=self.random.random() < 0.3, priority=self.random.randint(0, 2)
        )
        job_id = jobs.open_job(self.engine, spec).id
        if listing.begin_listing(self.engine, job_id):
            listing.add_images(self.engine, job_id, found[:6])
            listing.add_images(self.engine, job_id, found[6:])
            listing.end_listing(self.engine, job_id)

    def send(self) -> None:
        for message in scheduling.stage_chunks(self.engine, QUEUE, ahead=self.random.randint(2, 6), lease_s=LEASE_S):
            self.crowd.messages.append(message.chunk_id)

    def unsend(self) -> None:
        scheduling.unstage(self.engine, self.crowd.messages[-2:])

    def work(self) -> None:
        """Claim a chunk and record all or some results, or die before."""
        chunk_id = self.random.choice([*self.crowd.messages[-6:], self.any_chunk()])
        claim = leases.claim(self.engine, chunk_id, QUEUE, self.random.choice(OWNERS), LEASE_S)
        if claim is None:
            return
        self.crowd.did["claim"] += 1
        ids = [item.image_id for item in claim.items]
        while ids and self.random.random() < 0.9:
            taken, ids = ids[:2], ids[2:]
            leases.mark_in_flight(self.engine, claim, taken, alone=len(taken) == 1)
            with writing(self.engine) as connection:
                leases.renew(connection, claim, LEASE_S)
            results = [self.result(image_id) for image_id in taken]
            goes_on = leases.record(self.engine, claim, results, LEASE_S)
            self.crowd.scores += [result.score for result in results if isinstance(result, Scored)]
            self.crowd.did["record"] += 1
            if not goes_on:
                break
        if self.random.random() < 0.7:
            leases.release(self.engine, claim)

    def result(self, image_id: int) -> Scored | Failed:
        if self.random.random() < 0.3:
            return Failed(image_id, self.random.choice(REASONS), "broken")
        return Scored(image_id, self.random.random(), (0.0, 1.0, 2.0, 3.0, 4.0), "float32")

    def let_time_pass(self) -> None:
        """For one chunk."""
        with reading(self.engine) as connection:
            chunk_id = self.any_chunk_in(connection)
        pass_time(self.engine, 10 * LEASE_S, ChunkRow.id == chunk_id)

    def any_chunk_in(self, connection: Connection) -> int:
        return self.random.choice(connection.execute(text("SELECT id FROM chunks")).scalars().all())

    def do_something(self) -> None:
        tasks: dict[Callable[[], object], int] = {
            self.work: 30,
            self.send: 15,
            self.unsend: 1,
            self.let_time_pass: 6,
            self.submit: 6,
            lambda: rescue.recover(self.engine): 3,
            lambda: rescue.requeue_lost(self.engine, QUEUE, lease_s=LEASE_S): 2,
            lambda: rescue.requeue_of_dead(self.engine): 4,
            lambda: control.settle_cancelled(self.engine): 3,
            lambda: jobs.finish_done_jobs(self.engine): 4,
            lambda: control.pause(self.engine, self.any_job()): 4,
            lambda: control.resume(self.engine, self.any_job()): 10,
            lambda: control.cancel(self.engine, self.any_job()): 1,
            lambda: control.retry(self.engine, self.any_job()): 6,
            lambda: control.prune(self.engine, timedelta(0)): 1,
        }
        (task,) = self.random.choices(list(tasks), list(tasks.values()))
        try:
            task()
        except (JobCancelled, LeaseLost, UsageError) as refusal:
            self.crowd.did[type(refusal).__name__] += 1


def test_concurrent_operations_keep_the_invariants(noted: Engine, database_url: str) -> None:
    rounds = int(os.environ.get("LEDGER_ROUNDS", "0"))
    crowd = Crowd(database_url, random.randrange(10**9) if rounds else 0)
    with member(crowd, THREADS) as first:
        for _ in range(3):
            first.submit()

    def many(one: Member) -> None:
        for _ in range(rounds or ROUNDS):
            one.do_something()

    crowd.together(many)

    assert crowd.did["record"]
    check_moves(noted, crowd)
    now = ledger_invariants.snapshot(noted)
    ledger_invariants.check(now)
    assert {row.score for row in now.scores.values()} <= set(crowd.scores), "of those who held their lease"
    everything_ends(noted)
    check_progress_of_all(noted)


def test_concurrent_senders_send_each_chunk_once(noted: Engine, database_url: str) -> None:
    crowd = Crowd(database_url, 1)
    with member(crowd, THREADS) as first:
        for _ in range(4):
            first.submit()
    returned: list[int] = []

    def send_and_work(one: Member) -> None:
        for _ in range(20):
            sent = scheduling.stage_chunks(one.engine, QUEUE, ahead=4, lease_s=LEASE_S)
            crowd.messages += [message.chunk_id for message in sent]
            for message in sent:
                claim = leases.claim(one.engine, message.chunk_id, QUEUE, HERE, LEASE_S)
                assert claim is not None, "nobody else has its message"
                done = [item.image_id for item in claim.items][: one.random.randint(0, 3)]
                leases.record(one.engine, claim, [one.result(image_id) for image_id in done], LEASE_S)
                if len(done) < len(claim.items):
                    returned.append(claim.chunk_id)
                leases.release(one.engine, claim)

    crowd.together(send_and_work)

    everything_ends(noted, crowd.messages)
    check_moves(noted, crowd)
    now = ledger_invariants.snapshot(noted)
    assert Counter(crowd.messages) == Counter([*now.chunks, *returned])
    assert {job.state for job in now.jobs.values()} == {JobState.FINISHED}


WITH_MANY_CHUNKS: dict[str, Callable[[Engine, int, list[int]], object]] = {
    "send": lambda engine, job_id, ids: scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=LEASE_S),
    "unsend": lambda engine, job_id, ids: scheduling.unstage(engine, ids[::-1]),
    "recover": lambda engine, job_id, ids: rescue.recover(engine),
    "pause": lambda engine, job_id, ids: control.pause(engine, job_id),
    "cancel": lambda engine, job_id, ids: control.cancel(engine, job_id),
    "retry": lambda engine, job_id, ids: control.retry(engine, job_id),
}


@pytest.mark.parametrize("name", WITH_MANY_CHUNKS)
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_chunks_are_locked_in_the_order_of_their_ids(noted: Engine, name: str) -> None:
    """Two transactions that lock many chunks in one order cannot wait for each other."""
    job_id = listed(noted, photos(9))
    with writing(noted) as connection:  # all were sent, the last first, and something of each failed
        chunk_ids = list(connection.execute(select(ChunkRow.id).order_by(ChunkRow.id.desc())).scalars())
        sent = {"state": ChunkState.SENT, "sent_via": "", "failed": 1}
        for age, chunk_id in enumerate(chunk_ids):
            connection.execute(
                update(ChunkRow).where(ChunkRow.id == chunk_id).values(sent | {"available_at": float(age)})
            )
        first = select(func.min(ItemRow.image_id)).group_by(ItemRow.chunk_id)
        failure = {"state": ItemState.FAILED, "reason": Reason.CORRUPT, "message": "broken"}
        connection.execute(update(ItemRow).where(ItemRow.image_id.in_(first)).values(failure))
    one, *others = sorted(chunk_ids)
    assert len(others) == 2
    locked = select(ChunkRow.id).order_by(ChunkRow.id)

    with ThreadPoolExecutor(1) as pool:
        with writing(noted) as connection:
            connection.execute(locked.where(ChunkRow.id == one).with_for_update())
            done = pool.submit(WITH_MANY_CHUNKS[name], noted, job_id, sorted(chunk_ids))
            until(lambda: waits(noted) or done.done())
            assert not done.done(), "it does not wait for the chunk"

            free = connection.execute(locked.where(ChunkRow.id.in_(others)).with_for_update(skip_locked=True))
            assert free.scalars().all() == others
        done.result()

    everything_ends(noted)


@pytest.mark.parametrize("still_mine", [True, False])
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_record_that_waited_for_its_chunk_sees_the_newest_state(noted: Engine, still_mine: bool) -> None:
    """The statement's snapshot is older than the change that it waited for."""
    job_id = listed(noted, photos(3))
    (message,) = scheduling.stage_chunks(noted, QUEUE, ahead=1, lease_s=LEASE_S)
    claim = leases.claim(noted, message.chunk_id, QUEUE, HERE, LEASE_S)
    assert claim is not None
    first, second, third = (item.image_id for item in claim.items)
    scores = (0.0, 1.0, 2.0, 3.0, 4.0)
    results: list[Scored | Failed] = [
        Scored(first, 0.5, scores, "float32"),
        Scored(second, 0.25, scores, "float32"),
        Failed(third, Reason.CORRUPT, "broken"),
    ]

    with ThreadPoolExecutor(1) as pool:
        with writing(noted) as connection:  # what a heartbeat does, or a timer that takes the chunk for lost
            if still_mine:
                leases.renew(connection, claim, LEASE_S)
            else:
                expiry.expire(connection, claim.chunk_id, ChunkRow.id == claim.chunk_id)
            recorded = pool.submit(leases.record, noted, claim, results, LEASE_S)
            until(lambda: waits(noted) or recorded.done())
            assert not recorded.done()
        if still_mine:
            assert recorded.result()
        else:
            with pytest.raises(LeaseLost):
                recorded.result()

    now = ledger_invariants.snapshot(noted)
    ledger_invariants.check(now)
    assert (now.chunks[claim.chunk_id].scored, now.chunks[claim.chunk_id].failed) == ((2, 1) if still_mine else (0, 0))
    assert len(list(find_results(noted, ResultFilter(job=job_id)))) == (2 if still_mine else 0)


def waits(engine: Engine) -> bool:
    """Return whether any transaction waits for another one."""
    with reading(engine) as connection:
        return bool(connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar())


def check_moves(engine: Engine, crowd: Crowd) -> None:
    """Check that each message belongs to a chunk that became sent, and that states follow each other."""
    with reading(engine) as connection:
        moves = connection.execute(text("SELECT chunk, was, state FROM moves ORDER BY id")).all()
    at: dict[int, str] = {}
    for move in moves:
        assert at.get(move.chunk, ChunkState.QUEUED) == move.was, move
        assert (move.was, move.state) in LAWFUL, move
        at[move.chunk] = move.state
    assert Counter(crowd.messages) == Counter(move.chunk for move in moves if move.state == ChunkState.SENT)


LAWFUL = {
    ("queued", "sent"),
    ("queued", "leased"),
    ("sent", "leased"),
    ("leased", "queued"),
    ("leased", "done"),
    ("sent", "queued"),  # lost, paused or not published
    ("queued", "done"),
    ("sent", "done"),  # cancelled
    ("done", "queued"),  # tried again
}


def everything_ends(engine: Engine, messages: list[int] | None = None) -> None:
    """Let one healthy worker bring every job to its end."""
    now = ledger_invariants.snapshot(engine)
    for job in now.jobs.values():
        if job.state == JobState.PAUSED:
            control.resume(engine, job.id)
    pass_time(engine, 100 * LEASE_S)
    for _ in range(len(now.chunks) + 1):
        sent = [message.chunk_id for message in scheduling.stage_chunks(engine, QUEUE, ahead=2, lease_s=LEASE_S)]
        if messages is not None:
            messages += sent
        for chunk_id in sent:
            claim = leases.claim(engine, chunk_id, QUEUE, process_id.identity(), LEASE_S)
            assert claim is not None
            good = [Scored(item.image_id, 0.5, (0.0, 1.0, 2.0, 3.0, 4.0), "float32") for item in claim.items]
            leases.record(engine, claim, good, LEASE_S)
            leases.release(engine, claim)
        control.settle_cancelled(engine)
        jobs.finish_done_jobs(engine)
    now = ledger_invariants.snapshot(engine)
    ledger_invariants.check(now)
    assert {job.state for job in now.jobs.values()} <= set(ENDED)
    assert {chunk.state for chunk in now.chunks.values()} == {ChunkState.DONE}


def check_progress_of_all(engine: Engine) -> None:
    now = ledger_invariants.snapshot(engine)
    ledger_invariants.check_progress(engine, now, sorted(now.jobs))
