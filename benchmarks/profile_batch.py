"""
Profile one batch.

    python -m benchmarks.profile_batch tiny|mini|full|FOLDER [--device cpu|cuda] [--dtype D] [--mix NAME] [--photos N]
                                       [--trace FILE]

Prints the operations that take most of the device's time as a table and a line of JSON. Writes a trace for
https://ui.perfetto.dev.
"""

import argparse
import json
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import checkpoints
from benchmarks.model import MIXES, make_photos
from worker.inference.loading import DTYPES
from worker.qsit import QSit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="tiny, mini, full, or the folder of a checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--mix", default="1024x768", choices=MIXES)
    parser.add_argument("--photos", type=int, default=1, help="photos in the batch")
    parser.add_argument("--trace", type=Path, default=Path("trace.json.gz"))
    args = parser.parse_args()
    with checkpoints.open_checkpoint(args.model) as folder:
        model = QSit.load(str(folder), device=args.device, dtype=args.dtype)
    prepared = [model.prepare(photo) for photo in make_photos(args.mix, args.photos)]
    model.score(prepared)  # warm-up: one-time work stays out of the profile
    is_cuda = args.device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as profiled:
        model.score(prepared)
    profiled.export_chrome_trace(str(args.trace))
    own = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    rows = sorted(profiled.key_averages(), key=lambda row: -float(getattr(row, own)))
    total = sum(float(getattr(row, own)) for row in rows)
    print("| operation | calls | ms | share |\n|---|---|---|---|")
    table = [{"operation": row.key, "calls": row.count, "ms": float(getattr(row, own)) / 1000} for row in rows[:15]]
    for line in table:
        print(f"| {line['operation']} | {line['calls']} | {line['ms']:.1f} | {line['ms'] * 1000 / total:.1%} |")
    about = {"device": args.device, "torch": torch.__version__, "mix": args.mix, "photos": args.photos}
    print(json.dumps({**about, "model": args.model, "ms": total / 1000, "operations": table}))


if __name__ == "__main__":
    main()
