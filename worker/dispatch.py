"""Tops up Redis with the chunks that come next."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import KombuError
from kombu.transport.redis import get_redis_error_classes
from kombu.utils.url import maybe_sanitize_url
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from sqlalchemy import Engine

from models.claims import QueueKey
from models.ledger import rescue, scheduling
from qsit.errors import BrokerUnavailable, one_line

CHUNKS_AHEAD = 2
"""Chunks that wait in Redis for each live worker."""
TASK = "qsit.score_chunk"


def queue_name(engine: Engine, queue_key: QueueKey) -> str:
    """Return the name of a queue. It names the ledger and the model, so that a worker gets only what it can score."""
    return f"qsit.{scheduling.ledger_id(engine)}.{queue_key.model}@{queue_key.revision[:16]}"


def queue(name: str) -> Queue:
    """Return a queue for Celery. It is not declared: Redis makes a list with its first message."""
    return Queue(name, no_declare=True)


def top_up(engine: Engine, app: Celery, queue_key: QueueKey, lease_s: float) -> None:
    """
    Send the chunks that come next. The ledger marks each as sent before its message goes out.

    Raises BrokerUnavailable when Redis refuses a message; chunks that were not sent are queued again.
    """
    name = queue_name(engine, queue_key)
    with app.connection_for_write() as connection:  # a new one: a broken one is never used again
        with _translate_errors(app):
            connection.ensure_connection(max_retries=0)
            redis = connection.default_channel.client
            redis.ltrim(name, 0, -1)  # changes nothing, but a Redis that refuses writes, as a replica does, says so
            is_empty = redis.llen(name) == 0
        if is_empty:
            rescue.requeue_lost(engine, queue_key, lease_s=lease_s)
        messages = scheduling.stage_chunks(engine, queue_key, ahead=CHUNKS_AHEAD, lease_s=lease_s)
        options = {"queue": queue(name), "connection": connection, "retry": False}  # the next top-up tries again
        for index, message in enumerate(messages):
            try:
                with _translate_errors(app):
                    app.send_task(TASK, args=[message.chunk_id, message.uris], **options)
            except BrokerUnavailable:
                scheduling.unstage(engine, [unsent.chunk_id for unsent in messages[index:]])
                raise


class BestEffortTopUp:
    """Tops up when called, until Redis fails, which it reports once: the ledger has all, and workers top up, too."""

    def __init__(
        self, engine: Engine, app: Celery, queue_key: QueueKey, lease_s: float, report: Callable[[str], None]
    ) -> None:
        self._top_up: Callable[[], None] | None = partial(top_up, engine, app, queue_key, lease_s)
        self._report = report

    def __call__(self, *_: object) -> None:
        try:
            if self._top_up is not None:
                self._top_up()
        except BrokerUnavailable as error:
            self._top_up = None
            self._report(f"{error}; nothing is lost, the workers take the photos up when it is back")


def check_broker(app: Celery) -> None:
    """Raise BrokerUnavailable when the broker does not answer."""
    with _translate_errors(app, Exception), app.connection_for_write() as connection:  # any error, for a URL of no use
        connection.ensure_connection(max_retries=0)
        connection.default_channel.client.ping()


@contextmanager
def _translate_errors(app: Celery, *others: type[Exception]) -> Iterator[None]:
    errors, refusals = get_redis_error_classes()
    try:
        yield
    except (KombuError, RedisError, *errors, *refusals, *others) as error:
        cause = error.__cause__ if isinstance(error, KombuError) and error.__cause__ else error
        where, reason = f"Redis at {maybe_sanitize_url(app.conf.broker_url)}", one_line(cause)
        if isinstance(cause, OutOfMemoryError):
            raise BrokerUnavailable(f"{where} is full ({reason}); raise its maxmemory") from error
        if isinstance(cause, ResponseError):
            raise BrokerUnavailable(f"{where} takes no messages ({reason})") from error
        raise BrokerUnavailable(f"{where} does not answer ({reason}); start it, or set QSIT_BROKER_URL") from error
