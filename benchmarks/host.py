"""What it costs the host to decode a photo and cut it into tiles, beside the stock image processor of transformers.

    python -m benchmarks.host [--rounds N] [--threads N] [--photo FILE]

Photos are JPEGs made by enlarging one of the examples (quality 90, 4:2:0). Ours is `decode` and `Tiling.prepare` as a
worker process runs them; stock is Pillow and LlavaOnevisionImageProcessorPil to float32 tensors, whose tiling is
scaling and normalising, too. Each is measured with memory as glibc comes and with freed memory kept (`worker.memory`),
each of the four in a process of its own, their rounds taking turns. Processor time is user and system time of all
threads of a process. First checks that our tiles, scaled and normalised, are those of stock, bit for bit. Prints
tables and a line of JSON.
"""

import argparse
import io
import json
import math
import multiprocessing
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

from tests.support import profiles
from worker import memory
from worker.imaging.color_profiles import convert_to_srgb
from worker.imaging.decode import decode
from worker.inference.tiles import Tiling

CHECKPOINT = Path(__file__).parent.parent / "tests" / "golden" / "checkpoint"
PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "coffee.jpg"
SIZES = ((512, 384), (1024, 768), (4000, 3000))
MAX_PIXELS = 100_000_000
PIXELS_A_ROUND = 16_000_000

KINDS = {
    "stock": ("stock", False),
    "stock, freed memory kept": ("stock", True),
    "ours, freed memory not kept": ("ours", False),
    "ours": ("ours", True),
}
GPU_LIMITS = {
    ("q-sit-mini", "1024x768"): 88.5,
    ("q-sit-mini", "4000x3000"): 28.6,
    ("q-sit", "1024x768"): 11.0,
    ("q-sit", "4000x3000"): 6.2,
}
"""Photos a second that one GPU could score at most: a photo's arithmetic at 790 TFLOP/s, bf16 on an H200."""

Figures = dict[str, float]


class Child:
    """One way of preparing photos, in a process of its own."""

    def __init__(self, way: str, keep_freed: bool) -> None:
        if keep_freed:
            memory.keep_freed()
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
        """Processor milliseconds, wall milliseconds and page faults a photo, in loader threads; steps for one only."""
        with ThreadPoolExecutor(threads) as pool, ExitStack() as stack:
            if threads == 1:
                stack.enter_context(patch.object(Image.Image, "resize", self._timed("resize", Image.Image.resize)))
                convert = self._timed("colour", convert_to_srgb)
                stack.enter_context(patch("worker.imaging.decode.convert_to_srgb", convert))
            list(pool.map(self.prepare, [data] * threads))
            self.took.clear()
            faults, wall, start = _faults(), time.perf_counter(), time.process_time()
            list(pool.map(self.prepare, [data] * photos))
            took = {"cpu": time.process_time() - start, "wall": time.perf_counter() - wall, **self.took}
        figures = {name: 1000 * seconds / photos for name, seconds in took.items()}
        if threads == 1:
            figures["colour"] = figures.get("colour", 0)
            figures["decode"] -= figures["colour"]
            steps = figures["decode"] + figures["colour"] + figures["resize"]
            figures["tiling"] = figures["cpu"] - steps
        return {**figures, "faults": (_faults() - faults) / photos}

    def check(self, data: bytes) -> int:
        """How many tiles were compared."""
        stock = self.processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"][0]
        cut = self.tiling.prepare(decode(data, max_pixels=MAX_PIXELS, as_stored=True)).tiles.transpose(0, 3, 1, 2)
        scaled = [self.processor.rescale(tile, self.tiling.scale) for tile in cut]
        ours = np.stack([self.processor.normalize(tile, self.tiling.mean, self.tiling.std) for tile in scaled])
        if ours.dtype != stock.dtype or not np.array_equal(ours, stock):
            raise SystemExit("the tiles are not those of the stock image processor")
        return len(cut)


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


_child: Child


def _begin(way: str, keep_freed: bool) -> None:
    global _child
    _child = Child(way, keep_freed)


def _measure(data: bytes, threads: int, photos: int) -> Figures:
    return _child.measure(data, threads, photos)


def _check(data: bytes) -> int:
    return _child.check(data)


def photos(path: Path) -> dict[str, bytes]:
    """JPEGs by their names."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    made = {}
    for size in SIZES:
        enlarged = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
        made["{}x{}".format(*size)] = _jpeg(enlarged)
    made["{}x{}, Display P3".format(*size)] = _jpeg(enlarged, icc_profile=profiles.display_p3())
    return made


def _jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, subsampling="4:2:0", **options)
    return file.getvalue()


def _photos_a_round(data: bytes) -> int:
    with Image.open(io.BytesIO(data)) as image:
        return math.ceil(PIXELS_A_ROUND / image.width / image.height)


def in_turns(children: dict[str, ProcessPoolExecutor], data: bytes, rounds: int) -> dict[str, Figures]:
    """Of each kind its cheapest round, and the median of all."""
    count = _photos_a_round(data)
    found: dict[str, list[Figures]] = {kind: [] for kind in children}
    for _ in range(rounds):
        for kind, child in children.items():
            found[kind].append(child.submit(_measure, data, 1, count).result())
    return {
        kind: {
            **min(figures, key=lambda one: one["cpu"]),
            "median": statistics.median(one["cpu"] for one in figures),
        }
        for kind, figures in found.items()
    }


def over_threads(child: ProcessPoolExecutor, data: bytes, rounds: int, most: int) -> dict[int, Figures]:
    """By number of threads: photos a second at the best, processor milliseconds a photo at the least."""
    count = most * _photos_a_round(data)
    found: dict[int, list[Figures]] = {threads: [] for threads in range(1, most + 1)}
    for _ in range(rounds):
        for threads, figures in found.items():
            figures.append(child.submit(_measure, data, threads, count).result())
    return {
        threads: {
            "photos_per_s": 1000 / min(one["wall"] for one in figures),
            "cpu": min(one["cpu"] for one in figures),
        }
        for threads, figures in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="to scale over")
    parser.add_argument("--photo", type=Path, default=PHOTO, help="to enlarge")
    args = parser.parse_args()
    files = photos(args.photo)
    report: dict[str, Any] = {"rounds": args.rounds, "bytes": {name: len(data) for name, data in files.items()}}
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        children = {
            kind: stack.enter_context(ProcessPoolExecutor(1, spawn, _begin, how)) for kind, how in KINDS.items()
        }
        compared = {name: children["ours"].submit(_check, data).result() for name, data in files.items()}
        print(f"{sum(compared.values())} tiles of {len(files)} photos are those of stock, bit for bit\n")
        report["cpu_ms"] = measured(files, children, args.rounds)
        fed(report["cpu_ms"])
        report["threads"] = scaled(files, children["ours"], args)
    print("\n" + json.dumps(report))


def measured(files: dict[str, bytes], children: dict[str, ProcessPoolExecutor], rounds: int) -> dict[str, Any]:
    print("| photo | prepared by | decode | colour | resize | tiling | together | median | of stock | page faults |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    found: dict[str, Any] = {}
    for name, data in files.items():
        found[name] = in_turns(children, data, rounds)
        for kind, ms in found[name].items():
            share = ms["cpu"] / found[name]["stock"]["cpu"]
            steps = " | ".join(f"{ms[step]:.1f}" for step in ("decode", "colour", "resize", "tiling", "cpu", "median"))
            print(f"| {name} | {kind} | {steps} | {share:.0%} | {ms['faults']:,.0f} |", flush=True)
    return found


def fed(cpu_ms: dict[str, Any]) -> None:
    print("\n| model | photo | photos a second at most | cores with stock | with ours |\n|---|---|---|---|---|")
    for (model, name), most in GPU_LIMITS.items():
        stock, ours = (most * cpu_ms[name][kind]["cpu"] / 1000 for kind in ("stock", "ours"))
        print(f"| {model} | {name} | {most} | {stock:.1f} | {ours:.1f} |")


def scaled(files: dict[str, bytes], child: ProcessPoolExecutor, args: argparse.Namespace) -> dict[str, Any]:
    print("\n| photo | threads | photos a second | processor ms a photo |\n|---|---|---|---|")
    found = {}
    for name, data in files.items():
        found[name] = over_threads(child, data, args.rounds, args.threads)
        for threads, figures in found[name].items():
            print(f"| {name} | {threads} | {figures['photos_per_s']:.1f} | {figures['cpu']:.1f} |", flush=True)
    return found


if __name__ == "__main__":
    main()
