"""Measure the overhead of the queue: processor time per photo, pauses between chunks, several workers, real photos.

    python -m benchmarks.overhead sqlite|postgresql [--parts NAMES] [--photos N] [--batch N] [--rate N] [--folder DIR]

Everything but the model is real: `qsit submit`, Valkey, Celery's processes, the database, reading and decoding files.
The tests' null model takes no time (`processor`) or sleeps as long as a GPU would take (`pauses`, `workers`). In
`photos`, the demo checkpoint scores the example photos. Start-up does not count: the workers are ready and have scored
a photo before. Prints tables and a line of JSON. (The name is not queue.py, because programs of this folder that are
started by path would import it in place of Python's module.)
"""

import json
import os
import resource
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil
from sqlalchemy import func, select

from benchmarks.scale import make_parser, make_scratch, run_apart, run_database
from migrations.upgrade import upgrade
from models import db
from models.claims import Claim, ClaimedItem
from models.ledger import ingest
from models.tables import ScoreRow, WorkerRow
from producer.monitor import POLL_S
from producer.submit import Request, opened
from qsit import settings
from qsit.sources.listing import Listing
from qsit.sources.reader import Reader
from qsit.sources.source import parse_source
from qsit.states import JobState, WorkerState
from tests.support import null_worker
from tests.support.chaos import JOB, state_of
from tests.support.fleet import Fleet, broker_of, fleet
from tests.support.programs import make_photos, run, until
from worker.imaging.decode import decode
from worker.inference.tiles import Prepared
from worker.launch import COMMAND
from worker.loader import PhotoLoader
from worker.pipeline import Pipeline
from worker.scoring import BatchScorer, PreparedPhoto

EXAMPLES = Path(__file__).parent.parent / "examples" / "photos"
COPIES = 20
"""Copies of each example photo."""
STEADY_S = 15
"""How long the photos last for several workers."""
CHUNKS = 6
"""Full chunks, between which the model waits."""
CPU_BUDGET = 8192
SETTINGS = {"QSIT_LEASE_S": "180", "QSIT_DECODE_S": "60"}  # the defaults; the tests' are shorter


@dataclass
class Bench:
    """A database, and a folder for photos and logs. server: the process of PostgreSQL, if it is the database."""

    folder: Path
    create: Callable[[str], str]
    server: psutil.Process | None
    batch: int

    @contextmanager
    def fleet(self, name: str, workers: int, batch_s: float, **options: Any) -> Iterator["Running"]:
        """Start workers, wait until they are ready, and let one score a photo."""
        url = self.create(name)
        upgrade(url)
        logs = self.folder / name
        one = make_photos(logs / "one", 1)
        variables = SETTINGS | {
            "QSIT_BATCH_TOKENS": str(self.batch * null_worker.TOKENS),
            "NULL_BATCH_S": str(batch_s),
            **({"NULL_LOG": str(logs / "batches")} if batch_s else {}),
        }
        with fleet(url, self.folder, workers, logs, **{**variables, **options}) as started:
            running = Running(url, started, logs / "batches", self.server)
            until(lambda: running.ready() == workers)
            running.submit(one)
            running.batches.unlink(missing_ok=True)
            yield running


@dataclass
class Running:
    """A fleet, and the file in which its null models log their batches."""

    url: str
    fleet: Fleet
    batches: Path
    server: psutil.Process | None

    def __post_init__(self) -> None:
        self.engine = db.connect(self.url)

    def ready(self) -> int:
        with db.reading(self.engine) as connection:
            query = select(func.count()).select_from(WorkerRow).where(WorkerRow.state == WorkerState.READY)
            return int(connection.execute(query).scalar_one())

    def submit(self, photos: Path) -> float:
        """Score a folder with `qsit submit --wait` and return that command's processor time."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        variables = broker_of(self.fleet.broker_folder) | {"QSIT_MODEL": "demo"}
        run("submit", str(photos), "--wait", database_url=self.url, **variables)  # type: ignore[arg-type]
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def enqueue(self, photos: Path) -> None:
        """List a folder into the ledger and wait until the workers have scored it."""
        with opened(
            self.engine, Request((parse_source(str(photos)),), name=JOB, model="demo"), lambda _: None
        ) as lister:
            lister.list(lambda _: None)
        while state_of(self.engine) != JobState.FINISHED:
            time.sleep(POLL_S)

    def processor_s(self) -> dict[str, float]:
        """Return the processor time so far, by kind of process."""
        seconds: dict[str, float] = defaultdict(float)
        for worker in self.fleet.workers:
            parent = psutil.Process(worker.process.pid)
            seconds["worker: parent"] += sum(parent.cpu_times()[:2])
            for child in parent.children(recursive=True):
                kind = "worker: child" if "spawn_main" in " ".join(child.cmdline()) else "worker: parent"
                seconds[kind] += sum(child.cpu_times()[:2])
        seconds["Valkey"] = sum(psutil.Process(self.fleet.broker.process.pid).cpu_times()[:2])
        if self.server is not None:  # with its ended children
            family = [self.server, *self.server.children(recursive=True)]
            seconds["PostgreSQL"] = sum(sum(process.cpu_times()[:4]) for process in family)
        return seconds

    def records(self) -> int:
        """Return how many times results were recorded."""
        with db.reading(self.engine) as connection:
            return int(connection.execute(select(func.count(ScoreRow.scored_at.distinct()))).scalar_one())

    def read_batches(self) -> dict[int, list[tuple[float, float, int]]]:
        """Return the batches of each worker: begin, end, photos."""
        batches: dict[int, list[tuple[float, float, int]]] = defaultdict(list)
        for line in self.batches.read_text().splitlines():
            pid, began, ended, count = line.split()
            batches[int(pid)].append((float(began), float(ended), int(count)))
        return batches


def measure_processor(bench: Bench, photos: int) -> dict[str, Any]:
    """Measure the processor time per photo of all processes, and that of a plain loop."""
    folder = make_photos(bench.folder / "many", photos)
    another = make_photos(bench.folder / "another", 1)
    budget = bench.batch * null_worker.TOKENS
    loop = run_apart(run_plain_loop, folder, budget, False)["processor_s"]
    opening, handing_over = run_apart(measure_steps, folder, budget)
    with bench.fleet("processor", 1, 0) as running:
        start_up = running.submit(another)
        before = running.processor_s()
        began = time.monotonic()
        submitting = running.submit(folder) - start_up
        took = time.monotonic() - began
        after = running.processor_s()
        records = running.records()
    spent = {"producer": submitting, **{kind: after[kind] - before[kind] for kind in after}}
    ms = {kind: seconds / photos * 1000 for kind, seconds in spent.items()}
    ms["total"] = sum(ms.values())
    ms["the plain loop"] = loop / photos * 1000
    ms["overhead"] = ms["total"] - ms["the plain loop"]
    print(f"\n{photos:,} photos, {photos / records:.1f} per record, {photos / took:.0f} per second\n")
    print("| processor time | ms per photo |\n|---|---|")
    for kind, value in ms.items():
        print(f"| {kind} | {value:.3f} |")
    where = {
        "the plain loop": loop,
        "opening files below the roots": opening - loop,
        "passing photos between threads": handing_over - opening,
        "ledger, Celery and timers": spent["worker: child"] - handing_over,
    }
    print("\n| part of the worker's child | ms per photo |\n|---|---|")
    for kind, value in where.items():
        print(f"| {kind} | {value / photos * 1000:.3f} |")
    return {
        "ms_per_photo": ms,
        "ms_per_photo_of_child": {kind: value / photos * 1000 for kind, value in where.items()},
        "photos_per_s": photos / took,
        "photos_per_record": photos / records,
    }


def run_plain_loop(folder: Path, budget: int, is_real: bool) -> dict[str, float]:
    """Read, decode, prepare and score photos one after another, without a queue."""
    if is_real:
        from worker.qsit import QSit

        model: Any = QSit.load("demo", device="cpu")
    else:
        os.environ["NULL_BATCH_S"] = "0"
        model = null_worker.QSit()
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    scored, model_s = [], 0.0

    def score(batch: list[Any]) -> None:
        nonlocal model_s
        began = time.perf_counter()
        scored.extend(model.score(batch))
        model_s += time.perf_counter() - began

    score([model.prepare(decode(paths[0].read_bytes(), max_pixels=10**8))])
    scored, model_s = [], 0.0
    began, processor_began = time.perf_counter(), time.process_time()
    batch: list[Any] = []
    tokens = 0
    for path in paths:
        prepared = model.prepare(decode(path.read_bytes(), max_pixels=10**8))
        if batch and tokens + prepared.tokens > budget:
            score(batch)
            batch, tokens = [], 0
        batch.append(prepared)
        tokens += prepared.tokens
    score(batch)
    assert len(scored) == len(paths)
    elapsed = time.perf_counter() - began
    return {"elapsed_s": elapsed, "processor_s": time.process_time() - processor_began, "model_s": model_s}


def measure_steps(folder: Path, budget: int) -> tuple[float, float]:
    """Return the processor time of the loop with files opened as a worker does, and then also with its threads."""
    os.environ["NULL_BATCH_S"] = "0"
    model = null_worker.QSit()
    loader = PhotoLoader(Reader([str(folder)], mounted=True), model.prepare, max_pixels=10**8)
    found = list(parse_source(str(folder)).walk(Listing()))
    items = [ClaimedItem(index, each.uri, each.version, False) for index, each in enumerate(found)]
    claim = Claim(1, 1, 1, "", False, "", items)

    def load(item: ClaimedItem) -> Prepared:
        photo = loader.load(item, claim, lambda: None)
        assert isinstance(photo, PreparedPhoto)
        return photo.prepared

    size = budget // null_worker.TOKENS
    began = time.process_time()
    for low in range(0, len(items), size):
        model.score([load(item) for item in items[low : low + size]])
    opening = time.process_time() - began
    pipeline = Pipeline(BatchScorer(model, "float32", budget), loader, settings.load().loaders)
    began = time.process_time()
    for _ in pipeline.run(claim, lambda *_: None, turn_s=3600, stopping=lambda: False):
        pass
    return opening, time.process_time() - began


def measure_pauses(bench: Bench, rate: float) -> dict[str, Any]:
    """Measure how long the model waits between two batches and between two chunks."""
    size, before_smallest = ingest.CHUNK_SIZE, ingest.SMALLEST_CHUNK
    ingest.SMALLEST_CHUNK = size  # otherwise a small job has small chunks
    photos = make_photos(bench.folder / "paced", CHUNKS * size)
    with bench.fleet("pauses", 1, bench.batch / rate) as running:
        before = sum(running.processor_s().values())
        running.enqueue(photos)
        spent = sum(running.processor_s().values()) - before
        [batches] = running.read_batches().values()
    ingest.SMALLEST_CHUNK = before_smallest
    within: list[float] = []
    between: list[float] = []
    done = 0
    for (_, end, count), (begin, _, _) in pairwise(batches):
        done += count
        (within if done % size else between).append((begin - end) * 1000)
    chunk_ms = size / rate * 1000
    busy = sum(end - begin for begin, end, _ in batches) / (batches[-1][1] - batches[0][0])
    found = {
        "between two batches, median ms": median(within),
        "between two batches, mean ms": mean(within),
        "between two chunks, median ms": median(between),
        "between two chunks, longest ms": max(between),
        f"share of a chunk of {size} photos, %": 100 * mean(between) / chunk_ms,
        "model busy, %": 100 * busy,
        "processor time, ms per photo": spent / (CHUNKS * size) * 1000,
    }
    print(f"\nAt {rate:g} photos per second in batches of {bench.batch}\n\n| the model waits | |\n|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:.3g} |")
    return found


def measure_workers(bench: Bench, rates: tuple[float, ...]) -> dict[str, Any]:
    """Measure one, two and four workers, from when all have begun until the first has no more photos."""
    print(
        "\n| photos per second of one model | workers | photos per second | share of n times one |\n|---|---|---|---|"
    )
    found: dict[str, Any] = {}
    for rate in rates:
        for workers in (1, 2, 4):
            name = f"workers{rate:g}x{workers}"
            photos = make_photos(bench.folder / name / "photos", int(rate * workers * STEADY_S))
            with bench.fleet(name, workers, bench.batch / rate) as running:
                running.enqueue(photos)
                by_worker = running.read_batches().values()
            begin = max(batches[0][0] for batches in by_worker)
            end = min(batches[-1][1] for batches in by_worker)
            done = sum(count for batches in by_worker for _, at, count in batches if begin < at <= end)
            found[name] = done / (end - begin)
            share = found[name] / workers / found[f"workers{rate:g}x1"]
            print(f"| {rate:g} | {workers} | {found[name]:.1f} | {share:.1%} |", flush=True)
    return found


def measure_real_photos(bench: Bench) -> dict[str, Any]:
    """Score the example photos with the demo checkpoint: from files to rows, and in a plain loop."""
    os.environ["OMP_NUM_THREADS"] = "1"  # on a busy machine, two threads wait for each other more than they work
    folder = bench.folder / "real"
    folder.mkdir()
    for path in EXAMPLES.iterdir():
        for copy in range(COPIES if path.is_file() else 0):
            shutil.copy(path, folder / f"{copy:03}-{path.name}")
    count = len(list(folder.iterdir()))
    loop = run_apart(run_plain_loop, folder, CPU_BUDGET, True)
    with bench.fleet("photos", 1, 0, program=COMMAND, QSIT_BATCH_TOKENS=str(CPU_BUDGET)) as running:
        began = time.monotonic()
        running.enqueue(folder)
        took = time.monotonic() - began
    found = {
        "photos": count,
        "plain loop, photos per second": count / loop["elapsed_s"],
        "model alone, photos per second": count / loop["model_s"],
        "from files to rows, photos per second": count / took,
        "share of the plain loop, %": 100 * loop["elapsed_s"] / took,
        "share of the model alone, %": 100 * loop["model_s"] / took,
    }
    print("\n| real photos, demo checkpoint | |\n|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:.4g} |")
    return found


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--parts", default="processor,pauses,workers,photos")
    parser.add_argument("--photos", type=int, default=10_000, help="photos for `processor`")
    parser.add_argument("--batch", type=int, default=8, help="photos in a batch")
    parser.add_argument("--rate", type=float, default=45, help="photos per second of the sleeping model")
    args = parser.parse_args()
    report: dict[str, Any] = {name: getattr(args, name) for name in ("database", "photos", "batch", "rate")}
    with make_scratch("overhead", args.folder) as folder, run_database(args.database, folder) as create:
        server = folder / "pg" / "postmaster.pid"
        process = psutil.Process(int(server.read_text().split()[0])) if server.exists() else None
        bench = Bench(folder, create, process, args.batch)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "processor": lambda: measure_processor(bench, args.photos),
            "pauses": lambda: measure_pauses(bench, args.rate),
            "workers": lambda: measure_workers(bench, (args.rate, 400)),
            "photos": lambda: measure_real_photos(bench),
        }
        for part in args.parts.split(","):
            report[part] = parts[part]()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
