"""Run by Alembic, from `qsit db upgrade` or from the command `alembic`."""

from alembic import context

from models.db import advisory_lock, connect, writing
from models.tables import Base
from qsit.settings import default_database_url

url = context.config.attributes.get("url") or default_database_url()
engine = connect(url, create=True)

with writing(engine) as connection:
    advisory_lock(connection, "migrations")
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()

engine.dispose()
