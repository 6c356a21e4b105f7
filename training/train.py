"""
Train a LLaVA-OneVision checkpoint on lists in Q-SiT's own format.

    python -m training.train CHECKPOINT LIST OUT [--validation LIST] [--epochs 2] [--batch 16] [--rate 1e-5] ...

CHECKPOINT is a folder in the published layout, and so is what OUT becomes. The loss is on the answers alone.
Interrupted, the same command goes on where it was last saved, and ends as if it had not been.
"""

import argparse
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from models.errors import QsitError
from producer.agreement import agreement
from training.lists import Entry, read
from training.published import save
from worker.procedure import ANSWER, PROMPT
from worker.prompts import Prompts
from worker.qsit import QSit
from worker.tiles import Prepared, Tiling

STATE = "training.pt"
"""What a run needs to go on, in the folder that it writes."""
IGNORED = -100


@dataclass(frozen=True)
class Plan:
    """What, beside checkpoint and list, decides how training ends."""

    epochs: int = 2
    batch: int = 16
    rate: float = 1e-5
    warmup: float = 0.05  # the share of steps in which the rate rises; then it falls along a cosine
    vision: float = 0.05  # the share of the rate that the vision tower learns with
    decay: float = 0.05  # of the other matrices
    norm: float = 1.0  # to which gradients are cut
    seed: int = 0

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step, from 0."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return self.rate * (step + 1) / rising
        return self.rate * (0.5 + 0.5 * math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    def order(self, entries: int) -> list[list[int]]:
        """The places of the entries of each step, all epochs in a row; what does not fill a batch is left to chance."""
        generator = torch.Generator().manual_seed(self.seed)
        batch = min(self.batch, entries)
        return [
            some.tolist()
            for _ in range(self.epochs)
            for some in torch.randperm(entries, generator=generator).split(batch)
            if len(some) == batch
        ]


class Examples:
    """Entries as a checkpoint sees them, of its own tiles and tokens."""

    def __init__(self, folder: Path, config: Any, entries: Sequence[Entry]) -> None:
        self._tiling = Tiling.of_checkpoint(folder)
        self._image_token = config.image_token_id
        ends = [config.text_config.eos_token_id]
        self._prompts = Prompts(folder, AutoTokenizer.from_pretrained(folder), config.image_token_id, ends)
        self._entries = entries

    def batch(self, places: Sequence[int]) -> dict[str, Tensor]:
        """What the model takes, and labels: padded on the right, where nothing sees it."""
        images, rows = [], []
        for entry in (self._entries[place] for place in places):
            with Image.open(entry.image) as opened:
                images.append(self._tiling.prepare(opened.convert("RGB")))
            rows.append(self._row(entry, images[-1]))
        longest = max(len(ids) for ids, _ in rows)
        ids, labels, seen = (torch.full((len(rows), longest), value) for value in (0, IGNORED, 0))
        for row, (row_ids, answer) in enumerate(rows):
            ids[row, : len(row_ids)], seen[row, : len(row_ids)] = torch.tensor(row_ids), 1
            labels[row, len(row_ids) - answer : len(row_ids)] = torch.tensor(row_ids[-answer:])
        tiles = torch.zeros(len(images), max(len(image.tiles) for image in images), *images[0].tiles.shape[1:])
        for place, image in enumerate(images):
            tiles[place, : len(image.tiles)] = torch.from_numpy(image.tiles)
        pixels = (
            tiles.mul_(self._tiling.scale).sub_(torch.tensor(self._tiling.mean)).div_(torch.tensor(self._tiling.std))
        )
        return {
            "input_ids": ids, "attention_mask": seen, "labels": labels, "pixel_values": pixels.movedim(-1, 2),
            "image_sizes": torch.tensor([(image.height, image.width) for image in images]),
        }  # fmt: skip

    def _row(self, entry: Entry, image: Prepared) -> tuple[list[int], int]:
        """Ids of question, image, and answer, and how many the answer has; a rating is cut as scoring reads it."""
        before, after = self._prompts.ids(entry.question)
        begin = ANSWER if entry.reply.startswith(ANSWER) else ""
        answer = self._prompts.of(begin) + self._prompts.of(entry.reply.removeprefix(begin)) + [self._prompts.ends[0]]
        return [*before, *[self._image_token] * image.tokens, *after, *answer], len(answer)


def loss_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The mean over the tokens of all answers; the head sees no others."""
    labels = batch["labels"][:, 1:]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels != IGNORED
    return cross_entropy(model.lm_head(hidden[wanted]).float(), labels[wanted])


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
        ValueError: when there is nothing to train on, or `out` holds a run with other settings.
    """
    if not entries:
        raise ValueError("the list has no entries")
    of = {**asdict(plan), "entries": len(entries)}
    model: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    model.to(device).train()
    tower = [each for name, each in model.named_parameters() if ".vision_tower." in name]
    others = [each for name, each in model.named_parameters() if ".vision_tower." not in name]
    groups = [
        {"params": tower, "share": plan.vision, "weight_decay": 0.0},
        {"params": [each for each in others if each.ndim > 1], "share": 1.0, "weight_decay": plan.decay},
        {"params": [each for each in others if each.ndim <= 1], "share": 1.0, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98))
    order = plan.order(len(entries))
    losses = _resumed(out, of, model, optimizer)
    examples = Examples(checkpoint, model.config, entries)
    began, first = time.monotonic(), len(losses)
    for step, batch in enumerate(_ahead(examples, order[first:stop_after]), start=first):
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
        if done % save_every == 0 or done == len(order):
            _save_state(out, of, model, optimizer, losses)
            left = (time.monotonic() - began) / (done - first) * (len(order) - done)
            recent = losses[-save_every:]
            _say(f"step {done:,} of {len(order):,}: loss {sum(recent) / len(recent):.4f}, {left / 60:.0f} min left")
        if done == len(order) or done % (len(order) // plan.epochs) == 0:
            _save(checkpoint, model, out)
            if validation:
                _say(f"validation: SRCC {_validated(out, validation):.3f}")
    return losses


def _ahead(examples: Examples, order: Sequence[Sequence[int]]) -> Iterator[dict[str, Tensor]]:
    """Each batch, while the next is made."""
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for places in order:
            ready, coming = coming, pool.submit(examples.batch, places)
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


def _save(checkpoint: Path, model: Any, out: Path) -> None:
    """In the published layout and precision, with what else the checkpoint has."""
    out.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.iterdir():
        if file.suffix in (".json", ".jinja", ".txt", ".model") and not file.name.endswith(".index.json"):
            shutil.copy(file, out)
    save(deepcopy(model).half(), out)


def _validated(folder: Path, entries: Sequence[Entry]) -> float:
    """Spearman's correlation of the scores that a worker would give with the opinions."""
    model = QSit.load(str(folder))
    rated = [entry for entry in entries if entry.question == PROMPT and entry.opinion is not None]
    scores = []
    for entry in rated:
        with Image.open(entry.image) as opened:
            scores.append(model.score([model.prepare(opened)])[0].value)
    return agreement(scores, [entry.opinion for entry in rated if entry.opinion is not None]).srcc or 0.0


def _say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("list", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--validation", type=Path, help="a list; SRCC is told after each epoch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--epochs", type=int, default=Plan.epochs)
    parser.add_argument("--batch", type=int, default=Plan.batch)
    parser.add_argument("--rate", type=float, default=Plan.rate)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    args = parser.parse_args()
    plan = Plan(epochs=args.epochs, batch=args.batch, rate=args.rate, seed=args.seed)
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
