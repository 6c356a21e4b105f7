"""A gate that keeps a job from finishing, so that a test can disturb it on a machine of any speed."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from models import db


@contextmanager
def held(database_url: str, table: str, image_id: int | None = None) -> Iterator[None]:
    """Have SQLite refuse each row of `table`, or each one about an image, until the block ends. Workers try again."""
    engine = db.connect(database_url)
    when = "" if image_id is None else f"WHEN NEW.image_id = {image_id}"
    with db.writing(engine) as connection:
        refuse = "BEGIN SELECT RAISE(ABORT, 'held by the test'); END"
        connection.execute(text(f"CREATE TRIGGER held BEFORE INSERT ON {table} {when} {refuse}"))
    try:
        yield
    finally:
        with db.writing(engine) as connection:
            connection.execute(text("DROP TRIGGER held"))
        engine.dispose()
