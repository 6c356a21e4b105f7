"""
Measure how fast qsit scores photos, against the loop of the model's README and padded batches of transformers.

    python -m benchmarks.model tiny|mini|full|FOLDER [--device cpu|cuda] [--dtype D] [--mix NAME]... [--photos N]
                               [--batch N] [--rounds N] [--loaders N] [--compile] [--only-ours]

All three score the same decoded photos with the same checkpoint, in alternating rounds. The photos are resized copies
of a real one; the checkpoint has random weights unless a folder is given. qsit runs the worker's pipeline without queue
and database. Prints a table and a line of JSON: images per second (median of the rounds), ratios, the largest
difference of scores, and the share of the upper bound. That bound is the speed if all operations of the model ran at
the rate of a large matrix product, which the same run measures.
"""

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from benchmarks import checkpoints
from benchmarks.peers import Transformers
from models.claims import Claim, ClaimedItem, Scored
from worker.inference import forward, image_encoder
from worker.inference.loading import DTYPES
from worker.inference.tiles import Tiling
from worker.pipeline import Pipeline
from worker.qsit import QSit, default_dtype
from worker.scoring import BatchScorer, PreparedPhoto

PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "coffee.jpg"
LIBRARY = {(4000, 3000): 0.45, (6000, 4000): 0.15, (1920, 1080): 0.15, (1024, 768): 0.15, (512, 384): 0.10}
"""The sizes in the mix `library` with their shares: mostly photos of phones and cameras, some from the web."""
MIXES: dict[str, dict[tuple[int, int], float]] = {
    "512x384": {(512, 384): 1},
    "1024x768": {(1024, 768): 1},
    "4000x3000": {(4000, 3000): 1},
    "small": {(512, 384): 0.25, (640, 480): 0.25, (800, 600): 0.25, (1024, 768): 0.25},
    "library": LIBRARY,
}


def make_photos(mix: str, count: int) -> list[Image.Image]:
    """Return `count` photos of a mix in a random order, each size as nearly as possible with its share."""
    with Image.open(PHOTO) as file:
        photo = file.convert("RGB")
    sizes: list[tuple[int, int]] = []
    for size, share in MIXES[mix].items():
        sizes += [size] * max(1, round(share * count))
    random.Random(0).shuffle(sizes)
    of_size = {size: photo.resize(size) for size in set(sizes)}
    return [of_size[size] for size in sizes[:count]]


def score_all(model: QSit, dtype: str, loaders: int, images: Sequence[Image.Image]) -> list[float]:
    """Score decoded photos with the worker's pipeline."""

    class Loader:
        def load(self, item: ClaimedItem, claim: Claim, on_decoding: Callable[[], None]) -> PreparedPhoto:
            return PreparedPhoto(model.prepare(images[item.image_id]))

    pipeline = Pipeline(BatchScorer(model, dtype, model.batch_tokens), Loader(), loaders)
    items = [ClaimedItem(number, "", "", False) for number in range(len(images))]
    claim = Claim(1, 1, 1, "", False, "", items)
    batches = pipeline.run(claim, lambda *_: None, turn_s=float("inf"), stopping=lambda: False)
    results = [result for batch in batches for result in batch]
    scores = {result.image_id: result.score for result in results if isinstance(result, Scored)}
    if len(scores) < len(images):
        raise SystemExit(f"a photo failed: {next(result for result in results if not isinstance(result, Scored))}")
    return [scores[number] for number in range(len(images))]


def count_operations(config: Any, tiling: Tiling, images: Sequence[Image.Image]) -> float:
    """Return the floating-point operations that scoring takes, without prompts and elementwise work."""
    vision, text = config["vision_config"], config["text_config"]
    wide, patches = vision["hidden_size"], tiling.patches**2
    per_patch = vision["num_hidden_layers"] * (
        8 * wide**2 + 4 * wide * vision["intermediate_size"] + 4 * patches * wide
    )
    head = text["hidden_size"] // text["num_attention_heads"]
    joint = text["hidden_size"] * (text["num_attention_heads"] + text["num_key_value_heads"]) * head
    per_token = text["num_hidden_layers"] * (4 * joint + 6 * text["hidden_size"] * text["intermediate_size"])
    total = 0.0
    for image in images:
        rows, columns = tiling.layout(*image.size).tiles
        tokens = tiling.tokens(*image.size)
        total += (1 + rows * columns) * patches * per_patch + tokens * per_token
        total += (
            text["num_hidden_layers"] * 2 * text["hidden_size"] * tokens**2
        )  # causal attention needs half of the products
    return total


def measure_matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a large matrix product, the best of five runs."""
    size = 8192 if device.startswith("cuda") else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    (left @ right)[0, 0].item()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def run_in_turns(ways: dict[str, Callable[[], list[float]]], rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return the seconds of each round and the scores, by way."""
    took: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            start, processor = time.perf_counter(), time.process_time()
            scores = way()
            seconds, processor_s = time.perf_counter() - start, time.process_time() - processor
            took[name] = ([*took[name][0], seconds], scores)
            print(f"round {number + 1}, {name}: {seconds:.2f} s, {processor_s:.2f} s of processor time", flush=True)
    return took


def measure(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each mix."""
    dtype = args.dtype or default_dtype(args.device)
    ours = QSit.load(str(folder), device=args.device, dtype=dtype)
    peer = None if args.only_ours else Transformers(folder, args.device, DTYPES[dtype])
    rate = measure_matrix_rate(args.device, DTYPES[dtype])
    config = json.loads((folder / "config.json").read_text())
    rows: list[dict[str, Any]] = []
    for mix in args.mix or ["512x384", "1024x768", "4000x3000", "library"]:
        images = make_photos(mix, args.photos)
        ways: dict[str, Callable[[], list[float]]] = {}
        if peer is not None:
            peer.score_one_by_one(images[:1])
            ways["readme"] = partial(peer.score_one_by_one, images)
            ways["padded"] = partial(score_in_batches, peer, images, args.batch)
        ways["qsit"] = partial(score_all, ours, dtype, args.loaders, images)
        score_all(ours, dtype, args.loaders, images[:1])
        took = run_in_turns(ways, args.rounds)
        speed = {name: len(images) / statistics.median(seconds) for name, (seconds, _) in took.items()}
        floor = len(images) * rate / count_operations(config, ours.tiling, images)
        row = {
            "mix": mix,
            "photos": len(images),
            "images_per_s": speed,
            "floor": floor,
            "matrix_tflops": rate / 1e12,
            "share_of_floor": speed["qsit"] / floor,
            "apart": {
                name: max(abs(a - b) for a, b in zip(scores, took["qsit"][1], strict=True))
                for name, (_, scores) in took.items()
            },
        }
        rows.append(row)
    return rows


def score_in_batches(peer: Transformers, images: Sequence[Image.Image], size: int) -> list[float]:
    """Score photos in padded batches of a size."""
    batches = (images[start : start + size] for start in range(0, len(images), size))
    return [score for batch in batches for score in peer.score_padded(batch)]


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    print(
        "\n| photos | README loop | padded | qsit | qsit / README | qsit / padded | share of bound | score difference |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        speed, ours = row["images_per_s"], row["images_per_s"]["qsit"]
        peers = [f"{speed[name]:.3g}" if name in speed else "" for name in ("readme", "padded")]
        ratios = [f"{ours / speed[name]:.2f}" if name in speed else "" for name in ("readme", "padded")]
        cells = [row["mix"], *peers, f"{ours:.3g}", *ratios, f"{row['share_of_floor']:.0%}"]
        print(f"| {' | '.join(cells)} | {max(row['apart'].values()):.1g} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="tiny, mini, full, or the folder of a checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--mix", action="append", choices=MIXES)
    parser.add_argument("--photos", type=int, default=4, help="photos of each mix")
    parser.add_argument("--batch", type=int, default=4, help="photos per padded batch of transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loaders", type=int, default=min(os.cpu_count() or 1, 16))
    parser.add_argument("--compile", action="store_true", help="compile the layers of qsit")
    parser.add_argument("--only-ours", action="store_true")
    args = parser.parse_args()
    if args.compile:
        image_encoder.vision_layer = torch.compile(image_encoder.vision_layer, dynamic=True)
        forward.text_layer = torch.compile(forward.text_layer, dynamic=True)
    with checkpoints.open_checkpoint(args.model) as folder:
        rows = measure(folder, args)
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or "CPU"
    print_table(rows)
    about = {"device": device, "torch": torch.__version__, "transformers": transformers.__version__}
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    print(json.dumps({**options, **about, "rows": rows}))


if __name__ == "__main__":
    main()
