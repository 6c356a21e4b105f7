"""Indexes for ten million scores: one job's by score, a job's failures, a job's next chunk.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

FAILED = sa.text("state = 'failed'")
FAILURES = {
    "ix_items_job_id_image_id_failed": ["job_id", "image_id"],
    "ix_items_job_id_state_reason_failed": ["job_id", "state", "reason"],
}


def upgrade() -> None:
    op.drop_index("ix_scores_job_id", "scores")
    op.create_index("ix_scores_job_id_score_image_id", "scores", ["job_id", "score", "image_id"])
    for name, columns in FAILURES.items():
        op.create_index(name, "items", columns, postgresql_where=FAILED, sqlite_where=FAILED)
    op.drop_index("ix_chunks_job_id_state", "chunks")
    op.create_index("ix_chunks_job_id_state_id", "chunks", ["job_id", "state", "id"])


def downgrade() -> None:
    op.drop_index("ix_chunks_job_id_state_id", "chunks")
    op.create_index("ix_chunks_job_id_state", "chunks", ["job_id", "state"])
    for name in FAILURES:
        op.drop_index(name, "items")
    op.drop_index("ix_scores_job_id_score_image_id", "scores")
    op.create_index("ix_scores_job_id", "scores", ["job_id"])
