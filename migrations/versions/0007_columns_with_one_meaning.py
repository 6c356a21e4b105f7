"""Give chunks a column for each meaning, and call what guards against crashes by the field's words.

`owner` was a worker or a broker and `until` was one of three times, depending on the state.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

HELD = sa.text("state IN ('sent', 'leased')")
RENAMED = (("items", "risk", "quarantine"), ("items", "losses", "crashes"), ("jobs", "served_at", "last_dispatched_at"))


def upgrade() -> None:
    for table, old, new in RENAMED:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
    for column in ("available_at", "lease_expires_at"):
        op.add_column("chunks", sa.Column(column, sa.Float(53), nullable=True))
    for column in ("sent_via", "leased_by"):
        op.add_column("chunks", sa.Column(column, sa.Text(), nullable=True))
    op.execute("UPDATE chunks SET leased_by = owner, lease_expires_at = until WHERE state = 'leased'")
    op.execute("UPDATE chunks SET sent_via = owner, available_at = until WHERE state = 'sent'")
    op.execute("UPDATE chunks SET available_at = until WHERE state = 'queued' AND until IS NOT NULL")
    op.drop_index("ix_chunks_until_held", "chunks")
    op.drop_column("chunks", "owner")
    op.drop_column("chunks", "until")
    op.create_index("ix_chunks_state_held", "chunks", ["state"], postgresql_where=HELD, sqlite_where=HELD)


def downgrade() -> None:
    op.add_column("chunks", sa.Column("owner", sa.Text(), nullable=True))
    op.add_column("chunks", sa.Column("until", sa.Float(53), nullable=True))
    op.execute("UPDATE chunks SET owner = leased_by, until = lease_expires_at WHERE state = 'leased'")
    op.execute("UPDATE chunks SET owner = sent_via, until = available_at WHERE state = 'sent'")
    op.execute("UPDATE chunks SET until = available_at WHERE state = 'queued' AND available_at IS NOT NULL")
    op.drop_index("ix_chunks_state_held", "chunks")
    for column in ("available_at", "lease_expires_at", "sent_via", "leased_by"):
        op.drop_column("chunks", column)
    op.create_index("ix_chunks_until_held", "chunks", ["until"], postgresql_where=HELD, sqlite_where=HELD)
    for table, old, new in RENAMED:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {new} TO {old}")
