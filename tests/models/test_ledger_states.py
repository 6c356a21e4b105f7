"""
Everything that can be done to a ledger, in any order, by several workers: no state is reached that breaks an
invariant (tests/ledger_invariants.py), that differs from what was done (tests/ledger_model.py), or from which a healthy
worker could not finish every job that is not cancelled.

LEDGER_EXAMPLES=5000 looks at so many examples, other ones each time.
"""

import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import Engine, delete, update

from models.claims import AlreadyScored, Claim, ExistingResults, Failed, QueueKey, Scored
from models.db import writing
from models.ledger import control, ingest, jobs, leases, listing, rescue, scheduling, workers
from models.ledger.jobs import JobSpec
from models.tables import AnswerRow, ChunkRow, ImageRow, ItemRow, JobRow, QuestionRow, ScoreRow, ScorerRow, WorkerRow
from qsit import process_id
from qsit.errors import LeaseLost, UsageError
from qsit.questions import Answer, Question
from qsit.states import UNKNOWN_VERSION, ChunkState, ItemState, JobState, Reason, WorkerState
from tests.support import ledger_invariants
from tests.support.ledger import QUEUE, Photo, deadline, pass_time
from tests.support.ledger_invariants import ENDED, HELD, Snapshot
from tests.support.ledger_model import Holding, JobModel, Model

LEASE_S = 100_000.0
LONG_S = 500_000.0
"""Longer than any lease, delay or listing."""
SHORT_S = 25.0
"""Shorter than any of them, and longer than a message is on its way."""
WORKERS = 3  # the one in the middle is on another host
MOST_JOBS = 4
EXAMPLES = {"sqlite": 40, "postgresql": 12}

REASONS = (Reason.CORRUPT, Reason.MISSING, Reason.TIMEOUT)
TABLES = (AnswerRow, ScoreRow, ItemRow, ChunkRow, JobRow, QuestionRow, ScorerRow, ImageRow, WorkerRow)
SHARP, WHY = Question("sharpness", "How sharp is it?", ("low", "high")), Question("overall", "How is it, and why?")
ASKED = ((), (), (SHARP,), (WHY, SHARP))
ASK_BELOW = 10 / 1_000_000
"""Of the scores given here, the first nine are under it."""
VERSIONS = ("1", "1", "2", UNKNOWN_VERSION)

Result = Scored | AlreadyScored | Failed

numbers = st.integers(0, 999)  # to pick one of whatever there is by then
rarely = st.integers(0, 3).map(lambda number: number == 3)
worker_numbers = st.integers(0, WORKERS - 1)
outcomes = st.lists(st.sampled_from(["good", "good", "good", *REASONS, "none"]), min_size=1, max_size=4)
photos = st.lists(
    st.builds(Photo, st.integers(0, 5).map("file:///p/{}.jpg".format), st.sampled_from(VERSIONS)),
    min_size=1,
    max_size=6,
    unique_by=lambda photo: photo.uri,
)

seen: Counter[str] = Counter()
"""How often something happened in all examples together."""


class Killed(Exception):
    """Raised in place of the death of a process between two transactions."""


@contextmanager
def killed_before(target: object, name: str, *, really: bool) -> Iterator[None]:
    """Let the process die before it calls a function, if `really`."""
    with patch.object(target, name, side_effect=Killed) if really else nullcontext(), suppress(Killed):
        yield


class Hosts:
    """Real processes whose identities the workers of this host use."""

    def __init__(self) -> None:
        self._number = itertools.count(1)
        self._living: dict[str, subprocess.Popen[bytes]] = {}

    def born(self, *, far: bool) -> str:
        if far:
            return f"far:{next(self._number)}:1.00"
        process = subprocess.Popen(["sleep", "3600"])
        host = process_id.identity().rsplit(":", 2)[0]
        owner = f"{host}:{process.pid}:{process_id._started(process.pid)}"
        self._living[owner] = process
        return owner

    def kill(self, owner: str) -> None:
        if (process := self._living.pop(owner, None)) is not None:
            process.kill()
            process.wait()

    def is_dead(self, owner: str) -> bool:
        """Return whether it is a killed process of this host."""
        return not owner.startswith("far:") and owner not in self._living

    def kill_all(self) -> None:
        for owner in list(self._living):
            self.kill(owner)


class LedgerMachine(RuleBasedStateMachine):
    """
    What workers, timers, submitters and people do to a ledger.

    Its rules choose by numbers drawn beforehand, and do nothing where there is nothing to choose from: what is drawn
    must not depend on what the database says.
    """

    def __init__(self, engine: Engine, hosts: Hosts) -> None:
        super().__init__()
        self.engine = engine
        self.hosts = hosts
        self.model = Model()
        self.messages: list[int] = []  # chunks named by every message so far, in Redis or long lost
        self.owners: list[str | None] = [None] * WORKERS
        self.hands: list[Holding | None] = [None] * WORKERS
        self.ghosts: list[Holding] = []  # claims of workers that lost their lease, died or fell silent
        self.next_score = (number / 1_000_000 for number in itertools.count(1))
        self.next_answer = (f"answer {number}" for number in itertools.count(1))
        with writing(engine) as connection:
            for table in TABLES:
                connection.execute(delete(table))
        self.now = ledger_invariants.snapshot(engine)

    def look(self, by: str, *, may_lose: bool = False) -> Snapshot:
        """Check the ledger after a transaction, and note which leases were lost."""
        seen[by] += 1
        before, self.now = self.now, ledger_invariants.snapshot(self.engine)
        crashed = [key for key, item in self.now.items.items() if item.reason == Reason.CRASHED]
        seen["an item crashed"] += len([key for key in crashed if before.items[key].state == ItemState.QUEUED])
        tokens = {chunk.token for chunk in self.now.chunks.values()}
        for token, holding in list(self.model.held.items()):
            if token not in tokens:
                was = before.chunks[holding.claim.chunk_id]
                assert may_lose, f"{by} took a lease away"
                assert was.lease_expires_at < time.time() or self.hosts.is_dead(was.leased_by), (
                    f"{by} took away a living lease"
                )
                self.model.lose(holding)
                self.drop(holding)
                seen["a lease was lost"] += 1
        return before

    def check(self) -> None:
        self.model.compare(self.now)
        ledger_invariants.check(self.now)

    @rule()
    def look_at_progress(self) -> None:
        ledger_invariants.check_progress(self.engine, self.now, sorted(self.now.jobs))

    def unchanged(self, by: str) -> None:
        """Check that a refused call changed nothing."""
        before = self.look(by)
        assert self.now == before, f"{by} changed something"

    def drop(self, holding: Holding) -> None:
        """Take the claim from a worker, which may still try to write."""
        if holding in self.hands:
            self.hands[self.hands.index(holding)] = None
        if holding not in self.ghosts:
            self.ghosts.append(holding)

    def a_job(self, pick: int) -> int | None:
        job_ids = sorted(self.model.jobs)
        return job_ids[pick % len(job_ids)] if job_ids else None

    # --- jobs are opened and listed

    @initialize(photos=photos, rescore=rarely, end=st.booleans(), asks=st.integers(0, 3))
    def begin(self, photos: list[Photo], rescore: bool, end: bool, asks: int) -> None:
        self.open_a_job(photos, rescore, 0, 0, 0, asks, False)
        if end:
            self.end_a_listing(0, False)

    @rule(
        photos=photos,
        rescore=rarely,
        priority=st.integers(0, 2),
        procedure=st.integers(0, 3),
        key=st.integers(0, 2),
        asks=st.integers(0, 3),
        below=st.booleans(),
    )
    def open_a_job(
        self, photos: list[Photo], rescore: bool, priority: int, procedure: int, key: int, asks: int, below: bool
    ) -> None:
        if len(self.model.jobs) >= MOST_JOBS:
            return
        spec = JobSpec(
            key=f"k{key} {ASKED[asks]} {below}",
            name=None,
            model=QUEUE.model,
            revision=QUEUE.revision,
            procedure=f"procedure {procedure // 3}",
            rescore=rescore,
            priority=priority,
            questions=ASKED[asks],
            ask_below=ASK_BELOW if below else None,
        )
        opened = jobs.open_job(self.engine, spec)
        assert opened.is_new == (opened.id not in self.model.jobs)
        self.look("open")
        if opened.is_new:
            names = tuple(question.name for question in ASKED[asks])
            scorer_id = self.now.jobs[opened.id].scorer_id
            self.model.jobs[opened.id] = JobModel(scorer_id, rescore, names, spec.ask_below)
        else:
            assert self.model.jobs[opened.id].state not in ENDED
        self.check()
        self.list_into(opened.id, photos)

    @rule(pick=numbers, photos=photos)
    def list_a_part(self, pick: int, photos: list[Photo]) -> None:
        if (job_id := self.a_job(pick)) is not None:
            self.list_into(job_id, photos)

    def list_into(self, job_id: int, photos: list[Photo]) -> None:
        if not self.model.jobs[job_id].is_being_listed:
            self.begin_listing(job_id)
        job = self.model.jobs[job_id]
        if not job.is_being_listed:
            with pytest.raises(LeaseLost):
                listing.add_images(self.engine, job_id, photos)
            self.unchanged("list by another")
        elif job.state == JobState.CANCELLED:
            with pytest.raises(UsageError):
                listing.add_images(self.engine, job_id, photos)
            self.unchanged("list what is cancelled")
        else:
            before = {"skipped": job.skipped, "skipped_failed": job.skipped_failed}
            added = listing.add_images(self.engine, job_id, photos, **before)
            self.look("list")
            self.model.place(job_id, self.model.list(job_id, photos, added), self.now)
            self.check()

    def begin_listing(self, job_id: int) -> None:
        job, row = self.model.jobs[job_id], self.now.jobs[job_id]
        is_free = not job.is_being_listed or row.lister_until < time.time()
        taken = listing.begin_listing(self.engine, job_id)
        assert taken == (is_free and not job.is_listed and job.state not in ENDED)
        if taken:
            job.is_being_listed, job.skipped, job.skipped_failed = True, 0, 0
        self.look("begin to list")
        self.check()

    @rule(pick=numbers, what=st.sampled_from(["begin", "end", "end", "give up"]), killed=rarely)
    def list_on(self, pick: int, what: str, killed: bool) -> None:
        if (job_id := self.a_job(pick)) is None:
            return
        if what == "begin":
            self.begin_listing(job_id)
        elif what == "end":
            self.end_a_listing(pick, killed)
        else:
            self.give_up_a_listing(job_id)

    def end_a_listing(self, pick: int, killed: bool) -> None:
        if (job_id := self.a_job(pick)) is None:
            return
        job = self.model.jobs[job_id]
        with killed_before(listing, "finish_if_done", really=killed):
            listing.end_listing(self.engine, job_id)
        if job.is_being_listed:
            job.is_listed, job.is_being_listed = True, False
        self.look("end a listing")
        self.check()
        assert killed or not self.is_done(job_id)

    def give_up_a_listing(self, job_id: int) -> None:
        listing.give_up_listing(self.engine, job_id)
        self.model.jobs[job_id].is_being_listed = False
        self.look("give up a listing")
        self.check()

    # --- timers send and tidy up

    @rule(ahead=st.integers(1, 3))
    def top_up(self, ahead: int) -> None:
        self.send(ahead)

    def send(self, ahead: int) -> list[scheduling.Message]:
        messages = scheduling.stage_chunks(self.engine, QUEUE, ahead=ahead, lease_s=LEASE_S)
        before = self.look("send", may_lose=True)
        self.check()
        self.messages += [message.chunk_id for message in messages]
        assert len({message.chunk_id for message in messages}) == len(messages)
        for message in messages:
            was, chunk = before.chunks[message.chunk_id], self.now.chunks[message.chunk_id]
            assert was.state in (ChunkState.QUEUED, *HELD)
            assert (deadline(was) or 0) < time.time(), "it was sent, leased or resting"
            assert (chunk.state, chunk.sent_via) == (ChunkState.SENT, "")
            assert self.model.jobs[chunk.job_id].state == JobState.ACTIVE
            queued = sorted(self.model.of_chunk(chunk.id))
            assert message.uris == [item.photo.uri for _, item in queued]
        priorities = [self.now.jobs[self.now.chunks[message.chunk_id].job_id].priority for message in messages]
        assert priorities == sorted(priorities, reverse=True)
        assert not [chunk for chunk in self.now.chunks.values() if self.is_expired(chunk)]
        waiting = [chunk for chunk in self.now.chunks.values() if chunk.state == ChunkState.SENT]
        if messages:
            assert len(waiting) <= ahead
        assert len(waiting) >= ahead or not [chunk for chunk in self.now.chunks.values() if self.is_ready(chunk)]
        return messages

    def is_expired(self, chunk: Any) -> bool:
        return chunk.state in HELD and (deadline(chunk) or 0) < time.time()

    def is_ready(self, chunk: Any) -> bool:
        """Return whether it can be sent."""
        job = self.model.jobs[chunk.job_id]
        rests = (chunk.available_at or 0) > time.time()
        return chunk.state == ChunkState.QUEUED and not rests and job.state == JobState.ACTIVE

    def is_done(self, job_id: int) -> bool:
        """Return whether a job is done but not finished."""
        job, chunks = self.model.jobs[job_id], self.now.of_job(job_id)
        return job.state == JobState.ACTIVE and job.is_listed and all(c.state == ChunkState.DONE for c in chunks)

    @rule(what=st.integers(0, 6), number=st.integers(1, 3))
    def timer(self, what: int, number: int) -> None:
        tasks: list[Callable[[], None]] = [
            self.recover,
            self.free_the_dead,
            self.take_back_lost,
            self.tidy_up,
            self.settle_cancelled,
            lambda: self.unsend(number),
            lambda: self.finish_if_done(number),
        ]
        tasks[what]()

    def unsend(self, number: int) -> None:
        """Redis refuses the newest messages, perhaps after other workers claimed their chunks."""
        scheduling.unstage(self.engine, self.messages[-number:])
        self.look("unsend")
        self.check()

    def take_back_lost(self) -> None:
        """Redis is empty."""
        rescue.requeue_lost(self.engine, QUEUE, lease_s=LEASE_S)
        self.look("take back what was lost")
        self.check()
        latest = time.time() + LEASE_S - rescue.DELIVERY_S
        assert not [c for c in self.now.chunks.values() if c.state == ChunkState.SENT and c.available_at < latest]

    def recover(self) -> None:
        count = rescue.recover(self.engine)
        before = self.look("recover", may_lose=True)
        self.check()
        freed = [chunk for chunk in before.chunks.values() if chunk.state in HELD]
        assert count == sum(self.now.chunks[chunk.id].state != chunk.state for chunk in freed)
        for chunk in self.now.chunks.values():
            assert chunk.state != ChunkState.SENT
            assert not self.is_expired(chunk)
            assert chunk.state != ChunkState.LEASED or not self.hosts.is_dead(chunk.leased_by)

    def free_the_dead(self) -> None:
        rescue.requeue_of_dead(self.engine)
        self.look("free the dead", may_lose=True)
        self.check()
        for chunk in self.now.chunks.values():
            assert chunk.state != ChunkState.LEASED or not self.hosts.is_dead(chunk.leased_by)

    def tidy_up(self) -> None:
        jobs.finish_done_jobs(self.engine)
        self.look("finish done jobs")
        self.check()
        assert not [job_id for job_id in self.model.jobs if self.is_done(job_id)]

    def finish_if_done(self, pick: int) -> None:
        if (job_id := self.a_job(pick)) is not None:
            was_done = self.is_done(job_id)
            assert jobs.finish_if_done(self.engine, job_id) == was_done
            self.look("finish if done")
            self.check()
            assert not self.is_done(job_id)

    def settle_cancelled(self) -> None:
        control.settle_cancelled(self.engine)
        self.settled()
        self.look("settle cancelled")
        self.check()
        self.nothing_is_unsettled()

    def settled(self) -> None:
        for job_id, job in self.model.jobs.items():
            if job.state == JobState.CANCELLED:
                free = [chunk.id for chunk in self.now.of_job(job_id) if chunk.state != ChunkState.LEASED]
                self.model.settle_cancelled(free)
                job.is_loose = False

    def nothing_is_unsettled(self) -> None:
        for chunk in self.now.chunks.values():
            is_cancelled = self.model.jobs[chunk.job_id].state == JobState.CANCELLED
            assert not is_cancelled or chunk.state in (ChunkState.LEASED, ChunkState.DONE)

    # --- people steer

    @rule(pick=numbers, what=st.sampled_from(["pause", "pause", "resume", "resume", "resume", "cancel"]), killed=rarely)
    def steer(self, pick: int, what: str, killed: bool) -> None:
        if what == "pause":
            self.pause(pick, killed)
        elif what == "resume":
            self.resume(pick)
        else:
            self.cancel(pick, killed)

    def pause(self, pick: int, killed: bool) -> None:
        if (job_id := self.a_job(pick)) is None:
            return
        job = self.model.jobs[job_id]
        if job.state in ENDED:
            self.refused(lambda: control.pause(self.engine, job_id))
            return
        with killed_before(rescue, "requeue", really=killed):
            control.pause(self.engine, job_id)
        job.state, job.is_loose = JobState.PAUSED, killed
        self.look("pause")
        self.check()

    def resume(self, pick: int) -> None:
        if (job_id := self.a_job(pick)) is None:
            return
        job = self.model.jobs[job_id]
        if job.state in ENDED:
            self.refused(lambda: control.resume(self.engine, job_id))
            return
        control.resume(self.engine, job_id)
        job.state = JobState.ACTIVE
        self.look("resume")
        self.check()

    def cancel(self, pick: int, killed: bool) -> None:
        if (job_id := self.a_job(pick)) is None:
            return
        job = self.model.jobs[job_id]
        if job.state == JobState.FINISHED:
            self.refused(lambda: control.cancel(self.engine, job_id))
            return
        with killed_before(control, "settle_cancelled", really=killed):
            control.cancel(self.engine, job_id)
        job.state, job.is_loose = JobState.CANCELLED, killed
        if not killed:
            self.settled()
        self.look("cancel")
        self.check()
        if not killed:
            self.nothing_is_unsettled()

    @rule(pick=numbers, reasons=st.lists(st.sampled_from([*REASONS, Reason.CRASHED]), max_size=2))
    def retry(self, pick: int, reasons: list[Reason]) -> None:
        if (job_id := self.a_job(pick)) is None:
            return
        if self.model.jobs[job_id].state == JobState.CANCELLED:
            self.refused(lambda: control.retry(self.engine, job_id, reasons))
            return
        number = control.retry(self.engine, job_id, reasons)
        assert number == self.model.retry(job_id, reasons)
        seen["a failed item was tried again"] += number
        self.look("retry")
        self.check()

    def refused(self, call: Callable[[], object]) -> None:
        with pytest.raises(UsageError):
            call()
        self.unchanged("steer what has ended")

    @rule()
    def prune(self) -> None:
        number = control.prune(self.engine, timedelta(0))
        assert number == self.model.prune(self.now)
        seen["an item was pruned"] += number
        self.look("prune")
        self.check()

    # --- workers work

    @rule(worker=worker_numbers, pick=numbers, stale=rarely, outcomes=outcomes)
    def work_a_step(self, worker: int, pick: int, stale: bool, outcomes: Sequence[str | Reason]) -> None:
        self.work(worker, pick, stale, outcomes)

    @rule(worker=worker_numbers, pick=numbers, outcomes=outcomes, steps=st.integers(2, 8))
    def work_for_a_while(self, worker: int, pick: int, outcomes: Sequence[str | Reason], steps: int) -> None:
        self.send(2)
        for _ in range(steps):
            self.work(worker, pick, False, outcomes)

    def work(self, worker: int, pick: int, stale: bool, outcomes: Sequence[str | Reason]) -> None:
        """Let a worker do its next step: claim, mark in flight, record or release."""
        holding = self.hands[worker]
        if holding is None:
            self.claim(worker, pick, stale)
        elif holding.awaited:
            self.record_next(holding, outcomes)
        elif holding.waiting or holding.suspects:
            self.start_next(holding, len(outcomes))
        else:
            self.hand_back(worker, False, False)

    def claim(self, worker: int, pick: int, stale: bool) -> Holding | None:
        chunk_ids = sorted(self.now.chunks) if stale or not self.messages else self.messages
        chunk_id = chunk_ids[pick % len(chunk_ids)] if chunk_ids else 999_999_999
        if pick % 50 == 49:
            assert leases.claim(self.engine, chunk_id, QueueKey("demo", "r2"), "far:0:1.00", LEASE_S) is None
            self.look("claim by a worker of another model", may_lose=True)
            self.check()
        if self.owners[worker] is None:
            self.owners[worker] = self.hosts.born(far=worker == 1)
        owner = self.owners[worker]
        assert owner is not None
        claim = leases.claim(self.engine, chunk_id, QUEUE, owner, LEASE_S)
        before = self.look("claim", may_lose=True)
        was = before.chunks.get(chunk_id)
        is_free = (
            was is not None
            and self.model.jobs[was.job_id].state == JobState.ACTIVE
            and (was.state == ChunkState.SENT or self.is_ready(was) or self.is_expired(was))
            and bool(self.model.of_chunk(chunk_id))
        )
        assert (claim is not None) == is_free, was
        if claim is not None:
            assert (claim.chunk_id, claim.job_id) == (chunk_id, was.job_id)
            self.hands[worker] = self.model.claim(claim, owner)
        self.check()
        return self.hands[worker]

    def start_next(self, holding: Holding, number: int) -> None:
        """Start items as the pipeline does: suspects last, alone, one by one."""
        if holding.waiting:
            taken, holding.waiting = holding.waiting[:number], holding.waiting[number:]
            leases.mark_in_flight(self.engine, holding.claim, taken)
            holding.flying += taken
        else:
            holding.alone = holding.suspects.pop(0)
            holding.flying.clear()
            leases.mark_in_flight(self.engine, holding.claim, [holding.alone], alone=True)
            seen["something ran alone"] += 1
        self.look("start")
        self.check()

    def record_next(self, holding: Holding, outcomes: Sequence[str | Reason]) -> None:
        """Return results of items in flight. Some have none, by the worker's own fault."""
        awaited = list(zip(holding.awaited, outcomes, strict=False))
        holding.unread |= {image_id for image_id, outcome in awaited if outcome == "none"}
        results = [self.result(holding, image_id, outcome) for image_id, outcome in awaited if outcome != "none"]
        settled = {result.image_id for result in results}
        holding.flying = [image_id for image_id in holding.flying if image_id not in settled]
        holding.alone = None if holding.alone in settled else holding.alone
        self.record(holding, results)

    def result(self, holding: Holding, image_id: int, outcome: str | Reason) -> Result:
        if isinstance(outcome, Reason):
            return Failed(image_id, outcome, "broken")
        claim = holding.claim
        photo, version = self.model.items[claim.job_id, image_id].photo, None
        found = next(item.found for item in claim.items if item.image_id == image_id)
        if photo.version == UNKNOWN_VERSION:
            version = str(1 + int(photo.uri[-5]) % 2)
            found = self.model.findings(claim, Photo(photo.uri, version))
        if found.score is not None and not claim.rescore:
            return AlreadyScored(image_id, version, "float32", self.answers(claim, found.score, found))
        score = next(self.next_score)
        answers = self.answers(claim, score, found)
        return Scored(image_id, score, (0.0, 1.0, 2.0, 3.0, 4.0), "float32", version, answers)

    def answers(self, claim: Claim, score: float, found: ExistingResults) -> dict[int, Answer]:
        return {question_id: Answer(next(self.next_answer)) for question_id in claim.to_ask(score, found)}

    def record(self, holding: Holding, results: Sequence[Result]) -> None:
        goes_on = leases.record(self.engine, holding.claim, results, LEASE_S)
        assert goes_on == (self.model.jobs[holding.claim.job_id].state == JobState.ACTIVE)
        self.model.record(holding, results)
        for result in results:
            if not isinstance(result, Failed) and result.answers:
                seen["a question was answered"] += 1
                seen["a scored photo was asked about"] += isinstance(result, AlreadyScored)
        holding.last = list(results)
        self.look("record")
        self.check()

    @rule(worker=worker_numbers, is_bad=st.booleans())
    def record_again(self, worker: int, is_bad: bool) -> None:
        """Repeat a call whose reply was lost, perhaps with another outcome."""
        holding = self.hands[worker]
        if holding is not None and holding.last:
            last = [Failed(result.image_id, Reason.CORRUPT, "too late") for result in holding.last]
            self.record(holding, last if is_bad else holding.last)

    @rule(worker=worker_numbers)
    def beat(self, worker: int) -> None:
        holding = self.hands[worker]
        if holding is not None:
            with writing(self.engine) as connection:
                goes_on = leases.renew(connection, holding.claim, LEASE_S)
            assert goes_on == (self.model.jobs[holding.claim.job_id].state == JobState.ACTIVE)
            self.look("extend")
            self.check()
            assert not self.is_expired(self.now.chunks[holding.claim.chunk_id])

    @rule(worker=worker_numbers, rests=rarely, killed=rarely)
    def hand_back(self, worker: int, rests: bool, killed: bool) -> None:
        holding = self.hands[worker]
        if holding is None:
            return
        with killed_before(leases, "finish_if_done", really=killed):
            leases.release(self.engine, holding.claim, delay_s=LEASE_S if rests else 0.0)
        self.model.hand_back(holding)
        self.drop(holding)
        self.look("hand back")
        self.check()
        assert killed or not self.is_done(holding.claim.job_id)

    @rule(worker=worker_numbers, is_told=st.booleans())
    def die(self, worker: int, is_told: bool) -> None:
        """Kill a worker, perhaps while it stops: then no photo is to blame."""
        holding, owner = self.hands[worker], self.owners[worker]
        if owner is None:
            return
        if is_told:
            row = {"broker": "", "model": "demo", "revision": "r1", "device": "cpu", "dtype": "float32"}
            workers.register(self.engine, WorkerRow(owner=owner, state=WorkerState.STOPPED, **row))
        self.hosts.kill(owner)
        self.owners[worker] = None
        for held in (*self.ghosts, holding):  # also what it held and lost touch with
            if held is not None and held.owner == owner:
                held.is_told_to_end = is_told
        if holding is not None:
            self.drop(holding)
        self.look("die told to end" if is_told else "die")
        self.check()

    @rule(worker=worker_numbers, pick=numbers, times=st.integers(1, 5), outcomes=outcomes, is_told=rarely)
    def crash(self, worker: int, pick: int, times: int, outcomes: Sequence[str | Reason], is_told: bool) -> None:
        """A photo kills its workers repeatedly, perhaps while they stop."""
        for _ in range(times):
            holding = self.hands[worker] or self.claim(worker, pick, False)
            for outcome in outcomes:
                if holding is not None and holding.awaited:
                    self.record_next(holding, [outcome])
                if holding is not None and (holding.waiting or holding.suspects) and not holding.awaited:
                    self.start_next(holding, 4)
            self.die(worker, is_told)
            if worker == 1:
                self.time_passes()
            self.recover()
            self.send(3)

    @rule(worker=worker_numbers)
    def fall_silent(self, worker: int) -> None:
        """Cut a worker off from its chunk, or end its task early. The worker lives on."""
        if (holding := self.hands[worker]) is not None:
            self.drop(holding)

    @rule(pick=numbers, how=st.sampled_from(["record", "start", "alone", "extend", "hand back"]), outcome=outcomes)
    def write_late(self, pick: int, how: str, outcome: Sequence[str | Reason]) -> None:
        """A worker that lost its lease writes late, and changes nothing."""
        ghosts = [ghost for ghost in self.ghosts if ghost.claim.token not in self.model.held]
        if not ghosts:
            return
        ghost = ghosts[pick % len(ghosts)]
        claim, ids = ghost.claim, [item.image_id for item in ghost.claim.items]
        if how == "record":
            results = [self.result(ghost, image_id, outcome[0]) for image_id in ids]
            with pytest.raises(LeaseLost):
                leases.record(self.engine, claim, results, LEASE_S)
        elif how == "extend":
            with writing(self.engine) as connection:
                assert not leases.renew(connection, claim, LEASE_S)
        elif how == "hand back":
            leases.release(self.engine, claim)
        else:
            with pytest.raises(LeaseLost):
                leases.mark_in_flight(self.engine, claim, ids, alone=how == "alone")
        self.unchanged(f"late {how}")

    @rule(is_long=st.booleans())
    def wait(self, is_long: bool) -> None:
        self.time_passes(LONG_S if is_long else SHORT_S)

    def time_passes(self, seconds: float = LONG_S) -> None:
        pass_time(self.engine, seconds)
        with writing(self.engine) as connection:
            connection.execute(update(JobRow).values(lister_until=JobRow.lister_until - seconds))
        self.look("time passes")
        self.check()

    # --- and in the end

    def teardown(self) -> None:
        """From any state, listers and one healthy worker bring every job to its end."""
        if sys.exc_info()[0] is None:
            self.everything_ends()
        self.hosts.kill_all()

    def everything_ends(self) -> None:
        for worker in range(WORKERS):
            self.die(worker, False)
        self.time_passes()
        for index, job_id in enumerate(sorted(self.model.jobs)):
            if self.model.jobs[job_id].state == JobState.PAUSED:
                self.resume(index)
            self.begin_listing(job_id)
            self.end_a_listing(index, False)
        for _ in range(len(self.now.chunks) + 1):
            for message in self.send(2):
                holding = self.claim(1, self.messages.index(message.chunk_id), False)
                assert holding is not None
                while holding.waiting or holding.suspects:
                    self.start_next(holding, 4)
                    self.record_next(holding, ["good"] * 4)
                self.hand_back(1, False, False)
            self.time_passes()
            self.settle_cancelled()
            self.tidy_up()
            if {job.state for job in self.model.jobs.values()} <= set(ENDED):
                break
        assert {job.state for job in self.model.jobs.values()} <= set(ENDED)
        assert {chunk.state for chunk in self.now.chunks.values()} <= {ChunkState.DONE}
        assert not [item for item in self.now.items.values() if item.state == ItemState.QUEUED]
        ledger_invariants.check_progress(self.engine, self.now, sorted(self.now.jobs))


def test_no_order_of_operations_breaks_the_ledger(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "SMALLEST_CHUNK", 3)  # so that few photos are several chunks,
    monkeypatch.setattr(control, "CHUNKS_AT_ONCE", 1)  # and several transactions
    monkeypatch.setattr(control, "FAILURES_AT_ONCE", 2)
    examples = int(os.environ.get("LEDGER_EXAMPLES", "0"))
    hosts = Hosts()
    try:
        run_state_machine_as_test(
            lambda: LedgerMachine(engine, hosts),
            settings=settings(
                max_examples=examples or EXAMPLES[engine.dialect.name],
                stateful_step_count=40,
                deadline=None,
                derandomize=not examples,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        hosts.kill_all()
    assert seen["a lease was lost"]
    assert seen["something ran alone"]
    assert seen["a question was answered"]
    assert seen["a scored photo was asked about"]
