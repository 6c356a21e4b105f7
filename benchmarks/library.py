"""A library of ten million scored photos, made in the ledger by SQL; see `make` for what is in it."""

import random
from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import Connection, Engine, text

from models.tables import Base

FIRST_DAY = date(2015, 1, 1)
DAYS = 3650
GOOD_MONTH = "2019/06"
TO_DO = 102_400
NIGHTS = 10
BIG_JOB, SECOND_JOB = 1, 2 + NIGHTS
"""The jobs between the two are those of ten nights."""

DIALECT = {
    "sqlite": {
        "numbers": "(WITH RECURSIVE r(i) AS (SELECT {low} UNION ALL SELECT i + 1 FROM r WHERE i < {high}) SELECT i FROM r)",
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
    """What was made, for questions about it."""

    images: int

    def day(self, chosen: random.Random) -> str:
        """The prefix of a day; of a month with [:-3], of a year with [:-6]."""
        return f"s3://photos/{FIRST_DAY + timedelta(chosen.randrange(DAYS)):%Y/%m/%d}/"


def make(engine: Engine, images: int) -> Library:
    """
    Fill an empty ledger. The photos of ten years in a folder a day, three in a hundred with an older version; the
    first scorer has scored all but the failed, the second, of another model, every tenth. Scores have nothing to do
    with names, but for one month in which all are good. A big job has everything, one in a hundred failed, and its
    last 200 chunks still to do; ten more have each scored a hundredth of it again since.
    """
    words = {name: _filled(form, images) for name, form in DIALECT[engine.dialect.name].items()}
    with engine.connect() as connection:
        _hurry(connection)
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


def _filled(form: str, images: int) -> str:
    return form.replace("{first}", FIRST_DAY.isoformat()).replace("{per_day}", str(images // DAYS + 1))


def _hurry(connection: Connection) -> None:
    """No foreign keys are checked, and no disk waited for."""
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

    n = "(i - i / 33)"  # every 33rd image is an older version of the one before it
    day = words["day"].format(n=n)
    uri = f"'s3://photos/' || {day} || '/IMG_' || {words['padded'].format(n=f'{n} % {images // DAYS + 1}')} || '.jpg'"
    etag = words["etag"].format(n="i")
    everything, later = images + TO_DO, f"{images} < i"
    night = f"CASE WHEN i > {images // 2} AND i % 10 = 0 THEN 2 + (i - {images // 2} - 1) * {2 * NIGHTS} / {images} ELSE 1 END"
    score = f"CASE WHEN {day} LIKE '{GOOD_MONTH}%' THEN 0.9 + 0.1 * {words['random']} ELSE {words['random']} END"
    logits = ", ".join(f"{words['random']} * 20" for _ in range(5))
    moment = words["moment"].format(ms=f"(CASE WHEN {night} = 1 THEN i ELSE {images} * {night} + i END)")
    second = words["moment"].format(ms=f"{images} * {SECOND_JOB} + i")
    return [
        f"INSERT INTO images (id, uri, version, current) SELECT i, {uri}, {etag}, i % 33 <> 0 FROM {numbers(1, images)}",
        "INSERT INTO images (id, uri, version, current) "
        f"SELECT i, 's3://photos/incoming/' || i || '.jpg', {etag}, 1 = 1 "
        f"FROM {numbers(images + 1, everything)}",
        "INSERT INTO scorers (id, model, revision, procedure) VALUES "
        "(1, 'zhangzicheng/q-sit-mini', 'r1', 'rating-1/upright-1'), (2, 'zhangzicheng/q-sit', 'r1', 'rating-1/upright-1')",
        'INSERT INTO jobs (id, "key", scorer_id, state, private, rescore, priority, max_failed, skipped, skipped_failed, '
        "created_at, listed_at, served_at) "
        f"SELECT i, 'k' || i, CASE WHEN i = {SECOND_JOB} THEN 2 ELSE 1 END, CASE WHEN i = 1 THEN 'active' ELSE 'finished' END, "
        f"1 = 0, i BETWEEN 2 AND {SECOND_JOB - 1}, 0, '2%', 0, 0, {words['moment'].format(ms='i')}, "
        f"{words['moment'].format(ms='i')}, 0 FROM {numbers(1, SECOND_JOB)}",
        "INSERT INTO chunks (id, job_id, state, size, scored, failed) "
        f"SELECT i, 1, CASE WHEN i * 512 > {images} THEN 'queued' ELSE 'done' END, 512, "
        f"CASE WHEN i * 512 > {images} THEN 0 ELSE 507 END, CASE WHEN i * 512 > {images} THEN 0 ELSE 5 END "
        f"FROM {numbers(1, everything // 512)}",
        "INSERT INTO items (job_id, image_id, chunk_id, state, risk, losses, reason, message) "
        f"SELECT 1, i, (i - 1) / 512 + 1, CASE WHEN {later} THEN 'queued' WHEN i % 100 = 7 THEN 'failed' ELSE 'scored' END, "
        f"'none', 0, CASE WHEN i % 100 = 7 AND NOT {later} THEN "
        "CASE WHEN i % 3 = 0 THEN 'corrupt' WHEN i % 3 = 1 THEN 'not_an_image' ELSE 'too_large' END END, "
        f"CASE WHEN i % 100 = 7 AND NOT {later} THEN 'image file is truncated' END FROM {numbers(1, everything)}",
        "INSERT INTO scores (image_id, scorer_id, score, excellent, good, fair, poor, bad, dtype, job_id, scored_at) "
        f"SELECT i, 1, {score}, {logits}, 'float16', {night}, {moment} FROM {numbers(1, images)} WHERE i % 100 <> 7",
        "INSERT INTO scores (image_id, scorer_id, score, excellent, good, fair, poor, bad, dtype, job_id, scored_at) "
        f"SELECT i, 2, {score}, {logits}, 'float16', {SECOND_JOB}, {second} FROM {numbers(1, images)} "
        "WHERE i % 10 = 3 AND i % 100 <> 7",
        "INSERT INTO workers (owner, broker, model, revision, device, dtype, state, seen_at) "
        "SELECT 'gpu' || i || ':1:1.00', '', 'zhangzicheng/q-sit-mini', 'r1', 'cuda:0', 'float16', 'ready', "
        f"{words['now']} FROM {numbers(1, 16)}",
    ]
