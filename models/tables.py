"""The tables of the ledger. Their schema changes through `migrations` only, which also holds the public views."""

from datetime import UTC, datetime

from sqlalchemy import (
    REAL,
    BigInteger,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
    literal_column,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

RowId = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up INTEGER keys only
ByteText = Text().with_variant(Text(collation="C"), "postgresql")  # ordered by bytes everywhere, so prefixes are ranges


class Utc(TypeDecorator[datetime]):
    """An aware datetime in UTC; SQLite keeps it as text without a zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class LedgerRow(Base):
    """The ledger itself: one row."""

    __tablename__ = "ledger"

    id: Mapped[str] = mapped_column(Text, primary_key=True)  # random; part of its queues' names


def _partial_index(condition: str, name: str, *columns: str, unique: bool = False) -> Index:
    where = text(condition)
    return Index(name, *columns, unique=unique, postgresql_where=where, sqlite_where=where)


class ImageRow(Base):
    """One photo at one version. At most one version of a URI is current."""

    __tablename__ = "images"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    uri: Mapped[str] = mapped_column(ByteText)  # file:///... or s3://bucket/key
    version: Mapped[str] = mapped_column(Text)  # ETag, or size and mtime
    current: Mapped[bool]

    __table_args__ = (
        UniqueConstraint("uri", "version"),
        _partial_index("current", "ix_images_uri_current", "uri", unique=True),
    )


class ScorerRow(Base):
    """A model at a revision with a procedure: what a score depends on besides the image."""

    __tablename__ = "scorers"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    model: Mapped[str] = mapped_column(Text)  # as named: hub id, absolute folder, or "demo"
    revision: Mapped[str] = mapped_column(Text)  # commit of the hub, or hash of the folder's files
    procedure: Mapped[str] = mapped_column(Text)

    __table_args__ = (UniqueConstraint("model", "revision", "procedure"),)


class JobRow(Base):
    """One submission."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    name: Mapped[str | None] = mapped_column(Text, unique=True)
    key: Mapped[str] = mapped_column(Text, index=True)  # digest of sources and options: the same command, the same key
    scorer_id: Mapped[int] = mapped_column(ForeignKey("scorers.id"))
    state: Mapped[str] = mapped_column(Text)  # JobState
    private: Mapped[bool]  # worked on by the `qsit score` that owns it, not by the fleet
    rescore: Mapped[bool]
    priority: Mapped[int]  # higher goes first
    max_failed: Mapped[str] = mapped_column(Text)  # "N" or "P%": failed photos that the job tolerates
    skipped: Mapped[int] = mapped_column(BigInteger)  # listed images that have everything the job wants
    skipped_failed: Mapped[int] = mapped_column(BigInteger)  # listed images that failed before by their own fault
    lister: Mapped[str | None] = mapped_column(Text)  # the process that lists its sources
    lister_until: Mapped[float | None] = mapped_column(Float(53))  # seconds since 1970; then another process may list
    created_at: Mapped[datetime] = mapped_column(Utc)
    listed_at: Mapped[datetime | None] = mapped_column(Utc)  # set when the listing is complete
    last_dispatched_at: Mapped[float] = mapped_column(Float(53))  # seconds since 1970; when a chunk was last sent
    finished_at: Mapped[datetime | None] = mapped_column(Utc)
    ask_below: Mapped[float | None] = mapped_column(Float(53))  # asks about images whose score is under it, or all


class QuestionRow(Base):
    """A question. Its name is the latest one: answers do not depend on it."""

    __tablename__ = "questions"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    text: Mapped[str] = mapped_column(Text)
    choices: Mapped[str] = mapped_column(Text)  # a list in JSON, empty when there are none
    generation: Mapped[str] = mapped_column(Text)  # see qsit.questions
    max_new_tokens: Mapped[int]

    __table_args__ = (UniqueConstraint("text", "choices", "generation"),)


class JobQuestionRow(Base):
    """A question of a job; deleted with its job."""

    __tablename__ = "job_questions"

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    question_id: Mapped[int] = mapped_column(ForeignKey("questions.id"), primary_key=True)
    position: Mapped[int]

    __table_args__ = ({"sqlite_with_rowid": False},)


class ChunkRow(Base):
    """Up to 512 items of a job: the unit of work. Each nullable column has a value in the states named beside it."""

    __tablename__ = "chunks"

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    state: Mapped[str] = mapped_column(Text)  # ChunkState
    size: Mapped[int]
    scored: Mapped[int]
    failed: Mapped[int]
    # queued, when it must rest: not sent before; sent: sent again after. Times are seconds since 1970
    available_at: Mapped[float | None] = mapped_column(Float(53))
    sent_via: Mapped[str | None] = mapped_column(Text)  # sent: the broker, see models.claims.QueueKey
    leased_by: Mapped[str | None] = mapped_column(Text)  # leased: the worker, see qsit.process_id.identity
    lease_expires_at: Mapped[float | None] = mapped_column(Float(53))  # leased
    token: Mapped[str | None] = mapped_column(Text)  # leased: only the worker that has it may write

    __table_args__ = (
        Index(None, "job_id", "state", "id"),
        _partial_index("state IN ('sent', 'leased')", "ix_chunks_state_held", "state"),
    )


HELD = ChunkRow.state.in_((literal_column("'sent'"), literal_column("'leased'")))
"""The condition of the index of sent and leased chunks, word for word: with parameters, SQLite reads all chunks."""


class ItemRow(Base):
    """One image in one job. Skipped images have no row."""

    __tablename__ = "items"

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("images.id"), primary_key=True)
    chunk_id: Mapped[int] = mapped_column(ForeignKey("chunks.id"), index=True)
    state: Mapped[str] = mapped_column(Text)  # ItemState
    quarantine: Mapped[str] = mapped_column(Text)  # Quarantine
    crashes: Mapped[int]  # workers that died while it ran alone
    reason: Mapped[str | None] = mapped_column(Text)  # Reason, of failed items only
    message: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        _partial_index("reason IS NOT NULL", "ix_items_image_id_failed", "image_id"),
        _partial_index("reason IS NOT NULL", "ix_items_job_id_image_id_failed", "job_id", "image_id"),
        _partial_index("reason IS NOT NULL", "ix_items_job_id_reason_failed", "job_id", "reason"),
        {"sqlite_with_rowid": False},
    )


HAS_FAILED = ItemRow.reason.is_not(None)
"""The condition of the indexes of failed items. Without the state, PostgreSQL updates it in place."""


class ScoreRow(Base):
    """The score of one image by one scorer. No foreign keys: checking them took half of the writing time."""

    __tablename__ = "scores"

    image_id: Mapped[int] = mapped_column(RowId, primary_key=True)
    scorer_id: Mapped[int] = mapped_column(RowId, primary_key=True)
    score: Mapped[float] = mapped_column(Float(53))  # 0..1
    excellent: Mapped[float] = mapped_column(REAL)  # the five logits
    good: Mapped[float] = mapped_column(REAL)
    fair: Mapped[float] = mapped_column(REAL)
    poor: Mapped[float] = mapped_column(REAL)
    bad: Mapped[float] = mapped_column(REAL)
    dtype: Mapped[str] = mapped_column(Text)  # the precision it was computed in
    job_id: Mapped[int] = mapped_column(RowId)  # the job that computed it
    scored_at: Mapped[datetime] = mapped_column(Utc)

    __table_args__ = (
        Index(None, "scorer_id", "score", "image_id"),
        Index(None, "job_id", "score", "image_id"),
        Index(None, "scorer_id", "scored_at", "image_id"),
        {"sqlite_with_rowid": False},
    )


class AnswerRow(Base):
    """The answer to one question about one image by one scorer. No foreign keys, as for scores."""

    __tablename__ = "answers"

    image_id: Mapped[int] = mapped_column(RowId, primary_key=True)
    scorer_id: Mapped[int] = mapped_column(RowId, primary_key=True)
    question_id: Mapped[int] = mapped_column(RowId, primary_key=True)
    text: Mapped[str] = mapped_column(Text)
    cut: Mapped[bool]  # it reached the limit of tokens
    probabilities: Mapped[str | None] = mapped_column(Text)  # of the choices, a list in JSON
    dtype: Mapped[str] = mapped_column(Text)  # the precision it was computed in
    job_id: Mapped[int] = mapped_column(RowId)  # the job that asked
    answered_at: Mapped[datetime] = mapped_column(Utc)

    __table_args__ = (Index(None, "job_id", "question_id", "image_id"), {"sqlite_with_rowid": False})


class WorkerRow(Base):
    """A worker process that loads, holds or held a model."""

    __tablename__ = "workers"

    owner: Mapped[str] = mapped_column(Text, primary_key=True)  # host:pid:start, see qsit.process_id.identity
    broker: Mapped[str] = mapped_column(Text)  # where its chunks come from, see models.claims.QueueKey
    model: Mapped[str] = mapped_column(Text)
    revision: Mapped[str] = mapped_column(Text)
    device: Mapped[str] = mapped_column(Text)
    dtype: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)  # WorkerState
    load_s: Mapped[float | None] = mapped_column(Float(53))  # what loading the model took, in seconds
    notice: Mapped[str | None] = mapped_column(Text)  # a message to people: no GPU found, a source out of reach
    seen_at: Mapped[float] = mapped_column(Float(53))  # seconds since 1970, by the database's clock
