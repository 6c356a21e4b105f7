"""Scores without foreign keys: checking them took half the time of writing a score, and nothing they name is deleted.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KEYS = {"image_id": "images", "scorer_id": "scorers", "job_id": "jobs"}
INDEXES = (("scorer_id", "score", "image_id"), ("job_id", "score", "image_id"), ("scorer_id", "scored_at", "image_id"))
ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        _remade([])
        return
    for column in KEYS:
        op.drop_constraint(f"fk_scores_{column}", "scores", type_="foreignkey")


def downgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        _remade([sa.ForeignKeyConstraint([name], [f"{to}.id"], name=f"fk_scores_{name}") for name, to in KEYS.items()])
        return
    for column, table in KEYS.items():
        op.create_foreign_key(f"fk_scores_{column}", "scores", table, [column], ["id"])


def _remade(keys: list[sa.ForeignKeyConstraint]) -> None:
    """SQLite changes no constraints: the table is copied."""
    view = op.get_bind().execute(sa.text("SELECT sql FROM sqlite_master WHERE name = 'qsit_scores'")).scalar_one()
    op.execute("DROP VIEW qsit_scores")
    for index in INDEXES:
        op.drop_index(f"ix_scores_{'_'.join(index)}", "scores")
    op.rename_table("scores", "old_scores")
    op.create_table(
        "scores",
        sa.Column("image_id", ROW_ID, nullable=False),
        sa.Column("scorer_id", ROW_ID, nullable=False),
        sa.Column("score", sa.Float(53), nullable=False),
        *(sa.Column(name, sa.REAL(), nullable=False) for name in ("excellent", "good", "fair", "poor", "bad")),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("job_id", ROW_ID, nullable=False),
        sa.Column("scored_at", sa.DateTime(timezone=True), nullable=False),
        *keys,
        sa.PrimaryKeyConstraint("image_id", "scorer_id", name="pk_scores"),
        sqlite_with_rowid=False,
    )
    op.execute("INSERT INTO scores SELECT * FROM old_scores")
    op.drop_table("old_scores")
    for index in INDEXES:
        op.create_index(f"ix_scores_{'_'.join(index)}", "scores", index)
    op.execute(view)
