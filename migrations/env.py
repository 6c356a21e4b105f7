"""Run by Alembic, from `qsit db upgrade` or from the command `alembic`."""

from alembic import context
from sqlalchemy import text

from models.db import connect, default_url, writing
from models.tables import Base

url = context.config.attributes.get("url") or default_url()
engine = connect(url, create=True)

with writing(engine) as connection:
    if connection.dialect.name == "postgresql":  # SQLite's write transaction already keeps two upgrades apart
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('qsit.migrations'))"))
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()

engine.dispose()
