"""Tops up Redis with the chunks that come next."""

from celery import Celery
from kombu.exceptions import OperationalError
from kombu.utils.url import maybe_sanitize_url
from sqlalchemy import Engine

from models import backlog
from models.errors import BrokerUnavailable
from models.ledger import Lane

AHEAD = 2
"""Chunks that wait in Redis for each live worker."""

TASK = "qsit.score_chunk"


def queue_of(lane: Lane) -> str:
    """The name of the queue of a lane: workers take only what they hold."""
    return f"qsit.{lane.model}@{lane.revision[:16]}"


def top_up(engine: Engine, app: Celery, lane: Lane, lease_s: float) -> None:
    """
    Send what comes next in a lane; the ledger has it as sent before its message goes out.

    Raises:
        BrokerUnavailable: when Redis does not take a message; what was not sent is queued again.
    """
    messages = backlog.send(engine, lane, ahead=AHEAD, lease_s=lease_s)
    for index, message in enumerate(messages):
        try:
            app.send_task(TASK, args=[message.chunk_id, message.uris], queue=queue_of(lane))
        except OperationalError as error:
            backlog.unsend(engine, [unsent.chunk_id for unsent in messages[index:]])
            raise _unavailable(app, error) from error


def check_broker(app: Celery) -> None:
    """
    Passes when the broker answers.

    Raises:
        BrokerUnavailable: when it does not.
    """
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
            connection.default_channel.client.ping()
    except Exception as error:  # kombu lets the errors of every transport and of redis-py through
        raise _unavailable(app, error) from error


def _unavailable(app: Celery, error: Exception) -> BrokerUnavailable:
    where = maybe_sanitize_url(app.conf.broker_url)
    reason = " ".join(str(error).split())
    return BrokerUnavailable(f"Redis at {where} does not answer ({reason}); start it, or set QSIT_BROKER_URL")
