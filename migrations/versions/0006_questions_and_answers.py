"""Questions, the jobs that ask them, and answers.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# the answers about the current version of each image, one row an image, scorer and question
VIEW = """
    CREATE VIEW qsit_answers AS
    SELECT images.uri, images.version, questions.name AS question, questions.text,
           NULLIF(questions.choices, '[]') AS choices, answers.text AS answer, answers.cut, answers.probabilities,
           scorers.model, scorers.revision, scorers.procedure, answers.dtype, answers.answered_at,
           answers.job_id AS job
    FROM answers
    JOIN images ON images.id = answers.image_id
    JOIN scorers ON scorers.id = answers.scorer_id
    JOIN questions ON questions.id = answers.question_id
    WHERE images.current
"""


def upgrade() -> None:
    op.create_table(
        "questions",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("choices", sa.Text(), nullable=False),
        sa.Column("generation", sa.Text(), nullable=False),
        sa.Column("max_new_tokens", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_questions"),
        sa.UniqueConstraint("text", "choices", "generation", name="uq_questions_text_choices_generation"),
    )
    op.add_column("jobs", sa.Column("ask_below", sa.Float(53), nullable=True))
    op.create_table(
        "job_questions",
        sa.Column("job_id", ROW_ID, nullable=False),
        sa.Column("question_id", ROW_ID, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_questions_job_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["question_id"], ["questions.id"], name="fk_job_questions_question_id"),
        sa.PrimaryKeyConstraint("job_id", "question_id", name="pk_job_questions"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "answers",
        sa.Column("image_id", ROW_ID, nullable=False),
        sa.Column("scorer_id", ROW_ID, nullable=False),
        sa.Column("question_id", ROW_ID, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("cut", sa.Boolean(), nullable=False),
        sa.Column("probabilities", sa.Text(), nullable=True),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("job_id", ROW_ID, nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("image_id", "scorer_id", "question_id", name="pk_answers"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_answers_job_id_question_id_image_id", "answers", ["job_id", "question_id", "image_id"])
    op.execute(VIEW)


def downgrade() -> None:
    op.execute("DROP VIEW qsit_answers")
    op.drop_table("answers")
    op.drop_table("job_questions")
    op.drop_column("jobs", "ask_below")
    op.drop_table("questions")
