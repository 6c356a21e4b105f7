"""Score photos with transformers: in the loop of the model's README, and in padded batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, BatchFeature, LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from qsit.rating import ANSWER, PROMPT, score_of
from worker.inference.prompts import Prompts
from worker.inference.tiles import Tiling


class Transformers:
    """
    The model as transformers runs it, with the image processor for Pillow, which does not need torchvision.

    As in the processor of transformers, a prompt repeats the image token once per image feature.
    """

    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        self.model: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa"
        )
        self.model.eval().to(device)
        self._processor = LlavaOnevisionImageProcessorPil.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self._image_id: int = self.model.config.image_token_id
        self._prompts = Prompts(folder, tokenizer, self._image_id, ())
        self._prompt = self._prompts.encode_turn(PROMPT, ANSWER)
        self._rating_ids = self._prompts.rating_token_ids()
        self._tiling = Tiling.of_checkpoint(folder)

    def score_one_by_one(self, images: Sequence[Image.Image]) -> list[float]:
        """Score one photo at a time with logits of every position, as the model's README does."""
        return [self._score([image], [[1] * length])[0] for image, length in self._with_lengths(images)]

    def score_padded(self, images: Sequence[Image.Image]) -> list[float]:
        """Score all photos in one batch, padded on the right, with logits of the last positions only."""
        lengths = [length for _, length in self._with_lengths(images)]
        masks = [[1] * length + [0] * (max(lengths) - length) for length in lengths]
        return self._score(images, masks)

    def answer(self, image: Image.Image, question: str, tokens: int) -> str:
        """Answer a question greedily in exactly `tokens` tokens, as the model's README does."""
        before, after = self._prompts.encode_turn(question)
        ids = before + [self._image_id] * self._tiling.tokens(*image.size) + after
        pixels: BatchFeature = self._processor([image], return_tensors="pt")
        device, dtype = self.model.device, self.model.dtype
        with torch.inference_mode():
            said = self.model.generate(
                input_ids=torch.tensor([ids], device=device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=device),
                pixel_values=pixels["pixel_values"].to(device, dtype),
                image_sizes=pixels["image_sizes"].to(device),
                batch_num_images=torch.tensor([1], device=device),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=0,
            )
        return self._prompts.decode(said[0, len(ids) :].tolist())

    def _with_lengths(self, images: Sequence[Image.Image]) -> list[tuple[Image.Image, int]]:
        prompt_length = sum(map(len, self._prompt))
        return [(image, self._tiling.tokens(*image.size) + prompt_length) for image in images]

    def _score(self, images: Sequence[Image.Image], masks: Sequence[Sequence[int]]) -> list[float]:
        before, after = self._prompt
        lengths = [sum(mask) for mask in masks]
        ids = [
            before + [self._image_id] * (length - len(before) - len(after)) + after + [0] * (len(mask) - length)
            for mask, length in zip(masks, lengths, strict=True)
        ]
        pixels: BatchFeature = self._processor(list(images), return_tensors="pt")
        device, dtype = self.model.device, self.model.dtype
        keep: int | torch.Tensor = 0
        if len(images) > 1:
            keep = torch.tensor(sorted({length - 1 for length in lengths}), device=device)
        with torch.inference_mode():
            logits = self.model(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor(masks, device=device),
                pixel_values=pixels["pixel_values"].to(device, dtype),
                image_sizes=pixels["image_sizes"].to(device),
                batch_num_images=torch.tensor([1] * len(images), device=device),
                logits_to_keep=keep,
            ).logits
        positions = range(logits.shape[1]) if isinstance(keep, int) else keep.tolist()
        row_of = {position: row for row, position in enumerate(positions)}
        return [
            score_of(logits[index, row_of[length - 1], self._rating_ids].float().tolist()).value
            for index, length in enumerate(lengths)
        ]
