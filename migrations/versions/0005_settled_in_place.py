"""Items change in place: PostgreSQL does so where the page has room and no index names what changes.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

BY_STATE = sa.text("state = 'failed'")
BY_REASON = sa.text("reason IS NOT NULL")
FAILURES = {"ix_items_image_id_failed": ["image_id"], "ix_items_job_id_image_id_failed": ["job_id", "image_id"]}
COUNTED_BY_STATE = {"ix_items_job_id_state_reason_failed": ["job_id", "state", "reason"]}
COUNTED_BY_REASON = {"ix_items_job_id_reason_failed": ["job_id", "reason"]}
VIEW = """
    CREATE VIEW qsit_failures AS
    SELECT images.uri, images.version, items.reason, items.message, scorers.model, scorers.revision,
           scorers.procedure, items.job_id AS job
    FROM items
    JOIN images ON images.id = items.image_id
    JOIN jobs ON jobs.id = items.job_id
    JOIN scorers ON scorers.id = jobs.scorer_id
    WHERE items.{}
"""


def upgrade() -> None:
    _remake(FAILURES | COUNTED_BY_STATE, FAILURES | COUNTED_BY_REASON, BY_REASON)
    if op.get_context().dialect.name == "postgresql":
        op.execute("ALTER TABLE items SET (fillfactor = 50)")  # of what is listed from now on


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("ALTER TABLE items RESET (fillfactor)")
    _remake(FAILURES | COUNTED_BY_REASON, FAILURES | COUNTED_BY_STATE, BY_STATE)


def _remake(old: dict[str, list[str]], new: dict[str, list[str]], where: sa.TextClause) -> None:
    op.execute("DROP VIEW qsit_failures")
    for name in old:
        op.drop_index(name, "items")
    for name, columns in new.items():
        op.create_index(name, "items", columns, postgresql_where=where, sqlite_where=where)
    op.execute(VIEW.format(where))
