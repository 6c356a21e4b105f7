"""
Measure the cost of questions: qsit's single pass per photo against the snippets of the model's README.

    python -m benchmarks.questions tiny|mini|full|FOLDER [--device cpu|cuda] [--dtype D] [--size WxH] [--tokens N]
                                   [--rounds N] [--only-ours]

Times these on one decoded photo, in alternating rounds: the rating alone; the rating and the first token of three
answers; the rating and three questions with choices; the rating and N tokens of three answers; and the two snippets of
the README, the rating and then each question, with as many tokens. Random weights hardly ever end an answer. Prints a
table and a line of JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from benchmarks import checkpoints
from benchmarks.model import PHOTO
from benchmarks.peers import Transformers
from qsit.questions import BUILTIN_QUESTIONS, Question
from worker.inference.loading import DTYPES
from worker.qsit import QSit, default_dtype

QUESTIONS = (
    "How is the clarity of the human in this image?",
    "Is the lighting of this image sufficient?",
    "What is the main quality problem of this image?",
)


def make_ways(model: QSit, peer: Transformers | None, photo: Image.Image, tokens: int) -> dict[str, Callable[[], Any]]:
    """Return the calls to time, by name."""
    image = model.prepare(photo)
    with_choices: list[Question] = [question for question in BUILTIN_QUESTIONS.values() if question.choices][
        : len(QUESTIONS)
    ]
    found: dict[str, Callable[[], Any]] = {
        "rating alone": lambda: model.score([image]),
        "and three questions": lambda: model.look([image], QUESTIONS, max_new_tokens=1),
        "and three with choices": lambda: model.look([image], with_choices),
        f"and three, {tokens} tokens each": lambda: model.look([image], QUESTIONS, max_new_tokens=tokens),
    }
    if peer is not None:
        found["README, one by one"] = lambda: [
            peer.score_one_by_one([photo]),
            [peer.answer(photo, question, tokens) for question in QUESTIONS],
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="tiny, mini, full, or the folder of a checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES)
    parser.add_argument("--size", default="1024x768")
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only-ours", action="store_true")
    args = parser.parse_args()
    dtype = args.dtype or default_dtype(args.device)
    width, height = map(int, args.size.split("x"))
    photo = Image.open(PHOTO).convert("RGB").resize((width, height))
    with checkpoints.open_checkpoint(args.model) as folder:
        model = QSit.load(str(folder), device=args.device, dtype=dtype)
        peer = None if args.only_ours else Transformers(folder, args.device, DTYPES[dtype])
        took: dict[str, list[float]] = {}
        for number in range(args.rounds):
            for name, way in make_ways(model, peer, photo, args.tokens).items():
                start = time.perf_counter()
                way()
                took.setdefault(name, []).append(time.perf_counter() - start)
                print(f"round {number + 1}, {name}: {took[name][-1]:.2f} s", flush=True)
    seconds = {name: statistics.median(each) for name, each in took.items()}
    alone = seconds["rating alone"]
    print("\n| work | seconds | relative to the rating alone |\n|---|---|---|")
    for name, each in seconds.items():
        print(f"| {name} | {each:.3g} | {each / alone:.2f} |")
    about = {"torch": torch.__version__, "device": args.device, "dtype": dtype, "size": args.size}
    print(json.dumps({"model": args.model, **about, "tokens": args.tokens, "rounds": args.rounds, "seconds": seconds}))


if __name__ == "__main__":
    main()
