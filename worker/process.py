"""One process of a worker: it loads a model, and holds what its tasks need."""

import logging
import os
import threading
import time
import warnings
from dataclasses import dataclass

from celery import Celery
from PIL import Image
from sqlalchemy import Engine

from models import db
from models.claims import Claim, ExistingResults, QueueKey
from models.ledger import recording, workers
from models.tables import WorkerRow
from qsit import checkpoints, process_id
from qsit.errors import QsitError
from qsit.settings import Settings
from qsit.sources.reader import Reader
from qsit.states import WorkerState
from worker.heartbeat import Heartbeat, run_timer, start_thread
from worker.loader import PhotoLoader
from worker.notices import Notices
from worker.pipeline import Pipeline
from worker.scoring import BatchScorer

log = logging.getLogger("qsit")


@dataclass(frozen=True)
class Process:
    """What a worker process holds. `stopping` is set by a signal: the process ends after the batch in hand."""

    engine: Engine
    queue_key: QueueKey
    owner: str
    lease_s: float
    turn_s: float
    pipeline: Pipeline
    notices: Notices
    heartbeat: Heartbeat
    timer_woken: threading.Event  # set it to have Redis topped up soon
    stopping: threading.Event

    def is_interrupted(self) -> bool:
        """Whether to drop the chunk in hand: the worker is stopping, or the chunk is lost."""
        return self.stopping.is_set() or self.heartbeat.is_lost


_current: Process | None = None


def current_process() -> Process:
    """Return this process, as `start_process` set it up."""
    if _current is None:
        raise RuntimeError("a task runs only in the processes of a worker: celery -A worker.app worker")
    return _current


def queue_key_of(settings: Settings, revision: str) -> QueueKey:
    """Return which chunks a worker takes that holds this revision of its model."""
    return QueueKey(checkpoints.full_name(settings.model), revision, settings.private_run or "", settings.private_job)


def start_process(app: Celery, settings: Settings, device: str) -> None:
    """Make this process a worker's: announce it, load the model (or raise QsitError), and start the heartbeat."""
    from worker.qsit import default_dtype

    global _current
    log.setLevel(logging.INFO)  # also where Celery was started with another level
    warnings.filterwarnings("ignore", module="PIL")  # about odd metadata, for each photo
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    engine = db.connect(settings.database_url, async_commit=True)
    queue_key = queue_key_of(settings, settings.revision or "")  # the parent has resolved the revision
    owner, lease_s = process_id.identity(), settings.lease_s
    stopping, timer_woken = threading.Event(), threading.Event()
    notices = Notices(engine, owner, stopping)
    row = WorkerRow(owner=owner, broker=queue_key.broker, model=queue_key.model, revision=queue_key.revision)
    row.device, row.dtype, row.state = device, settings.dtype or default_dtype(device), WorkerState.LOADING
    notices.retry(lambda: workers.register(engine, row))
    scorer, loader = _load(engine, row, settings, notices)
    if device == "cpu" and settings.device == "auto":
        row.notice = notices.standing = "no GPU found: scoring on the CPU is slow"
        log.warning(row.notice)
    notices.retry(lambda: workers.register(engine, row))
    heartbeat = Heartbeat(engine, owner, lease_s, notices, stopping)
    heartbeat.start()
    start_thread(run_timer, engine, app, queue_key, lease_s, notices, timer_woken)
    pipeline = Pipeline(scorer, loader, settings.loaders, settings.decode_s)
    _current = Process(
        engine, queue_key, owner, lease_s, settings.turn_s, pipeline, notices, heartbeat, timer_woken, stopping
    )


def _load(engine: Engine, row: WorkerRow, settings: Settings, notices: Notices) -> tuple[BatchScorer, PhotoLoader]:
    """Load the model that a worker's row names, and return what scores with it and what loads photos for it."""
    from worker.qsit import QSit

    began = time.monotonic()
    try:
        model = QSit.load(row.model, device=row.device, dtype=row.dtype, revision=row.revision)
    except QsitError as error:
        workers.set_notice(engine, row.owner, state=WorkerState.STOPPED, notice=str(error))
        raise
    row.load_s = time.monotonic() - began
    row.state = WorkerState.READY
    where = (row.model, row.revision, row.device, row.dtype, row.load_s)
    log.info("model %s at revision %s loaded on %s in %s, in %.1f s", *where)

    def find_results(uri: str, version: str, claim: Claim) -> ExistingResults:
        return notices.retry(lambda: recording.existing_results(engine, uri, version, claim))

    mounted = settings.private_run is not None  # `qsit score` has just listed them
    reader = Reader(
        settings.roots, mounted=mounted, endpoint_url=settings.s3_endpoint_url, connections=settings.loaders
    )
    probe = model.prepare(Image.new("RGB", (64, 48), "grey"))
    scorer = BatchScorer(model, row.dtype, settings.batch_tokens or model.batch_tokens, probe)
    return scorer, PhotoLoader(reader, model.prepare, settings.max_pixels, find_results)
