"""The Celery app and its settings."""

import importlib
from typing import Any

from celery import Celery, signals

from qsit import settings

DEFAULT_BROKER = "redis://localhost:6379/0"


def configuration() -> dict[str, Any]:
    """Return Celery's settings. Celery asks for them when it first needs one, not at import."""
    return {
        "broker_url": settings.load().broker_url or DEFAULT_BROKER,
        # a worker survives any outage of Redis, however long
        "broker_connection_retry_on_startup": True,
        "broker_connection_retry": True,
        "broker_connection_max_retries": None,  # without end; by default a worker gives up after an hour
        "broker_channel_error_retry": True,  # also when Redis answers but refuses, as a replica does
        "broker_transport_options": {
            "ack_emulation": False,  # the ledger knows what is open, and a full Redis could not store the notes
            "socket_connect_timeout": 10,
            "socket_timeout": 10,  # far longer than an answer takes; without it, a Redis that hangs hangs the worker
            "health_check_interval": 10,  # a poll takes 1 s; Celery gives up on one that is overdue by this much
        },
        "result_backend": None,
        "task_ignore_result": True,
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_acks_late": True,  # a process holds its message while it works, so that it fetches no other
        "worker_prefetch_multiplier": 1,
        "worker_enable_prefetch_count_reduction": False,  # Celery would not restore the count after an outage
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # a turn needs the ledger, not Redis
        "task_reject_on_worker_lost": False,  # the ledger sends the chunk of a dead process again
        "worker_consumer": "worker.consumer:Consumer",
        "worker_pool": "prefork",
        "worker_pool_start_method": "spawn",  # CUDA does not work after a fork
        "worker_proc_alive_timeout": 3600.0,  # a process is ready once its model is loaded
        "worker_enable_remote_control": False,
        "worker_redirect_stdouts": False,
    }


class App(Celery):
    """
    Celery under a name of ours. A spawned process unpickles it, and so imports this package before Celery looks for one
    called worker in the current folder.
    """


app = App("qsit")
app.add_defaults(configuration)


@signals.import_modules.connect
def _import_worker_modules(**_: Any) -> None:
    """
    Import what only a worker needs, when a worker or one of its processes starts.

    Celery's own setting, `include`, would search the current folder first, for all that these modules import.
    """
    for name in ("worker.tasks", "worker.lifecycle"):
        importlib.import_module(name)
