"""
Train a LLaVA-OneVision checkpoint on lists in Q-SiT's format.

    python -m training.train CHECKPOINT LIST OUT [--validation LIST] [--epochs 2] [--batch 16] [--rate 1e-5] ...

CHECKPOINT is a folder in the published layout. OUT gets the same layout and is overwritten after each epoch. The loss
covers the answers only. A validation list gives the SRCC after each epoch. When the run is interrupted, the same
command resumes from the last saved state and ends with the same weights.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from qsit.errors import QsitError
from training.examples import Examples, compute_loss
from training.lists import Entry, read_list
from training.plan import Plan
from training.saving import load_state, save_epoch, save_state, validate


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
    Train, and write the trained checkpoint. Return the loss of every step, including those before an interruption.

    save_every: number of steps between saved states. stop_after: step at which to stop, as if interrupted.

    Raises:
        ValueError: when there are no entries, settings contradict each other, or `out` has a run with other settings.
    """
    if not entries:
        raise ValueError("the list has no entries")
    if not 0 < plan.keep <= 1 or plan.jitter < 0:
        raise ValueError("keep must be above 0 and at most 1, and jitter must not be negative")
    if plan.vision and (plan.keep < 1 or plan.jitter):
        raise ValueError("keep and jitter need a vision of 0")
    settings = {**asdict(plan), "entries": len(entries)}
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
    batches = plan.make_batches(len(entries))
    losses = load_state(out, settings, model, optimizer)
    examples = Examples(checkpoint, model, entries, encode_once=not plan.vision, keep=plan.keep, jitter=plan.jitter)
    began, first = time.monotonic(), len(losses)
    steps = range(len(batches))[first:stop_after]
    inputs = _make_ahead(lambda step: examples.make_batch(batches[step], plan.make_generator(step)), steps)
    for step, batch in zip(steps, inputs, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step, len(batches)) * group["share"]
        moved = {name: value.to(device) for name, value in batch.items()}
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=device.startswith("cuda")):
            loss = compute_loss(model, moved)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        done = step + 1
        if done == len(batches) or done % (len(batches) // plan.epochs) == 0:
            save_epoch(checkpoint, model, out)
            if (line := validate(out, validation)) is not None:
                _print(line)
        if done % save_every == 0 or done == len(batches):
            save_state(out, settings, model, optimizer, losses)
            left = (time.monotonic() - began) / (done - first) * (len(batches) - done)
            recent = losses[-save_every:]
            _print(f"step {done:,} of {len(batches):,}: loss {sum(recent) / len(recent):.4f}, {left / 60:.0f} min left")
    return losses


def _make_ahead(make: Callable[[int], dict[str, Tensor]], steps: Iterable[int]) -> Iterator[dict[str, Tensor]]:
    """Yield the batch of each step while a thread makes the next."""
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for step in steps:
            ready, coming = coming, pool.submit(make, step)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def _print(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("list", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--validation", type=Path, help="list for the SRCC after each epoch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--epochs", type=int, default=Plan.epochs)
    parser.add_argument("--batch", type=int, default=Plan.batch)
    parser.add_argument("--rate", type=float, default=Plan.rate)
    frozen = "share of the rate for the vision tower; 0 freezes tower and projector and keeps features in memory"
    parser.add_argument("--vision", type=float, default=Plan.vision, metavar="SHARE", help=frozen)
    keep = "with --vision 0: share of an image's tokens in each step, chosen anew every time"
    parser.add_argument("--keep", type=float, default=Plan.keep, metavar="SHARE", help=keep)
    jitter = "with --vision 0: how far the features of an image are moved at random in each step"
    parser.add_argument("--jitter", type=float, default=Plan.jitter, metavar="DEVIATIONS", help=jitter)
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
        validation = read_list(args.validation) if args.validation else []
        train(
            args.checkpoint,
            read_list(args.list),
            args.out,
            plan,
            validation=validation,
            device=args.device,
            save_every=args.save_every,
        )
    except (OSError, ValueError, QsitError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command resumes from the last saved state.")


if __name__ == "__main__":
    main()
