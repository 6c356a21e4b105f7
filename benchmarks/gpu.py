"""
All that is to be known of qsit on a GPU, in one go: are its scores right, how fast is it, and where the time goes.

    python -m benchmarks.gpu FOLDER [--device cuda] [--shape mini]... [--photos N] [--rounds N]

Compares the golden images' scores and answers, computed on the device in each dtype, with the golden ones; then runs
`benchmarks.model`, `benchmarks.questions` and `benchmarks.profile_batch` for each shape, and writes what they print,
and the traces, into FOLDER. Needs the repository with its tests, and the extra `worker`. With
`--device cpu --shape tiny` it can be tried anywhere.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from benchmarks.checkpoints import TEXT
from worker.qsit import DTYPES, QSit

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
TOKENS = 12
"""So many tokens of each golden answer are known."""
EXACT = 1e-5
"""How far a score may be from the golden one in float32."""


def check(device: str) -> str:
    """How far the golden images' scores and answers are from the golden ones; ends the program if float32 is wrong."""
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


def printed(folder: Path, name: str, *command: str) -> None:
    """What a benchmark prints, also into a file; one that fails does not keep the others from running."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    (folder / f"{name}.txt").write_text(done.stdout + done.stderr)
    print(
        f"\n== {name}: {' '.join(command)}\n{done.stdout}{done.stderr[-2000:] if done.returncode else ''}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", action="append", choices=TEXT, help="mini, unless given")
    parser.add_argument("--photos", type=int, default=128, help="of each mix")
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
        printed(folder, f"model-{shape}", "benchmarks.model", shape, *on, *sizes)
        printed(folder, f"questions-{shape}", "benchmarks.questions", shape, *on, "--tokens", "50")
        for mix in ("1024x768", "4000x3000"):
            photos, trace_file = str(min(args.photos, 8)), str(folder / f"{shape}-{mix}.json.gz")
            trace = ("--mix", mix, "--photos", photos, "--trace", trace_file)
            printed(folder, f"profile-{shape}-{mix}", "benchmarks.profile_batch", shape, *on, *trace)


if __name__ == "__main__":
    main()
