"""Alembic, called from the program itself."""

from importlib.resources import files

from alembic import command
from alembic.config import Config

from models.db import connect, refuse_newer_schema


def upgrade(url: str) -> None:
    """Bring the database at `url` to this program's schema, making it if need be. Raises DatabaseError."""
    engine = connect(url, create=True)
    try:
        refuse_newer_schema(engine)
    finally:
        engine.dispose()
    config = Config()
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    config.attributes["url"] = url
    command.upgrade(config, "head")
