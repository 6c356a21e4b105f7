"""How a run goes."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Plan:
    """What, beside checkpoint and list, decides how training ends."""

    epochs: int = 2
    batch: int = 16
    rate: float = 1e-5
    warmup: float = 0.05  # the share of steps in which the rate rises; then it falls along a cosine
    vision: float = 0.05  # the share of the rate that the vision tower learns with; 0: nor does the projector learn
    keep: float = 1.0  # see Examples; for vision 0 alone
    jitter: float = 0.0  # likewise
    decay: float = 0.05  # of the other matrices
    norm: float = 1.0  # to which gradients are cut
    seed: int = 0

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of a step, from 0."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return self.rate * (step + 1) / rising
        return self.rate * (0.5 + 0.5 * math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    def chance(self, step: int) -> torch.Generator:
        """What is left to chance in a step."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)

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
