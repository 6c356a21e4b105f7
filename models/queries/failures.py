"""The photos that failed, and for which reasons."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Engine, func, select

from models.db import reading
from models.queries.pagination import PAGE
from models.tables import HAS_FAILED, ImageRow, ItemRow
from qsit.states import Reason


def count_failures(engine: Engine, job_id: int) -> dict[Reason, int]:
    """Count the failed items of a job by reason, the most frequent first."""
    query = (
        select(ItemRow.reason, func.count())
        .where(ItemRow.job_id == job_id, HAS_FAILED)
        .group_by(ItemRow.reason)
        .order_by(func.count().desc(), ItemRow.reason)
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
    """Yield the failed items of a job in the order of their listing."""
    last = 0
    while True:
        query = (
            select(ItemRow.image_id, ImageRow.uri, ItemRow.reason, ItemRow.message)
            .join(ImageRow, ImageRow.id == ItemRow.image_id)
            .where(ItemRow.job_id == job_id, HAS_FAILED, ItemRow.image_id > last)
            .order_by(ItemRow.image_id)
            .limit(PAGE)
        )
        with reading(engine) as connection:
            rows = connection.execute(query).all()
        for row in rows:
            yield Failure(row.uri, Reason(row.reason), row.message or "", job_id)
        if len(rows) < PAGE:
            return
        last = rows[-1].image_id
