"""What one worker process holds: its settings, the ledger, a loaded model, and the chunk it works on."""

import contextlib
import faulthandler
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from celery import Celery
from PIL import Image
from sqlalchemy import Engine

from models import db
from models.claims import AlreadyScored, Claim, ClaimedItem, QueueKey
from models.ledger import control, leases, recording, rescue, workers
from models.ledger.jobs import finish_done_jobs
from models.retry import retry_while_unavailable
from models.tables import WorkerRow
from qsit import checkpoints, process_id
from qsit.errors import BrokerUnavailable, DatabaseUnavailable, QsitError
from qsit.rating import AS_STORED
from qsit.settings import Settings
from qsit.sources.source import Reader
from qsit.states import UNKNOWN_VERSION, WorkerState
from worker import dispatch, memory
from worker.imaging.decode import decode
from worker.pipeline import Pipeline, PreparedPhoto

log = logging.getLogger("qsit")

PULSE_S = 5.0
FROZEN_S = 300.0
"""A process in which no thread has had its turn for so long is in a decoder that will not let go."""
STALLED_S = 3600.0
"""A process that has a chunk and got nothing done for so long waits for a device that will not answer."""

T = TypeVar("T")


def queue_key_of(settings: Settings, revision: str) -> QueueKey:
    """Which chunks a worker takes that holds this revision of its model."""
    return QueueKey(checkpoints.full_name(settings.model), revision, settings.private_run or "", settings.private_job)


class Process:
    """A worker process. `stopping` is set by a signal, `lost` by the heartbeat."""

    def __init__(self, app: Celery, settings: Settings, device: str) -> None:
        from worker.qsit import QSit, default_dtype

        self.app = app
        self.settings = settings
        self.engine: Engine = db.connect(settings.database_url, may_forget=True)
        self.lane = queue_key_of(settings, settings.revision or "")  # the parent has resolved it for all its processes
        self.owner = process_id.identity()
        self.stopping = False
        self._claim: Claim | None = None
        self._lost = False
        self._complaints: dict[str, str] = {}  # what does not work, and why
        self._notices: dict[str, str] = {}  # what `status` shows of that, by what it is about
        self._progress_at = time.monotonic()
        self._lock = threading.Lock()
        self._saying = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        dtype = settings.dtype or default_dtype(device)
        self.row = WorkerRow(
            owner=self.owner, broker=self.lane.broker, model=self.lane.model, revision=self.lane.revision,
            device=device, dtype=dtype, state=WorkerState.LOADING,
        )  # fmt: skip
        self.insist(lambda: workers.register(self.engine, self.row))
        began = time.monotonic()
        try:
            model = QSit.load(self.lane.model, device=device, dtype=dtype, revision=self.lane.revision)
        except QsitError as error:
            workers.set_notice(self.engine, self.owner, state=WorkerState.STOPPED, notice=str(error))
            raise
        self.model = model
        self.row.load_s = time.monotonic() - began
        self.row.state = WorkerState.READY
        if device == "cpu" and settings.device == "auto":
            self.row.notice = "no GPU found: scoring on the CPU is slow"
            log.warning(self.row.notice)
        log.info(
            "model %s at revision %s loaded on %s in %s, in %.1f s",
            self.lane.model, self.lane.revision, device, dtype, self.row.load_s,
        )  # fmt: skip
        self._standing_notice = self.row.notice
        self.insist(lambda: workers.register(self.engine, self.row))
        probe = model.prepare(Image.new("RGB", (64, 48), "grey"))
        self.pipeline = Pipeline(
            model, dtype, settings.batch_tokens or model.batch_tokens, settings.loaders, probe, settings.decode_s
        )
        self._reader = Reader(
            settings.roots,
            mounted=settings.private_run is not None,  # by who has just listed them
            endpoint_url=settings.s3_endpoint_url,
            connections=settings.loaders,
        )
        warnings.filterwarnings("ignore", module="PIL")  # of odd metadata, once a photo
        pause_s = min(PULSE_S, settings.lease_s / 6)
        for thread in (self._heartbeat, self._timer, self._watchdog):
            threading.Thread(target=thread, args=(pause_s,), name=thread.__name__, daemon=True).start()

    def prepare(self, item: ClaimedItem, claim: Claim, decoding: Callable[[], None]) -> PreparedPhoto | AlreadyScored:
        """Read, decode and cut one photo, unless it turns out to need nothing. Raises ImageError or WorkerFault."""
        with self._reader.opened(item.uri, item.version) as photo:
            learnt = photo.version if item.version == UNKNOWN_VERSION else None
            found = item.found
            if learnt is not None and not claim.rescore:
                found = self.insist(partial(recording.existing_results, self.engine, item.uri, learnt, claim))
                if claim.is_settled(found):
                    return AlreadyScored(item.image_id, learnt)
            data = photo.read()
        decoding()
        image = decode(data, max_pixels=self.settings.max_pixels, as_stored=claim.procedure == AS_STORED)
        return PreparedPhoto(self.model.prepare(image), learnt, found)

    def top_up(self) -> None:
        """Have what comes next sent, by the timer's thread: a Redis that hangs holds up no work."""
        self._wake.set()

    @contextlib.contextmanager
    def holding(self, claim: Claim) -> Iterator[None]:
        """Keep the claim's lease alive meanwhile."""
        self._progress_at = time.monotonic()
        with self._lock:
            self._claim, self._lost = claim, False
        try:
            yield
        finally:
            with self._lock:
                self._claim = None

    def let_go(self) -> None:
        """Drop the chunk in hand: its job has been paused or cancelled."""
        with self._lock:
            self._lost = True

    def insist(self, call: Callable[[], T]) -> T:
        """
        What a call of the ledger returns; while the database is away, the worker says so once and waits.

        Raises:
            DatabaseUnavailable: when the database is away, and the worker is told to stop.
        """
        result = retry_while_unavailable(call, self._away)
        self._progress_at = time.monotonic()
        return result

    def _away(self, error: DatabaseUnavailable | None) -> None:
        self._progress_at = time.monotonic()
        if error is None:
            self._complaints.pop("retry_while_unavailable", None)
        elif self.stopping:
            raise error
        else:
            self._complain("retry_while_unavailable", error)

    def _complain(self, what: str, error: QsitError) -> None:
        """Log what does not work, once for all that fail of it."""
        if str(error) not in tuple(self._complaints.values()):  # a copy, for other threads change them
            log.error("%s; trying again until it works", error)
        self._complaints[what] = str(error)

    def stop(self) -> None:
        """End soon: after the batch in hand. Called by a signal."""
        self.stopping = True
        self._stop.set()

    def interrupted(self) -> bool:
        """Whether the chunk in hand is to be dropped: the worker is stopping, or has lost its lease."""
        return self.stopping or self._lost

    def say(self, notice: str | None, about: str = "photos") -> None:
        """Tell log and `status`, once, what keeps this worker from working, or that nothing of that kind does."""
        with self._saying:
            if notice is None:
                self._notices.pop(about, None)
            elif self._notices.get(about) != notice:
                log.error("%s", notice)
                self._notices[about] = notice
            shown = "; ".join(self._notices.values()) or self._standing_notice
            if shown != self.row.notice:
                self.insist(lambda: workers.set_notice(self.engine, self.owner, notice=shown))
                self.row.notice = shown

    def end(self) -> None:
        """Say goodbye."""
        with contextlib.suppress(QsitError):
            workers.set_notice(self.engine, self.owner, state=WorkerState.STOPPED)

    def _heartbeat(self, pause_s: float) -> None:
        while not self._stop.wait(pause_s):
            with self._faults_told("beat"):
                self._beat()
        while True:
            self.end()  # said at once, so that being killed while it ends is laid to no photo
            with self._faults_told("beat"):
                self._beat()
            time.sleep(pause_s)

    def _timer(self, pause_s: float) -> None:
        """Recovery, completion, and topping up Redis."""
        while True:
            self._wake.clear()
            with self._faults_told("send"):
                self._send()
            with self._faults_told("recover"):
                rescue.requeue_of_dead(self.engine)
                control.settle_cancelled(self.engine)
                finish_done_jobs(self.engine)
            self._wake.wait(pause_s)

    def _send(self) -> None:
        try:
            dispatch.top_up(self.engine, self.app, self.lane, self.settings.lease_s)
        except BrokerUnavailable as error:
            self.say(str(error), about="Redis")
        else:
            self.say(None, about="Redis")

    def _watchdog(self, pause_s: float) -> None:
        """See to it that a process that has come to a stand ends, and is replaced; needs no database for that."""
        while True:
            faulthandler.dump_traceback_later(FROZEN_S, exit=True, file=2)  # unless called again before
            if self._claim is not None and time.monotonic() - self._progress_at > STALLED_S:
                log.error("no batch came to an end for %.0f s; the process is replaced", STALLED_S)
                os._exit(1)
            time.sleep(pause_s)

    def _beat(self) -> None:
        with self._lock:
            claim = self._claim
        with db.writing(self.engine) as connection:
            workers.heartbeat(connection, self.owner)
            if claim is not None and not leases.renew(connection, claim, self.settings.lease_s):
                with self._lock:
                    self._lost = self._claim is claim

    @contextlib.contextmanager
    def _faults_told(self, what: str) -> Iterator[None]:
        """Whatever fails in a thread that must not end is logged, and tried again with its next round."""
        try:
            yield
            self._complaints.pop(what, None)
        except QsitError as error:
            self._complain(what, error)
        except Exception:
            log.exception("this should not happen; please report it")


_here: Process | None = None


def here() -> Process:
    """The process that this is, set up by `begin`."""
    if _here is None:
        raise RuntimeError("tasks run in the processes of a worker only: celery -A worker.app worker")
    return _here


def begin(app: Celery, settings: Settings, device: str) -> None:
    """Make this process a worker's: load the model and announce it. Raises QsitError."""
    global _here
    memory.keep_freed()
    log.setLevel(logging.INFO)  # also where Celery was started with another level
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _here = Process(app, settings, device)
