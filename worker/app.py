"""The Celery app, its configuration, and the life of its processes."""

import contextlib
import logging
import os
import signal
import sys
import time
from typing import Any

import psutil
from celery import Celery, signals
from celery.worker import state as worker_state

from qsit.errors import BrokerUnavailable, DatabaseUnavailable
from worker.devices import find_devices
from worker.launch import TRY_AGAIN

log = logging.getLogger("qsit")

DEFAULT_BROKER = "redis://localhost:6379/0"
COULD_NOT_RUN = 1
SAME_SIGNAL_S = 1.0
"""Signals this close are one: `timeout`, for one, signals a program and then its group."""


def configuration() -> dict[str, Any]:
    """What Celery is told; read when it is first needed, not at import."""
    from qsit import settings

    return {
        "broker_url": settings.load().broker_url or DEFAULT_BROKER,
        # a worker outlives every trouble of Redis, however long
        "broker_connection_retry_on_startup": True,
        "broker_connection_retry": True,
        "broker_connection_max_retries": None,  # for ever; the default gives up after an hour
        "broker_channel_error_retry": True,  # also when Redis answers but refuses, as a replica does
        "broker_transport_options": {
            "ack_emulation": False,  # the ledger knows what is not done; a full Redis could not take the notes
            "socket_connect_timeout": 10,
            "socket_timeout": 10,  # far longer than an answer takes; or a Redis that hangs would hang us
            "health_check_interval": 10,  # a poll (1 s) that is overdue by so much is given up
        },
        "result_backend": None,
        "task_ignore_result": True,
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_compression": "zlib",
        "task_acks_late": True,  # a message is held while its chunk is worked on, so that no other is fetched
        "worker_prefetch_multiplier": 1,
        "worker_enable_prefetch_count_reduction": False,  # nothing to be raised again after an outage, and forgotten
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # a turn needs the ledger, and no Redis
        "task_reject_on_worker_lost": False,  # the ledger sends again what a dead process held
        "worker_consumer": "worker.consumer:Consumer",
        "worker_pool": "prefork",
        "worker_pool_start_method": "spawn",  # CUDA cannot be used after a fork
        "worker_proc_alive_timeout": 3600.0,  # a process is up once its model is loaded
        "worker_enable_remote_control": False,
        "worker_redirect_stdouts": False,
    }


class App(Celery):
    """
    Celery by a name of ours. A spawned process unpickles it, and so imports this package before Celery's loader looks
    for one called worker in the folder where the user stands.
    """


app = App("qsit")
app.add_defaults(configuration)


@signals.import_modules.connect
def _import_tasks(**_: Any) -> None:
    """Not by Celery's setting `include`, which is imported with the folder where the user stands before all others."""
    import worker.tasks  # noqa: F401


@signals.celeryd_init.connect
def _configure_worker(instance: Any, conf: Any, **_: Any) -> None:
    """In the parent, before anything starts: refuse in one line what cannot work; a process a device, one queue."""
    from kombu.transport.redis import Channel

    from models import db
    from qsit import checkpoints, settings
    from worker import dispatch, process

    try:
        chosen = settings.load()
        engine = db.open_ledger(chosen.database_url)
        dispatch.check_broker(app)
        revision = checkpoints.resolve(checkpoints.full_name(chosen.model), chosen.revision)
        lane = process.queue_key_of(chosen, revision)
        devices = find_devices(chosen.device)
        queue = dispatch.queue(dispatch.queue_name(engine, lane))
        engine.dispose()
    except (BrokerUnavailable, DatabaseUnavailable) as error:
        print(f"qsit worker: {error}", file=sys.stderr)  # noqa: T201 -- the worker's last word
        raise SystemExit(TRY_AGAIN if "QSIT_PRIVATE_RUN" in os.environ else COULD_NOT_RUN) from error
    except Exception as error:  # Celery would log it and go on, unconfigured
        raise SystemExit(f"qsit worker: {error}") from error
    os.environ["QSIT_REVISION"] = revision  # what every process loads, one that is started later, too
    conf.worker_concurrency = len(devices)
    conf.task_queues = [queue]
    Channel.do_restore = False  # messages in hand need not go back to Redis: the ledger sends their chunks again
    if not chosen.roots:
        log.warning("no --root and no QSIT_ROOTS given: this worker opens no photos")


@signals.celeryd_after_setup.connect
def _prepare_signals(instance: Any, **_: Any) -> None:
    """
    In the parent: a process that cannot load its model ends the worker; a shutdown reaches the processes, and a second
    signal ends all at once: Celery heeds no second SIGTERM, and waits for the batch at a second Ctrl-C, too.
    """

    def give_up(*_: object) -> None:
        worker_state.should_stop = COULD_NOT_RUN

    def tell_processes(**_: Any) -> None:
        told_at = time.monotonic()

        def end_at_once(number: int, _: object) -> None:
            if time.monotonic() - told_at < SAME_SIGNAL_S:
                return
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            os._exit(128 + number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, end_at_once)
        for pid in instance.pool.info["processes"] if instance.pool else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)

    signal.signal(signal.SIGUSR2, give_up)
    signals.worker_shutting_down.connect(tell_processes, weak=False)


@signals.worker_process_init.connect
def _begin_process(**_: Any) -> None:
    """In a process of the pool: load the model on the device that is its own."""
    from billiard.process import current_process

    from qsit import settings
    from worker import parent_watch, process

    parent_watch.end_with_parent()
    try:
        chosen = settings.load()
        devices = find_devices(chosen.device)
        process.begin(app, chosen, devices[current_process().index])
    except Exception as error:  # noqa: BLE001 -- Celery would log it and go on, without a model
        print(f"qsit worker: {error}", file=sys.stderr)  # noqa: T201 -- the worker's last word
        os.kill(os.getppid(), signal.SIGUSR2)
        time.sleep(2)  # or the pool would start another process before it hears
        os._exit(COULD_NOT_RUN)
    here = process.here()
    signal.signal(signal.SIGUSR2, lambda *_: here.stop())


@signals.worker_process_shutdown.connect
def _end_process(**_: Any) -> None:
    from worker import process

    process.here().end()
