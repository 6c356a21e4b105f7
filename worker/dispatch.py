"""Tops up Redis with the chunks that come next."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import KombuError
from kombu.transport.redis import get_redis_error_classes
from kombu.utils.url import maybe_sanitize_url
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from sqlalchemy import Engine

from models.claims import QueueKey
from models.ledger import rescue, scheduling
from qsit.errors import BrokerUnavailable

AHEAD = 2
"""Chunks that wait in Redis for each live worker."""

TASK = "qsit.score_chunk"


def queue_name(engine: Engine, lane: QueueKey) -> str:
    """The name of the queue of a lane: workers take only what they hold, of their own ledger."""
    return f"qsit.{scheduling.ledger_id(engine)}.{lane.model}@{lane.revision[:16]}"


def queue(name: str) -> Queue:
    """A queue for Celery. Nothing of it is declared: Redis makes a list with its first message, and is left alone."""
    return Queue(name, no_declare=True)


def top_up(engine: Engine, app: Celery, lane: QueueKey, lease_s: float) -> None:
    """
    Send what comes next in a lane; the ledger has it as sent before its message goes out.

    Raises:
        BrokerUnavailable: when Redis does not take a message; what was not sent is queued again.
    """
    name = queue_name(engine, lane)
    with _connected(app) as connection:
        with _translate_errors(app):
            redis = connection.default_channel.client
            redis.ltrim(name, 0, -1)  # changes nothing, but whoever takes no changes, as a replica, says so now
            is_empty = redis.llen(name) == 0
        if is_empty:
            rescue.requeue_lost(engine, lane, lease_s=lease_s)
        messages = scheduling.stage_chunks(engine, lane, ahead=AHEAD, lease_s=lease_s)
        for index, message in enumerate(messages):
            try:
                with _translate_errors(app):
                    app.send_task(
                        TASK, args=[message.chunk_id, message.uris], queue=queue(name), connection=connection,
                        retry=False,  # by whoever tops up next
                    )  # fmt: skip
            except BrokerUnavailable:
                scheduling.unstage(engine, [unsent.chunk_id for unsent in messages[index:]])
                raise


def topping_up(
    engine: Engine, app: Celery, lane: QueueKey, lease_s: float, tell: Callable[[str], None]
) -> Callable[..., None]:
    """
    A function that tops up until Redis fails, and tells that once: the ledger has everything, and workers top up by
    themselves.
    """
    failed = False

    def top_up_or_tell(*_: object) -> None:
        nonlocal failed
        if failed:
            return
        try:
            top_up(engine, app, lane, lease_s)
        except BrokerUnavailable as error:
            failed = True
            tell(f"{error}; nothing is lost, the workers take the photos up when it is back")

    return top_up_or_tell


def check_broker(app: Celery) -> None:
    """
    Passes when the broker answers.

    Raises:
        BrokerUnavailable: when it does not.
    """
    try:
        with _connected(app) as connection:
            connection.default_channel.client.ping()
    except BrokerUnavailable:
        raise
    except Exception as error:  # of a URL that means nothing
        raise _unavailable(app, error) from error


@contextmanager
def _connected(app: Celery) -> Iterator[Any]:
    """A connection of its own, so that one that broke or hung is of no account the next time."""
    with app.connection_for_write() as connection:
        with _translate_errors(app):
            connection.ensure_connection(max_retries=0)
        yield connection


@contextmanager
def _translate_errors(app: Celery) -> Iterator[None]:
    errors, refusals = get_redis_error_classes()
    try:
        yield
    except (KombuError, RedisError, *errors, *refusals) as error:
        raise _unavailable(app, error) from error


def _unavailable(app: Celery, error: Exception) -> BrokerUnavailable:
    if isinstance(error, KombuError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    where = maybe_sanitize_url(app.conf.broker_url)
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OutOfMemoryError):
        return BrokerUnavailable(f"Redis at {where} is full ({reason}); raise its maxmemory")
    if isinstance(error, ResponseError):
        return BrokerUnavailable(f"Redis at {where} takes no messages ({reason})")
    return BrokerUnavailable(f"Redis at {where} does not answer ({reason}); start it, or set QSIT_BROKER_URL")
