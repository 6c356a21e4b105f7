"""Measure how long the host takes to decode a photo and cut it into tiles, against the processor of transformers.

    python -m benchmarks.host [--rounds N] [--threads N] [--photo FILE]

Photos are JPEGs made by enlarging an example photo (quality 90, 4:2:0). "Ours" is `decode` and `Tiling.prepare`, as a
worker process runs them. "Stock" is Pillow and LlavaOnevisionImageProcessorPil to float32 tensors; its tiling includes
scaling and normalizing. Both run with glibc's defaults and with freed memory kept, as `worker.launch` sets it. Each of
the four runs in a process of its own, in alternating rounds. Processor time is user and system time of all threads of a
process. First checks that our tiles, scaled and normalized, equal those of stock bit for bit. Prints tables and a line
of JSON.
"""

import argparse
import io
import json
import math
import multiprocessing
import os
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageOps
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from tests.support import icc_profiles
from worker.imaging.color_profiles import convert_to_srgb
from worker.imaging.decode import decode
from worker.inference.tiles import Tiling
from worker.launch import ENVIRONMENT

CHECKPOINT = Path(__file__).parent.parent / "tests" / "golden" / "checkpoint"
PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "coffee.jpg"
SIZES = ((512, 384), (1024, 768), (4000, 3000))
MAX_PIXELS = 100_000_000
PIXELS_PER_ROUND = 16_000_000

KEEP_FREED = {name: value for name, value in ENVIRONMENT.items() if name.startswith("MALLOC_")}
"""Variables with which glibc keeps freed memory. It reads them when a process starts."""
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "stock": ("stock", {}),
    "stock, freed memory kept": ("stock", KEEP_FREED),
    "ours, freed memory not kept": ("ours", {}),
    "ours": ("ours", KEEP_FREED),
}
GPU_LIMITS = {
    ("q-sit-mini", "1024x768"): 88.5,
    ("q-sit-mini", "4000x3000"): 28.6,
    ("q-sit", "1024x768"): 11.0,
    ("q-sit", "4000x3000"): 6.2,
}
"""The most photos per second that one GPU could score, at 790 TFLOP/s (bf16 on an H200)."""

Figures = dict[str, float]


class Child:
    """One way to prepare photos, in a process of its own."""

    def __init__(self, way: str) -> None:
        self.prepare: Callable[[bytes], object] = {"ours": self._ours, "stock": self._stock}[way]
        self.tiling = Tiling.of_checkpoint(CHECKPOINT)
        self.processor = LlavaOnevisionImageProcessorPil.from_pretrained(CHECKPOINT)
        self.took: dict[str, float] = defaultdict(float)

    def _ours(self, data: bytes) -> object:
        return self.tiling.prepare(self._timed("decode", decode)(data, max_pixels=MAX_PIXELS))

    def _stock(self, data: bytes) -> object:
        image = Image.open(io.BytesIO(data))
        self._timed("decode", image.load)()
        return self.processor(image, return_tensors="pt")

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            start = time.thread_time()
            result = function(*args, **options)
            self.took[name] += time.thread_time() - start
            return result

        return timed

    def measure(self, data: bytes, threads: int, photos: int) -> Figures:
        """Return milliseconds of processor and wall time and page faults per photo. One thread also times the steps."""
        with ThreadPoolExecutor(threads) as pool, ExitStack() as stack:
            if threads == 1:
                stack.enter_context(patch.object(Image.Image, "resize", self._timed("resize", Image.Image.resize)))
                convert = self._timed("colour", convert_to_srgb)
                stack.enter_context(patch("worker.imaging.decode.convert_to_srgb", convert))
            list(pool.map(self.prepare, [data] * threads))
            self.took.clear()
            faults, wall, start = _count_faults(), time.perf_counter(), time.process_time()
            list(pool.map(self.prepare, [data] * photos))
            took = {"cpu": time.process_time() - start, "wall": time.perf_counter() - wall, **self.took}
        figures = {name: 1000 * seconds / photos for name, seconds in took.items()}
        if threads == 1:
            figures["colour"] = figures.get("colour", 0)
            figures["decode"] -= figures["colour"]
            steps = figures["decode"] + figures["colour"] + figures["resize"]
            figures["tiling"] = figures["cpu"] - steps
        return {**figures, "faults": (_count_faults() - faults) / photos}

    def check(self, data: bytes) -> int:
        """Compare all tiles with those of stock and return their number. Exits when they differ."""
        stock = self.processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"][0]
        cut = self.tiling.prepare(decode(data, max_pixels=MAX_PIXELS, as_stored=True)).tiles.transpose(0, 3, 1, 2)
        scaled = [self.processor.rescale(tile, self.tiling.scale) for tile in cut]
        ours = np.stack([self.processor.normalize(tile, self.tiling.mean, self.tiling.std) for tile in scaled])
        if ours.dtype != stock.dtype or not np.array_equal(ours, stock):
            raise SystemExit("the tiles differ from those of the stock image processor")
        return len(cut)


def _count_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


_child: Child


def _start_child(way: str) -> None:
    global _child
    _child = Child(way)


def start_process(way: str, variables: dict[str, str]) -> ProcessPoolExecutor:
    """Start a process with these environment variables that prepares photos in one way."""
    process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start_child, (way,))
    with patch.dict(os.environ, variables):
        process.submit(_count_faults).result()  # the process starts with its first call
    return process


def _measure(data: bytes, threads: int, photos: int) -> Figures:
    return _child.measure(data, threads, photos)


def _check(data: bytes) -> int:
    return _child.check(data)


def make_photos(path: Path) -> dict[str, bytes]:
    """Return JPEGs by name."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    made = {}
    for size in SIZES:
        enlarged = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
        made["{}x{}".format(*size)] = _encode(enlarged)
    made["{}x{}, Display P3".format(*size)] = _encode(enlarged, icc_profile=icc_profiles.display_p3())
    return made


def _encode(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, subsampling="4:2:0", **options)
    return file.getvalue()


def _count_photos(data: bytes) -> int:
    with Image.open(io.BytesIO(data)) as image:
        return math.ceil(PIXELS_PER_ROUND / image.width / image.height)


def run_in_turns(children: dict[str, ProcessPoolExecutor], data: bytes, rounds: int) -> dict[str, Figures]:
    """Return the cheapest round of each kind, and the median of all rounds."""
    count = _count_photos(data)
    found: dict[str, list[Figures]] = {kind: [] for kind in children}
    for _ in range(rounds):
        for kind, child in children.items():
            found[kind].append(child.submit(_measure, data, 1, count).result())
    return {
        kind: {**min(figures, key=lambda one: one["cpu"]), "median": statistics.median(one["cpu"] for one in figures)}
        for kind, figures in found.items()
    }


def run_with_threads(child: ProcessPoolExecutor, data: bytes, rounds: int, most: int) -> dict[int, Figures]:
    """Return the highest photos per second and the lowest processor milliseconds per photo, by number of threads."""
    count = most * _count_photos(data)
    found: dict[int, list[Figures]] = {threads: [] for threads in range(1, most + 1)}
    for _ in range(rounds):
        for threads, figures in found.items():
            figures.append(child.submit(_measure, data, threads, count).result())
    return {
        threads: {"photos_per_s": 1000 / min(one["wall"] for one in figures), "cpu": min(one["cpu"] for one in figures)}
        for threads, figures in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="most loader threads")
    parser.add_argument("--photo", type=Path, default=PHOTO, help="the photo to enlarge")
    args = parser.parse_args()
    files = make_photos(args.photo)
    report: dict[str, Any] = {"rounds": args.rounds, "bytes": {name: len(data) for name, data in files.items()}}
    with ExitStack() as stack:
        children = {kind: stack.enter_context(start_process(*how)) for kind, how in KINDS.items()}
        compared = {name: children["ours"].submit(_check, data).result() for name, data in files.items()}
        print(f"{sum(compared.values())} tiles of {len(files)} photos equal those of stock, bit for bit\n")
        report["cpu_ms"] = measure(files, children, args.rounds)
        print_cores(report["cpu_ms"])
        report["threads"] = measure_threads(files, children["ours"], args)
    print("\n" + json.dumps(report))


def measure(files: dict[str, bytes], children: dict[str, ProcessPoolExecutor], rounds: int) -> dict[str, Any]:
    print("| photo | prepared by | decode | colour | resize | tiling | total | median | share of stock | page faults |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    found: dict[str, Any] = {}
    for name, data in files.items():
        found[name] = run_in_turns(children, data, rounds)
        for kind, ms in found[name].items():
            share = ms["cpu"] / found[name]["stock"]["cpu"]
            steps = " | ".join(f"{ms[step]:.1f}" for step in ("decode", "colour", "resize", "tiling", "cpu", "median"))
            print(f"| {name} | {kind} | {steps} | {share:.0%} | {ms['faults']:,.0f} |", flush=True)
    return found


def print_cores(cpu_ms: dict[str, Any]) -> None:
    print("\n| model | photo | most photos per second | cores with stock | with ours |\n|---|---|---|---|---|")
    for (model, name), most in GPU_LIMITS.items():
        stock, ours = (most * cpu_ms[name][kind]["cpu"] / 1000 for kind in ("stock", "ours"))
        print(f"| {model} | {name} | {most} | {stock:.1f} | {ours:.1f} |")


def measure_threads(files: dict[str, bytes], child: ProcessPoolExecutor, args: argparse.Namespace) -> dict[str, Any]:
    print("\n| photo | threads | photos per second | processor ms per photo |\n|---|---|---|---|")
    found = {}
    for name, data in files.items():
        found[name] = run_with_threads(child, data, args.rounds, args.threads)
        for threads, figures in found[name].items():
            print(f"| {name} | {threads} | {figures['photos_per_s']:.1f} | {figures['cpu']:.1f} |", flush=True)
    return found


if __name__ == "__main__":
    main()
