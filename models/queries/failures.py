"""The photos that failed, and for which reasons."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Engine, func, select

from models.db import reading
from models.queries.answers import Given as Given
from models.queries.pagination import PAGE
from models.queries.pagination import Sort as Sort
from models.queries.pagination import Wanted as Wanted
from models.tables import (
    HAS_FAILED,
    Image,
    Item,
)
from qsit.states import Reason


def count_failures(engine: Engine, job_id: int) -> dict[Reason, int]:
    """How many items of a job failed for each reason, the commonest first."""
    query = (
        select(Item.reason, func.count())
        .where(Item.job_id == job_id, HAS_FAILED)
        .group_by(Item.reason)
        .order_by(func.count().desc(), Item.reason)
    )
    with reading(engine) as connection:
        return {Reason(row[0] or ""): row[1] for row in connection.execute(query)}


@dataclass(frozen=True)
class Failure:
    """A failed item."""

    uri: str
    reason: Reason
    message: str
    job: int


def list_failures(engine: Engine, job_id: int) -> Iterator[Failure]:
    """The failed items of a job, in the order of their listing."""
    last = 0
    while True:
        query = (
            select(Item.image_id, Image.uri, Item.reason, Item.message)
            .join(Image, Image.id == Item.image_id)
            .where(Item.job_id == job_id, HAS_FAILED, Item.image_id > last)
            .order_by(Item.image_id)
            .limit(PAGE)
        )
        with reading(engine) as connection:
            rows = connection.execute(query).all()
        for row in rows:
            yield Failure(row.uri, Reason(row.reason), row.message or "", job_id)
        if len(rows) < PAGE:
            return
        last = rows[-1].image_id
