"""How a worker and its processes start, stop and fail: the handlers of Celery's signals."""

import logging
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

import psutil
from billiard.process import current_process
from celery import signals
from celery.worker import state as worker_state
from kombu.transport.redis import Channel

from models import db
from qsit import checkpoints, settings
from qsit.errors import BrokerUnavailable, DatabaseUnavailable, QsitError
from worker import dispatch, process
from worker.app import app
from worker.devices import find_devices
from worker.heartbeat import start_thread
from worker.launch import TRY_AGAIN

log = logging.getLogger("qsit")

COULD_NOT_RUN = 1
SAME_SIGNAL_S = 1.0
"""Signals this close together count as one: `timeout`, for example, signals a program and then its process group."""
DEVICES = "QSIT_WORKER_DEVICES"
"""The variable in which the parent hands down the devices of its processes."""
PARENT_CHECK_S = 1.0
ORPHAN_GRACE_S = 10.0
"""How long an orphan may take to record the batch in hand."""


@signals.celeryd_init.connect
def configure_worker(conf: Any, **_: Any) -> None:
    """
    In the parent, before anything starts: choose the queue and the devices, one process each. What cannot work ends the
    worker here, because Celery would log an exception of a handler and go on.
    """
    try:
        _configure(conf)
    except Exception as error:
        _report(error)
        may_pass = isinstance(error, BrokerUnavailable | DatabaseUnavailable)
        raise SystemExit(TRY_AGAIN if may_pass and "QSIT_PRIVATE_RUN" in os.environ else COULD_NOT_RUN) from error


def _configure(conf: Any) -> None:
    chosen = settings.load()
    engine = db.open_ledger(chosen.database_url)
    dispatch.check_broker(app)
    revision = checkpoints.resolve(checkpoints.full_name(chosen.model), chosen.revision)
    devices = find_devices(chosen.device)
    name = dispatch.queue_name(engine, process.queue_key_of(chosen, revision))
    engine.dispose()
    # what each process uses, also one that starts later
    os.environ["QSIT_REVISION"] = revision
    os.environ[DEVICES] = ",".join(devices)
    conf.worker_concurrency = len(devices)
    conf.task_queues = [dispatch.queue(name)]
    Channel.do_restore = False  # no message goes back to Redis at the end: the ledger sends its chunk again
    if chosen.device == "cuda":
        log.warning("--device cuda is %s alone; --device auto uses every GPU", devices[0])
    if not chosen.roots:
        log.warning("no --root and no QSIT_ROOTS given: this worker opens no photos")


@signals.celeryd_after_setup.connect
def handle_signals(instance: Any, **_: Any) -> None:
    """
    In the parent: a process that cannot load its model ends the worker, and a shutdown reaches every process. A second
    signal ends all at once, because Celery ignores a second SIGTERM and waits for the batch at a second Ctrl-C.
    """

    def give_up(*_: object) -> None:
        worker_state.should_stop = COULD_NOT_RUN

    def stop_processes(**_: Any) -> None:
        stopped_at = time.monotonic()

        def end_at_once(number: int, _: object) -> None:
            if time.monotonic() - stopped_at < SAME_SIGNAL_S:
                return
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            os._exit(128 + number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, end_at_once)
        for pid in instance.pool.info["processes"] if instance.pool else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)

    signal.signal(signal.SIGUSR2, give_up)
    signals.worker_shutting_down.connect(stop_processes, weak=False)


@signals.worker_process_init.connect
def begin_process(**_: Any) -> None:
    """In a process of the pool: load the model on the device of this process."""
    start_thread(_end_with_parent, os.getppid())
    try:
        device = os.environ[DEVICES].split(",")[current_process().index]
        process.start_process(app, settings.load(), device)
    except Exception as error:  # noqa: BLE001 -- Celery would log it and go on without a model
        _report(error)
        os.kill(os.getppid(), signal.SIGUSR2)
        time.sleep(2)  # until the pool knows; it would start another process
        os._exit(COULD_NOT_RUN)
    stopping = process.current_process().stopping
    signal.signal(signal.SIGUSR2, lambda *_: stopping.set())


@signals.worker_process_shutdown.connect
def end_process(**_: Any) -> None:
    """In a process of the pool: tell the ledger that it has stopped."""
    process.current_process().heartbeat.end()


def _report(error: Exception) -> None:
    if isinstance(error, QsitError):
        print(f"qsit worker: {error}", file=sys.stderr)  # noqa: T201 -- `qsit score` reads it from the worker's log
    else:
        log.exception("unexpected error; please report it")


def _end_with_parent(parent: int) -> None:
    """
    Watch the parent. When it has ended, send this process the signal that the parent would send, and end the process
    after ORPHAN_GRACE_S if it is still busy with a photo or a batch.
    """
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(ORPHAN_GRACE_S)
    os._exit(1)
