"""What a model is shown of the entries of a list, and how far it is from saying what it should."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer
from transformers.modeling_outputs import BaseModelOutputWithPooling

from qsit.rating import ANSWER
from training.lists import Entry
from worker.inference.prompts import Prompts
from worker.inference.tiles import Prepared, Tiling

IGNORED = -100
"""The label of what is not to be said."""


def loss_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The mean over the tokens of all answers; the head sees no others."""
    labels = batch["labels"][:, 1:]
    inputs: dict[str, Any] = {name: value for name, value in batch.items() if name not in ("labels", "features")}
    if "features" in batch:
        looked: Any = [batch["features"]]
        inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=looked)}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels != IGNORED
    return cross_entropy(model.lm_head(hidden[wanted]).float(), labels[wanted])


class Examples:
    """Entries as a checkpoint sees them, of its own tiles and tokens."""

    def __init__(
        self,
        folder: Path,
        model: Any,
        entries: Sequence[Entry],
        *,
        look_once: bool,
        keep: float = 1.0,
        jitter: float = 0.0,
    ) -> None:
        """
        keep: the share of an image's tokens that a batch has of it, others each time (PatchDropout, arXiv 2208.07220).
            Each of them counts in attention for all that it stands for; otherwise, what is learned from few does not
            hold where all are seen.
        jitter: how far all features of an image are moved, at random, for a batch; in standard deviations of what
            images of the batch are on average. Both are for images that are looked at once.
        """
        config = model.config
        self._tiling = Tiling.of_checkpoint(folder)
        self._image_token = config.image_token_id
        ends = [config.text_config.eos_token_id]
        self._prompts = Prompts(folder, AutoTokenizer.from_pretrained(folder), config.image_token_id, ends)
        self._model, self._entries, self._look_once = model, entries, look_once
        self._keep, self._jitter = keep, jitter
        self._seen: dict[Path, Tensor] = {}

    def batch(self, places: Sequence[int], chance: torch.Generator) -> dict[str, Tensor]:
        """
        What the model takes, and labels: padded on the right, where nothing sees it.

        Images are pixels, or, where each is looked at once, the features that the model made of them, kept in memory.
        """
        entries = [self._entries[place] for place in places]
        looked: dict[str, Tensor]
        if self._look_once:
            features = [self._features(entry.image) for entry in entries]
            kept = [self._some(len(each), chance) for each in features]
            looked = {"features": self._moved(features, kept, chance)}
            tokens = [len(each) for each in features]
        else:
            images = [self._image(entry.image) for entry in entries]
            looked = self._pixels(images)
            tokens = [image.tokens for image in images]
            kept = [list(range(count)) for count in tokens]
        rows = [self._row(*each) for each in zip(entries, tokens, kept, strict=True)]
        longest = max(len(ids) for ids, _, _ in rows)
        ids, labels, seen, positions = (torch.full((len(rows), longest), value) for value in (0, IGNORED, 0, 0))
        for row, (row_ids, row_positions, answer) in enumerate(rows):
            ids[row, : len(row_ids)], seen[row, : len(row_ids)] = torch.tensor(row_ids), 1
            positions[row, : len(row_ids)] = torch.tensor(row_positions)
            labels[row, len(row_ids) - answer : len(row_ids)] = torch.tensor(row_ids[-answer:])
        if self._keep < 1:
            seen = self._weighed(seen, ids, [count / len(some) for count, some in zip(tokens, kept, strict=True)])
        return {"input_ids": ids, "attention_mask": seen, "position_ids": positions, "labels": labels, **looked}

    def _weighed(self, seen: Tensor, ids: Tensor, counts: Sequence[float]) -> Tensor:
        """(rows, 1, longest, longest): what is added in attention, so that an image's token has the weight of many."""
        weights: Tensor = (ids == self._image_token) * torch.tensor(counts).log()[:, None]
        hidden = torch.ones(ids.shape[1], ids.shape[1]).triu(1) + (1 - seen)[:, None, None, :]
        return weights[:, None, None, :].masked_fill(hidden > 0, torch.finfo(weights.dtype).min)

    def _some(self, tokens: int, chance: torch.Generator) -> list[int]:
        """Which tokens of an image a batch has of it, in order."""
        order = torch.randperm(tokens, generator=chance)
        some: list[int] = order[: max(1, round(self._keep * tokens))].sort().values.tolist()
        return some

    def _moved(self, features: Sequence[Tensor], kept: Sequence[Sequence[int]], chance: torch.Generator) -> Tensor:
        means = torch.stack([each.float().mean(0) for each in features])
        far = torch.randn(means.shape, generator=chance) * means.std(0, correction=0) * self._jitter
        some = [each[places].float() + offset for each, places, offset in zip(features, kept, far, strict=True)]
        return torch.cat(some)

    def _image(self, path: Path) -> Prepared:
        with Image.open(path) as opened:
            return self._tiling.prepare(opened.convert("RGB"))

    def _pixels(self, images: Sequence[Prepared]) -> dict[str, Tensor]:
        tiles = torch.zeros(len(images), max(len(image.tiles) for image in images), *images[0].tiles.shape[1:])
        for place, image in enumerate(images):
            tiles[place, : len(image.tiles)] = torch.from_numpy(image.tiles)
        pixels = (
            tiles.mul_(self._tiling.scale).sub_(torch.tensor(self._tiling.mean)).div_(torch.tensor(self._tiling.std))
        )
        sizes = torch.tensor([(image.height, image.width) for image in images])
        return {"pixel_values": pixels.movedim(-1, 2), "image_sizes": sizes}

    @torch.no_grad()
    def _features(self, path: Path) -> Tensor:
        """(tokens, width) float16, of an image alone, whichever batch it is in."""
        if path not in self._seen:
            taken = {name: value.to(self._model.device) for name, value in self._pixels([self._image(path)]).items()}
            [features] = self._model.model.get_image_features(**taken, return_dict=True).pooler_output
            self._seen[path] = features.half().cpu()
        return self._seen[path]

    def _row(self, entry: Entry, tokens: int, kept: Sequence[int]) -> tuple[list[int], list[int], int]:
        """
        Of question, image and answer: ids, their positions, and how many ids the answer has. A rating is cut as scoring
        reads it.
        """
        before, after = self._prompts.encode_turn(entry.question)
        begin = ANSWER if entry.reply.startswith(ANSWER) else ""
        answer = (
            self._prompts.encode(begin)
            + self._prompts.encode(entry.reply.removeprefix(begin))
            + [self._prompts.eos_token_ids[0]]
        )
        rest = [*after, *answer]
        image = len(before) + tokens
        ids = [*before, *[self._image_token] * len(kept), *rest]
        positions = [*range(len(before)), *(len(before) + place for place in kept), *range(image, image + len(rest))]
        return ids, positions, len(answer)
