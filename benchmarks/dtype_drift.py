"""Compare each dtype with float32 on the same photos: how far scores move, and how much time it saves.

    python -m benchmarks.dtype_drift CHECKPOINT PHOTO... [--device cpu]

Prints, for each dtype, seconds per photo and the largest and mean difference of scores and rating logits from float32,
as a table and a line of JSON. The checkpoint must have the true size; random weights are enough.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from PIL import Image

from worker.inference.loading import DTYPES
from worker.qsit import QSit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    photos = [Image.open(path).convert("RGB") for path in args.photos]
    exact = None
    print("dtype      s/photo  max|score|  mean|score|  max|logit|")
    for dtype in DTYPES:
        model = QSit.load(args.checkpoint, device=args.device, dtype=dtype)
        prepared = [model.prepare(photo) for photo in photos]
        model.score(prepared[:1])
        start = time.perf_counter()
        scores = [model.score([image])[0] for image in prepared]
        seconds = (time.perf_counter() - start) / len(prepared)
        exact = exact or scores
        pairs = list(zip(scores, exact, strict=True))
        moved = [abs(a.value - b.value) for a, b in pairs]
        logits = max(abs(x - y) for a, b in pairs for x, y in zip(a.logits, b.logits, strict=True))
        row = {
            "dtype": dtype,
            "s_per_photo": seconds,
            "max_score": max(moved),
            "mean_score": statistics.mean(moved),
            "max_logit": logits,
            "scores": [round(score.value, 5) for score in scores],
        }
        print(f"{dtype:10s} {seconds:7.2f}  {max(moved):10.5f}  {statistics.mean(moved):11.5f}  {logits:10.4f}")
        print(json.dumps(row))


if __name__ == "__main__":
    main()
