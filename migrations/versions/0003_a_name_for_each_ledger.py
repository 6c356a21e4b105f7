"""A name for each ledger, so that several can share one Redis.

Revision ID: 0003
Revises: 0002
"""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    ledger = op.create_table(
        "ledger", sa.Column("id", sa.Text(), nullable=False), sa.PrimaryKeyConstraint("id", name="pk_ledger")
    )
    op.bulk_insert(ledger, [{"id": secrets.token_hex(4)}])


def downgrade() -> None:
    op.drop_table("ledger")
