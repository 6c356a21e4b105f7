"""Alembic, called from the program itself."""

from importlib.resources import files

from alembic import command
from alembic.config import Config


def upgrade(url: str) -> None:
    """Bring the database at `url` to this program's schema, making it if need be. Raises DatabaseError."""
    config = Config()
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    config.attributes["url"] = url
    command.upgrade(config, "head")
