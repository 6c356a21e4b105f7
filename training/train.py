"""
Train a LLaVA-OneVision checkpoint on lists in Q-SiT's own format.

    python -m training.train CHECKPOINT LIST OUT [--validation LIST] [--epochs 2] [--batch 16] [--rate 1e-5] ...

CHECKPOINT is a folder in the published layout, and so is what OUT becomes, with every epoch anew. The loss is on the
answers alone; a list to validate on tells the SRCC after each epoch.
Interrupted, the same command goes on where it was last saved, and ends as if it had not been.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from producer.evaluation.metrics import measure_agreement
from qsit.errors import QsitError
from qsit.rating import PROMPT
from training.examples import Examples, loss_of
from training.lists import Entry, read
from training.plan import Plan
from training.published import save
from worker.qsit import QSit

STATE = "training.pt"
"""What a run needs to go on, in the folder that it writes."""


def train(
    checkpoint: Path,
    entries: Sequence[Entry],
    out: Path,
    plan: Plan,
    *,
    validation: Sequence[Entry] = (),
    device: str = "cpu",
    save_every: int = 200,
    stop_after: int | None = None,
) -> list[float]:
    """
    Train, and write the trained checkpoint; returns the loss of every step, those of an earlier run included.

    save_every: steps, after which the state is saved; stop_after: as many, as if interrupted there.

    Raises:
        ValueError: when there is nothing to train on, settings do not go together, or `out` holds a run with others.
    """
    if not entries:
        raise ValueError("the list has no entries")
    if not 0 < plan.keep <= 1 or plan.jitter < 0:
        raise ValueError("keep is a share above 0 and up to 1, jitter is not below 0")
    if plan.vision and (plan.keep < 1 or plan.jitter):
        raise ValueError("keep and jitter are for features that are kept: give a vision of 0, too")
    of = {**asdict(plan), "entries": len(entries)}
    model: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    model.to(device).train()
    if not plan.vision:
        model.model.requires_grad_(False)
        model.model.language_model.requires_grad_(True)
    learning = {name: each for name, each in model.named_parameters() if each.requires_grad}
    tower = [each for name, each in learning.items() if ".vision_tower." in name]
    others = [each for name, each in learning.items() if ".vision_tower." not in name]
    groups = [
        {"params": tower, "share": plan.vision, "weight_decay": 0.0},
        {"params": [each for each in others if each.ndim > 1], "share": 1.0, "weight_decay": plan.decay},
        {"params": [each for each in others if each.ndim <= 1], "share": 1.0, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98))
    order = plan.order(len(entries))
    losses = _resumed(out, of, model, optimizer)
    examples = Examples(checkpoint, model, entries, look_once=not plan.vision, keep=plan.keep, jitter=plan.jitter)
    began, first = time.monotonic(), len(losses)
    steps = range(len(order))[first:stop_after]
    batches = _ahead(lambda step: examples.batch(order[step], plan.chance(step)), steps)
    for step, batch in zip(steps, batches, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step, len(order)) * group["share"]
        moved = {name: value.to(device) for name, value in batch.items()}
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=device.startswith("cuda")):
            loss = loss_of(model, moved)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        done = step + 1
        if done == len(order) or done % (len(order) // plan.epochs) == 0:
            _save_and_validate(checkpoint, model, out, validation)
        if done % save_every == 0 or done == len(order):
            _save_state(out, of, model, optimizer, losses)
            left = (time.monotonic() - began) / (done - first) * (len(order) - done)
            recent = losses[-save_every:]
            _say(f"step {done:,} of {len(order):,}: loss {sum(recent) / len(recent):.4f}, {left / 60:.0f} min left")
    return losses


def _ahead(make: Callable[[int], dict[str, Tensor]], steps: Iterable[int]) -> Iterator[dict[str, Tensor]]:
    """The batch of each step, while the next is made."""
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for step in steps:
            ready, coming = coming, pool.submit(make, step)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def _resumed(out: Path, of: dict[str, Any], model: Any, optimizer: torch.optim.Optimizer) -> list[float]:
    """
    The losses so far, with model and optimizer as they were.

    Raises:
        ValueError: when what is there is of another plan.
    """
    if not (out / STATE).exists():
        return []
    state = torch.load(out / STATE, map_location="cpu", weights_only=True)
    if state["of"] != of:
        raise ValueError(f"{out} holds a run with other settings; give another folder, or remove {out / STATE}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    losses: list[float] = state["losses"]
    return losses


def _save_state(
    out: Path, of: dict[str, Any], model: Any, optimizer: torch.optim.Optimizer, losses: list[float]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    state = {"of": of, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}
    torch.save(state, out / f"{STATE}.part")
    (out / f"{STATE}.part").replace(out / STATE)


def _save_and_validate(checkpoint: Path, model: Any, out: Path, entries: Sequence[Entry]) -> None:
    """
    Save in the published layout and precision, with what else the checkpoint has.

    Says Spearman's correlation of the scores that a worker gives with it with the opinions, where there are any.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.iterdir():
        if file.suffix in (".json", ".jinja", ".txt", ".model") and not file.name.endswith(".index.json"):
            shutil.copy(file, out)
    save(deepcopy(model).half(), out)
    rated = [entry for entry in entries if entry.question == PROMPT and entry.opinion is not None]
    if not rated:
        return
    worker, scores = QSit.load(str(out)), []
    for entry in rated:
        with Image.open(entry.image) as opened:
            scores.append(worker.score([worker.prepare(opened)])[0].value)
    found = measure_agreement(scores, [entry.opinion for entry in rated if entry.opinion is not None])
    _say(f"validation: {'; '.join(found.notes) if found.srcc is None else f'SRCC {found.srcc:.3f}'}")


def _say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("list", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--validation", type=Path, help="a list; its SRCC is told after each epoch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--epochs", type=int, default=Plan.epochs)
    parser.add_argument("--batch", type=int, default=Plan.batch)
    parser.add_argument("--rate", type=float, default=Plan.rate)
    parser.add_argument("--vision", type=float, default=Plan.vision, metavar="SHARE", help=(
        "of the rate, for the vision tower; 0: tower and projector stay as they are, and what they make of each image "
        "is kept in memory"
    ))  # fmt: skip
    parser.add_argument("--keep", type=float, default=Plan.keep, metavar="SHARE", help=(
        "with --vision 0: of the tokens of an image, those that a step sees, others every time"
    ))  # fmt: skip
    parser.add_argument("--jitter", type=float, default=Plan.jitter, metavar="DEVIATIONS", help=(
        "with --vision 0: how far the features of an image are moved in each step, at random"
    ))  # fmt: skip
    parser.add_argument("--decay", type=float, default=Plan.decay)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    args = parser.parse_args()
    plan = Plan(
        epochs=args.epochs,
        batch=args.batch,
        rate=args.rate,
        vision=args.vision,
        keep=args.keep,
        jitter=args.jitter,
        decay=args.decay,
        seed=args.seed,
    )
    try:
        validation = read(args.validation) if args.validation else []
        train(args.checkpoint, read(args.list), args.out, plan,
              validation=validation, device=args.device, save_every=args.save_every)  # fmt: skip
    except (OSError, ValueError, QsitError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on from where it was last saved.")


if __name__ == "__main__":
    main()
