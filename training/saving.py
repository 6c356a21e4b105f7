"""Save a training run: its state to resume from, and the checkpoint of each epoch."""

import shutil
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from producer.evaluation.metrics import measure_agreement
from qsit.rating import PROMPT
from training.lists import Entry
from training.published import save_checkpoint
from worker.qsit import QSit

STATE = "training.pt"
"""The file in the output folder from which a run resumes."""


def load_state(out: Path, settings: dict[str, Any], model: Any, optimizer: torch.optim.Optimizer) -> list[float]:
    """
    Restore model and optimizer from a folder, and return the losses so far; none when the run is new.

    Raises:
        ValueError: when the folder has a run with other settings.
    """
    if not (out / STATE).exists():
        return []
    state = torch.load(out / STATE, map_location="cpu", weights_only=True)
    if state["settings"] != settings:
        raise ValueError(f"{out} has a run with other settings; choose another folder, or remove {out / STATE}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    losses: list[float] = state["losses"]
    return losses


def save_state(
    out: Path, settings: dict[str, Any], model: Any, optimizer: torch.optim.Optimizer, losses: list[float]
) -> None:
    """Save what a run needs to resume."""
    out.mkdir(parents=True, exist_ok=True)
    state = {"settings": settings, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}
    torch.save(state, out / f"{STATE}.part")
    (out / f"{STATE}.part").replace(out / STATE)


def save_epoch(checkpoint: Path, model: Any, out: Path) -> None:
    """Save a model in the published layout and precision, with the other files of the checkpoint it started from."""
    out.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.iterdir():
        if file.suffix in (".json", ".jinja", ".txt", ".model") and not file.name.endswith(".index.json"):
            shutil.copy(file, out)
    save_checkpoint(deepcopy(model).half(), out)


def validate(out: Path, entries: Sequence[Entry]) -> str | None:
    """Score images with the code of the worker. Return a line about the SRCC with their opinions, if they have any."""
    rated = [entry for entry in entries if entry.question == PROMPT and entry.opinion is not None]
    if not rated:
        return None
    worker, scores = QSit.load(str(out)), []
    for entry in rated:
        with Image.open(entry.image) as opened:
            scores.append(worker.score([worker.prepare(opened)])[0].value)
    found = measure_agreement(scores, [entry.opinion for entry in rated if entry.opinion is not None])
    return f"validation: {'; '.join(found.notes) if found.srcc is None else f'SRCC {found.srcc:.3f}'}"
