"""Fill the ledger by SQL with a library of scored photos. `make_library` says what it contains."""

import random
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Connection, Engine, text

from models.tables import Base

MODEL, SECOND_MODEL = "zhangzicheng/q-sit-mini", "zhangzicheng/q-sit"
FIRST_DAY = date(2015, 1, 1)
DAYS = 3650
GOOD_MONTH = "2019/06"
TO_DO = 102_400
NIGHTS = 10
BIG_JOB, SECOND_JOB = 1, 2 + NIGHTS
"""The jobs between them are those of ten nights."""

DIALECT = {
    "sqlite": {
        "numbers": "(WITH RECURSIVE r(i) AS "
        "(SELECT {low} UNION ALL SELECT i + 1 FROM r WHERE i < {high}) SELECT i FROM r)",
        "day": "strftime('%Y/%m/%d', '{first}', (({n}) / {per_day}) || ' days')",
        "padded": "printf('%06d', {n})",
        "etag": "printf('\"%016x%016x\"', {n} * 2654435761, {n} * 40503)",
        "now": "unixepoch() * 1.0",
        "random": "((random() & 9007199254740991) / 9007199254740992.0)",
        "moment": "strftime('%Y-%m-%d %H:%M:', 1770000000 + ({ms}) / 1000, 'unixepoch') "
        "|| printf('%02d.%03d000', ({ms}) / 1000 % 60, ({ms}) % 1000)",
    },
    "postgresql": {
        "numbers": "(SELECT i FROM generate_series({low}, {high}) AS r(i))",
        "day": "to_char(date '{first}' + (({n}) / {per_day})::int, 'YYYY/MM/DD')",
        "padded": "lpad(({n})::text, 6, '0')",
        "etag": "'\"' || md5(({n})::text) || '\"'",
        "now": "extract(epoch FROM now())",
        "random": "random()",
        "moment": "to_timestamp((1770000000000 + ({ms})) / 1000.0)",
    },
}


@dataclass(frozen=True)
class Library:
    """The size of a library, to choose parts of it at random."""

    images: int

    def choose_day(self, chosen: random.Random) -> str:
        """Return the URI prefix of a random day."""
        days = (self.images - self.images // 33) // (self.images // DAYS + 1)
        return f"s3://photos/{FIRST_DAY + timedelta(chosen.randrange(days)):%Y/%m/%d}/"


def make_library(engine: Engine, images: int) -> Library:
    """
    Fill an empty ledger with the photos of ten years, one folder per day. 3 % have an older version. The first scorer
    has scored all photos that did not fail; the second, of another model, every tenth. Scores are random, except for
    one month in which all are good. One big job has everything; 1 % of it failed and its last 200 chunks are queued.
    Ten later jobs have each scored a two-hundredth of it again.
    """
    words = {name: _fill(form, images) for name, form in DIALECT[engine.dialect.name].items()}
    with engine.connect() as connection:
        _disable_durability(connection)
        indexes = [index for name in ("items", "scores") for index in Base.metadata.tables[name].indexes]
        for index in indexes:
            index.drop(connection)
        connection.commit()
        for statement in _statements(images, words):
            connection.execute(text(statement.replace(":", r"\:")))
            connection.commit()
        for index in indexes:
            index.create(connection)
            connection.commit()
        if connection.dialect.name == "postgresql":
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM ANALYZE"))
    engine.dispose()
    return Library(images)


def _fill(form: str, images: int) -> str:
    return form.replace("{first}", FIRST_DAY.isoformat()).replace("{per_day}", str(images // DAYS + 1))


def _disable_durability(connection: Connection) -> None:
    """Skip the checks of foreign keys and the waiting for the disk."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET session_replication_role = replica"))
        connection.execute(text("SET synchronous_commit = off"))
        connection.execute(text("SET maintenance_work_mem = '1GB'"))
        connection.commit()
        return
    cursor = connection.connection.cursor()
    for setting in ("foreign_keys = OFF", "synchronous = OFF", "cache_size = -1000000"):
        cursor.execute(f"PRAGMA {setting}")


def _statements(images: int, words: dict[str, str]) -> list[str]:
    def numbers(low: int, high: int) -> str:
        return words["numbers"].format(low=low, high=high) + " AS numbers"

    def moment(ms: str) -> str:
        return words["moment"].format(ms=ms)

    n = "(i - i / 33)"  # every 33rd image is an older version of the previous one
    day = words["day"].format(n=n)
    uri = f"'s3://photos/' || {day} || '/IMG_' || {words['padded'].format(n=f'{n} % {images // DAYS + 1}')} || '.jpg'"
    etag = words["etag"].format(n="i")
    everything = images + TO_DO
    half, share = images // 2, f"(i - {images // 2} - 1) * {2 * NIGHTS} / {images}"
    job = f"CASE WHEN i > {half} AND i % 10 = 0 THEN {BIG_JOB + 1} + {share} ELSE {BIG_JOB} END"
    score = f"CASE WHEN {day} LIKE '{GOOD_MONTH}%' THEN 0.9 + 0.1 * {words['random']} ELSE {words['random']} END"
    logits = ", ".join(f"{words['random']} * 20" for _ in range(5))
    is_done, has_failed = f"i <= {images}", f"(i <= {images} AND i % 100 = 7)"
    chunk_is_done = f"i * 512 <= {images}"
    reason = "CASE i % 3 WHEN 0 THEN 'corrupt' WHEN 1 THEN 'not_an_image' ELSE 'too_large' END"
    return [
        f"""INSERT INTO images (id, uri, version, current)
            SELECT i, {uri}, {etag}, i % 33 <> 0 FROM {numbers(1, images)}""",
        f"""INSERT INTO images (id, uri, version, current)
            SELECT i, 's3://photos/incoming/' || i || '.jpg', {etag}, 1 = 1 FROM {numbers(images + 1, everything)}""",
        f"""INSERT INTO scorers (id, model, revision, procedure) VALUES
            (1, '{MODEL}', 'r1', 'rating-1/upright-1'), (2, '{SECOND_MODEL}', 'r1', 'rating-1/upright-1')""",
        f"""INSERT INTO jobs (id, "key", scorer_id, state, private, rescore, priority, max_failed, skipped,
                              skipped_failed, created_at, listed_at, last_dispatched_at)
            SELECT i, 'k' || i, CASE WHEN i = {SECOND_JOB} THEN 2 ELSE 1 END,
                   CASE WHEN i = {BIG_JOB} THEN 'active' ELSE 'finished' END, 1 = 0,
                   i BETWEEN {BIG_JOB + 1} AND {SECOND_JOB - 1}, 0, '2%', 0, 0, {moment("i")}, {moment("i")}, 0
            FROM {numbers(BIG_JOB, SECOND_JOB)}""",
        f"""INSERT INTO chunks (id, job_id, state, size, scored, failed)
            SELECT i, {BIG_JOB}, CASE WHEN {chunk_is_done} THEN 'done' ELSE 'queued' END, 512,
                   CASE WHEN {chunk_is_done} THEN 507 ELSE 0 END, CASE WHEN {chunk_is_done} THEN 5 ELSE 0 END
            FROM {numbers(1, everything // 512)}""",
        f"""INSERT INTO items (job_id, image_id, chunk_id, state, quarantine, crashes, reason, message)
            SELECT {BIG_JOB}, i, (i - 1) / 512 + 1,
                   CASE WHEN {has_failed} THEN 'failed' WHEN {is_done} THEN 'scored' ELSE 'queued' END, 'none', 0,
                   CASE WHEN {has_failed} THEN {reason} END, CASE WHEN {has_failed} THEN 'the file is truncated' END
            FROM {numbers(1, everything // 512 * 512)}""",
        f"""INSERT INTO scores (image_id, scorer_id, score, excellent, good, fair, poor, bad, dtype, job_id, scored_at)
            SELECT i, 1, {score}, {logits}, 'float16', {job},
                   {moment(f"(CASE WHEN {job} = {BIG_JOB} THEN i ELSE {images} * {job} + i END)")}
            FROM {numbers(1, images)} WHERE NOT {has_failed}""",
        f"""INSERT INTO scores (image_id, scorer_id, score, excellent, good, fair, poor, bad, dtype, job_id, scored_at)
            SELECT i, 2, {score}, {logits}, 'float16', {SECOND_JOB}, {moment(f"{images} * {SECOND_JOB} + i")}
            FROM {numbers(1, images)} WHERE i % 10 = 3 AND NOT {has_failed}""",
        f"""INSERT INTO workers (owner, broker, model, revision, device, dtype, state, seen_at)
            SELECT 'gpu' || i || ':1:1.00', '', '{MODEL}', 'r1', 'cuda:0', 'float16', 'ready', {words["now"]}
            FROM {numbers(1, 16)}""",
    ]
