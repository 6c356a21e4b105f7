"""The settings of a training run."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Plan:
    """Everything but checkpoint and list that decides the result of training."""

    epochs: int = 2
    batch: int = 16
    rate: float = 1e-5
    warmup: float = 0.05  # share of steps in which the rate rises; then it falls along a cosine
    vision: float = 0.05  # share of the rate for the vision tower; 0 freezes tower and projector
    keep: float = 1.0  # see Examples; only with vision 0
    jitter: float = 0.0  # see Examples; only with vision 0
    decay: float = 0.05  # weight decay of all matrices but the tower's
    norm: float = 1.0  # gradients are clipped to this norm
    seed: int = 0

    def rate_at(self, step: int, steps: int) -> float:
        """Return the learning rate of a step; the first is step 0."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return self.rate * (step + 1) / rising
        return self.rate * (0.5 + 0.5 * math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    def make_generator(self, step: int) -> torch.Generator:
        """Return the random generator of a step."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)

    def make_batches(self, entries: int) -> list[list[int]]:
        """Return the indices of the entries of each step, over all epochs. Entries that fill no batch are dropped."""
        generator = torch.Generator().manual_seed(self.seed)
        batch = min(self.batch, entries)
        return [
            some.tolist()
            for _ in range(self.epochs)
            for some in torch.randperm(entries, generator=generator).split(batch)
            if len(some) == batch
        ]
