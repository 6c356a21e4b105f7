"""Turn the entries of a list into batches for a model, and compute the loss."""

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
"""The label of tokens that do not count in the loss."""


def compute_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean loss over the tokens of all answers. The head sees only these."""
    labels = batch["labels"][:, 1:]
    inputs: dict[str, Any] = {name: value for name, value in batch.items() if name not in ("labels", "features")}
    if "features" in batch:
        features: Any = [batch["features"]]
        inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=features)}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels != IGNORED
    return cross_entropy(model.lm_head(hidden[wanted]).float(), labels[wanted])


class Examples:
    """Entries as batches of a checkpoint's tiles and tokens."""

    def __init__(
        self,
        folder: Path,
        model: Any,
        entries: Sequence[Entry],
        *,
        encode_once: bool,
        keep: float = 1.0,
        jitter: float = 0.0,
    ) -> None:
        """
        encode_once: keep the features of each image in memory. The vision tower must not change.
        keep: share of an image's tokens in a batch, chosen anew each time (PatchDropout, arXiv 2208.07220). In
            attention, each has the weight of those it stands for; otherwise the result does not hold for all tokens.
        jitter: how far all features of an image are moved at random in each batch, in standard deviations of the mean
            features of the images in the batch.

        `keep` and `jitter` need `encode_once`.
        """
        config = model.config
        self._tiling = Tiling.of_checkpoint(folder)
        self._image_token = config.image_token_id
        ends = [config.text_config.eos_token_id]
        self._prompts = Prompts(folder, AutoTokenizer.from_pretrained(folder), config.image_token_id, ends)
        self._model, self._entries, self._encode_once = model, entries, encode_once
        self._keep, self._jitter = keep, jitter
        self._features: dict[Path, Tensor] = {}

    def make_batch(self, indices: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
        """
        Return the inputs of the model and the labels, padded on the right. Attention ignores the padding.

        Images are pixels, or features with `encode_once`.
        """
        entries = [self._entries[index] for index in indices]
        inputs: dict[str, Tensor]
        if self._encode_once:
            features = [self._encode(entry.image) for entry in entries]
            kept = [self._choose_tokens(len(each), generator) for each in features]
            inputs = {"features": self._add_jitter(features, kept, generator)}
            tokens = [len(each) for each in features]
        else:
            images = [self._load_image(entry.image) for entry in entries]
            inputs = self._make_pixels(images)
            tokens = [image.tokens for image in images]
            kept = [list(range(count)) for count in tokens]
        rows = [self._make_row(*each) for each in zip(entries, tokens, kept, strict=True)]
        longest = max(len(ids) for ids, _, _ in rows)
        ids, labels, mask, positions = (torch.full((len(rows), longest), value) for value in (0, IGNORED, 0, 0))
        for row, (row_ids, row_positions, answer) in enumerate(rows):
            ids[row, : len(row_ids)], mask[row, : len(row_ids)] = torch.tensor(row_ids), 1
            positions[row, : len(row_ids)] = torch.tensor(row_positions)
            labels[row, len(row_ids) - answer : len(row_ids)] = torch.tensor(row_ids[-answer:])
        if self._keep < 1:
            mask = self._weigh_tokens(mask, ids, [count / len(some) for count, some in zip(tokens, kept, strict=True)])
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels, **inputs}

    def _weigh_tokens(self, mask: Tensor, ids: Tensor, counts: Sequence[float]) -> Tensor:
        """Return what attention adds, (rows, 1, longest, longest): an image token has the weight of `counts` tokens."""
        weights: Tensor = (ids == self._image_token) * torch.tensor(counts).log()[:, None]
        hidden = torch.ones(ids.shape[1], ids.shape[1]).triu(1) + (1 - mask)[:, None, None, :]
        return weights[:, None, None, :].masked_fill(hidden > 0, torch.finfo(weights.dtype).min)

    def _choose_tokens(self, tokens: int, generator: torch.Generator) -> list[int]:
        """Return the indices of the tokens of an image that a batch has, in order."""
        order = torch.randperm(tokens, generator=generator)
        some: list[int] = order[: max(1, round(self._keep * tokens))].sort().values.tolist()
        return some

    def _add_jitter(
        self, features: Sequence[Tensor], kept: Sequence[Sequence[int]], generator: torch.Generator
    ) -> Tensor:
        means = torch.stack([each.float().mean(0) for each in features])
        offsets = torch.randn(means.shape, generator=generator) * means.std(0, correction=0) * self._jitter
        some = [each[indices].float() + offset for each, indices, offset in zip(features, kept, offsets, strict=True)]
        return torch.cat(some)

    def _load_image(self, path: Path) -> Prepared:
        with Image.open(path) as opened:
            return self._tiling.prepare(opened.convert("RGB"))

    def _make_pixels(self, images: Sequence[Prepared]) -> dict[str, Tensor]:
        tiles = torch.zeros(len(images), max(len(image.tiles) for image in images), *images[0].tiles.shape[1:])
        for index, image in enumerate(images):
            tiles[index, : len(image.tiles)] = torch.from_numpy(image.tiles)
        pixels = (
            tiles.mul_(self._tiling.scale).sub_(torch.tensor(self._tiling.mean)).div_(torch.tensor(self._tiling.std))
        )
        sizes = torch.tensor([(image.height, image.width) for image in images])
        return {"pixel_values": pixels.movedim(-1, 2), "image_sizes": sizes}

    @torch.no_grad()
    def _encode(self, path: Path) -> Tensor:
        """Return the features of an image, (tokens, width) float16. They do not depend on the batch."""
        if path not in self._features:
            inputs = {
                name: value.to(self._model.device)
                for name, value in self._make_pixels([self._load_image(path)]).items()
            }
            [features] = self._model.model.get_image_features(**inputs, return_dict=True).pooler_output
            self._features[path] = features.half().cpu()
        return self._features[path]

    def _make_row(self, entry: Entry, tokens: int, kept: Sequence[int]) -> tuple[list[int], list[int], int]:
        """
        Return token ids, their positions, and the number of ids of the answer. A rating is tokenized as scoring reads
        it.
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
        positions = [*range(len(before)), *(len(before) + index for index in kept), *range(image, image + len(rest))]
        return ids, positions, len(answer)
