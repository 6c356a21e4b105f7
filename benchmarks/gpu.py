"""
Measure qsit on a GPU in one run: whether scores are right, how fast they are, and where the time goes.

    python -m benchmarks.gpu FOLDER [--device cuda] [--shape mini]... [--photos N] [--rounds N]

Computes scores and answers of the golden images on the device in each dtype and compares them with the golden ones.
Then runs `benchmarks.model`, `benchmarks.questions` and `benchmarks.profile_batch` for each shape. Writes their output
and the traces into FOLDER. Needs the repository with its tests and the extra `worker`. `--device cpu --shape tiny` runs
anywhere.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from benchmarks.checkpoints import TEXT
from worker.inference.loading import DTYPES
from worker.qsit import QSit

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
TOKENS = 12
"""The number of known tokens of each golden answer."""
EXACT = 1e-5
"""The largest difference of a float32 score from the golden one."""


def check(device: str) -> str:
    """Return a table of the differences from the golden scores and answers. Exits when float32 is wrong."""
    expected = json.loads((GOLDEN / "golden.json").read_text())["images"]
    photos = [Image.open(GOLDEN / "images" / each["image"]).convert("RGB") for each in expected]
    lines = ["| dtype | alone | in one batch | answers that begin alike |", "|---|---|---|---|"]
    questions = list(expected[0]["answers_token_ids"])
    for dtype in DTYPES:
        model = QSit.load(str(GOLDEN / "checkpoint"), device=device, dtype=dtype)
        prepared = [model.prepare(photo) for photo in photos]
        alone = [model.score([image])[0].value for image in prepared]
        together = [score.value for score in model.score(prepared)]
        apart = [
            max(abs(score - each["score"]) for score, each in zip(scores, expected, strict=True))
            for scores in (alone, together)
        ]
        looks = model.look(prepared, questions, max_new_tokens=TOKENS)
        alike = [
            answer.text == model._prompts.decode(each["answers_token_ids"][question])
            for each, (_, answers) in zip(expected, looks, strict=True)
            for question, answer in zip(questions, answers, strict=True)
        ]
        lines.append(f"| {dtype} | {apart[0]:.1e} | {apart[1]:.1e} | {sum(alike)} of {len(alike)} |")
        if dtype == "float32" and (max(apart) > EXACT or not all(alike)):
            raise SystemExit("\n".join([*lines, f"float32 is wrong on {device}"]))
    return "\n".join(lines)


def run_benchmark(folder: Path, name: str, *command: str) -> None:
    """Run a benchmark, print its output and write it to a file. A failure does not stop the other benchmarks."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    (folder / f"{name}.txt").write_text(done.stdout + done.stderr)
    print(
        f"\n== {name}: {' '.join(command)}\n{done.stdout}{done.stderr[-2000:] if done.returncode else ''}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", action="append", choices=TEXT, help="default: mini; may be repeated")
    parser.add_argument("--photos", type=int, default=128, help="photos of each mix")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "the CPU"
    golden = f"{name}, torch {torch.__version__}\n\n{check(args.device)}"
    (folder / "golden.txt").write_text(golden)
    print(golden, flush=True)
    on = ("--device", args.device)
    for shape in args.shape or ["mini"]:
        sizes = ("--photos", str(args.photos), "--batch", "8", "--rounds", str(args.rounds))
        run_benchmark(folder, f"model-{shape}", "benchmarks.model", shape, *on, *sizes)
        run_benchmark(folder, f"questions-{shape}", "benchmarks.questions", shape, *on, "--tokens", "50")
        for mix in ("1024x768", "4000x3000"):
            photos, trace_file = str(min(args.photos, 8)), str(folder / f"{shape}-{mix}.json.gz")
            trace = ("--mix", mix, "--photos", photos, "--trace", trace_file)
            run_benchmark(folder, f"profile-{shape}-{mix}", "benchmarks.profile_batch", shape, *on, *trace)


if __name__ == "__main__":
    main()
