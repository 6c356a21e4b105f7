"""The ledger, and the views for SQL users.

Revision ID: 0001
Revises:
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BYTE_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
UTC = sa.DateTime(timezone=True)
SECONDS = sa.Float(53)  # since 1970, by the clock of the database
DOUBLE = sa.Float(53)

VIEWS = {
    # the score of the current version of each image, one row an image and scorer
    "qsit_scores": """
        SELECT images.uri, images.version, scores.score,
               scores.excellent AS logit_excellent, scores.good AS logit_good, scores.fair AS logit_fair,
               scores.poor AS logit_poor, scores.bad AS logit_bad,
               scorers.model, scorers.revision, scorers.procedure, scores.dtype, scores.scored_at,
               scores.job_id AS job
        FROM scores
        JOIN images ON images.id = scores.image_id
        JOIN scorers ON scorers.id = scores.scorer_id
        WHERE images.current
    """,
    # every failed item, one row an image and job
    "qsit_failures": """
        SELECT images.uri, images.version, items.reason, items.message, scorers.model, scorers.revision,
               scorers.procedure, items.job_id AS job
        FROM items
        JOIN images ON images.id = items.image_id
        JOIN jobs ON jobs.id = items.job_id
        JOIN scorers ON scorers.id = jobs.scorer_id
        WHERE items.state = 'failed'
    """,
    # what is left to do, one row a job
    "qsit_backlog": """
        SELECT jobs.id AS job, jobs.name, jobs.state, scorers.model, scorers.revision, jobs.priority,
               jobs.created_at, COALESCE(SUM(chunks.size - chunks.scored - chunks.failed), 0) AS waiting
        FROM jobs
        JOIN scorers ON scorers.id = jobs.scorer_id
        LEFT JOIN chunks ON chunks.job_id = jobs.id AND chunks.state <> 'done'
        WHERE jobs.state IN ('active', 'paused')
        GROUP BY jobs.id, jobs.name, jobs.state, scorers.model, scorers.revision, jobs.priority, jobs.created_at
    """,
}


def only(condition: str) -> dict[str, Any]:
    """The arguments that make an index partial."""
    return {"postgresql_where": sa.text(condition), "sqlite_where": sa.text(condition)}


def upgrade() -> None:
    op.create_table(
        "images",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("uri", BYTE_TEXT, nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("current", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_images"),
        sa.UniqueConstraint("uri", "version", name="uq_images_uri_version"),
    )
    op.create_index("ix_images_uri_current", "images", ["uri"], unique=True, **only("current"))
    op.create_table(
        "scorers",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("procedure", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_scorers"),
        sa.UniqueConstraint("model", "revision", "procedure", name="uq_scorers_model_revision_procedure"),
    )
    op.create_table(
        "workers",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("broker", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("load_s", SECONDS, nullable=True),
        sa.Column("notice", sa.Text(), nullable=True),
        sa.Column("seen_at", SECONDS, nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_workers"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("scorer_id", ROW_ID, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("private", sa.Boolean(), nullable=False),
        sa.Column("rescore", sa.Boolean(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("max_failed", sa.Text(), nullable=False),
        sa.Column("skipped", sa.BigInteger(), nullable=False),
        sa.Column("skipped_failed", sa.BigInteger(), nullable=False),
        sa.Column("lister", sa.Text(), nullable=True),
        sa.Column("lister_until", SECONDS, nullable=True),
        sa.Column("created_at", UTC, nullable=False),
        sa.Column("listed_at", UTC, nullable=True),
        sa.Column("served_at", SECONDS, nullable=False),
        sa.Column("finished_at", UTC, nullable=True),
        sa.ForeignKeyConstraint(["scorer_id"], ["scorers.id"], name="fk_jobs_scorer_id"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("name", name="uq_jobs_name"),
    )
    op.create_index("ix_jobs_key", "jobs", ["key"])
    op.create_table(
        "chunks",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("job_id", ROW_ID, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("scored", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("token", sa.Text(), nullable=True),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("until", SECONDS, nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_chunks_job_id"),
        sa.PrimaryKeyConstraint("id", name="pk_chunks"),
    )
    op.create_index("ix_chunks_job_id_state", "chunks", ["job_id", "state"])
    op.create_index("ix_chunks_until_held", "chunks", ["until"], **only("state IN ('sent', 'leased')"))
    op.create_table(
        "items",
        sa.Column("job_id", ROW_ID, nullable=False),
        sa.Column("image_id", ROW_ID, nullable=False),
        sa.Column("chunk_id", ROW_ID, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("risk", sa.Text(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_items_job_id"),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="fk_items_image_id"),
        sa.ForeignKeyConstraint(["chunk_id"], ["chunks.id"], name="fk_items_chunk_id"),
        sa.PrimaryKeyConstraint("job_id", "image_id", name="pk_items"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_items_chunk_id", "items", ["chunk_id"])
    op.create_index("ix_items_image_id_failed", "items", ["image_id"], **only("state = 'failed'"))
    op.create_table(
        "scores",
        sa.Column("image_id", ROW_ID, nullable=False),
        sa.Column("scorer_id", ROW_ID, nullable=False),
        sa.Column("score", DOUBLE, nullable=False),
        sa.Column("excellent", sa.REAL(), nullable=False),
        sa.Column("good", sa.REAL(), nullable=False),
        sa.Column("fair", sa.REAL(), nullable=False),
        sa.Column("poor", sa.REAL(), nullable=False),
        sa.Column("bad", sa.REAL(), nullable=False),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("job_id", ROW_ID, nullable=False),
        sa.Column("scored_at", UTC, nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name="fk_scores_image_id"),
        sa.ForeignKeyConstraint(["scorer_id"], ["scorers.id"], name="fk_scores_scorer_id"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_scores_job_id"),
        sa.PrimaryKeyConstraint("image_id", "scorer_id", name="pk_scores"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_scores_job_id", "scores", ["job_id"])
    op.create_index("ix_scores_scorer_id_score_image_id", "scores", ["scorer_id", "score", "image_id"])
    op.create_index("ix_scores_scorer_id_scored_at_image_id", "scores", ["scorer_id", "scored_at", "image_id"])
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")


def downgrade() -> None:
    for name in VIEWS:
        op.execute(f"DROP VIEW {name}")
    for table in ("scores", "items", "chunks", "jobs", "workers", "scorers", "images"):
        op.drop_table(table)
