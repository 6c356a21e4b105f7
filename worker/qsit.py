"""
Q-SiT: score prepared images, and answer questions about them.

Prompt template, token ids, tile size, pinpoints, mean and standard deviation come from the checkpoint. Nothing here
assumes a size of SigLIP or Qwen2.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import linear

from qsit.errors import CheckpointError
from qsit.questions import MAX_NEW_TOKENS, Answer, Question, render_prompt
from qsit.rating import ANSWER, PROMPT, Score, score_of
from worker.inference import loading
from worker.inference.attention import KVCache, PackedSequences
from worker.inference.forward import LanguageModel
from worker.inference.generation import answer_questions
from worker.inference.image_encoder import ImageEncoder
from worker.inference.prompts import Prompts
from worker.inference.shared_prefix import Continuations, PrefixCache
from worker.inference.tiles import Prepared, Tiling

BATCH_TOKENS = {"cpu": 8192, "cuda": 65536}
"""The most image tokens in a batch. The value for CUDA was not measured."""
TILES_PER_PASS = {"cpu": 1, "cuda": 64}
"""The most tiles in one pass through the vision tower. The activations of one tile stay in a CPU's cache."""
MAX_CONTINUATIONS = 256
"""The most questions, over all photos of a batch, that are answered at the same time."""
FREE_MEMORY_SHARE = 0.4
"""The share of a GPU's free memory that each of the two passes may use."""


def default_dtype(device: str) -> str:
    """Return float16 on CUDA, as the checkpoints are published, and float32 on a CPU (see benchmarks/README.md)."""
    return "float16" if device.startswith("cuda") else "float32"


class UploadedBatch(list[Prepared]):
    """Prepared images, and their tiles on the device or on the way there; the host's copies live at least as long."""

    def __init__(self, images: Sequence[Prepared], tiles: torch.Tensor) -> None:
        super().__init__(images)
        self.tiles = tiles  # of all images, (n, size, size, 3) uint8


class QSit:
    """A loaded model on one device. `prepare` may run in many threads; `score` and `look` in one thread at a time."""

    def __init__(self, model: Any, prompts: Prompts, tiling: Tiling) -> None:
        self.tiling = tiling
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self._encoder = ImageEncoder(model.model, tiling)
        self._language_model = LanguageModel(model.model.language_model)
        self._prompts = prompts
        self._ids_before, ids_after = prompts.encode_turn(PROMPT, ANSWER)
        with torch.inference_mode():
            self._before = self._language_model.embed(self._ids_before)
            self._after = self._language_model.embed(ids_after)
        self._head: torch.Tensor = model.get_output_embeddings().weight
        self._rating_head = self._head[prompts.rating_token_ids()].float()
        self._copy_stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.batch_tokens, self.tiles_per_pass = _choose_budgets(model, tiling)

    @classmethod
    def load(cls, model: str, *, device: str = "cpu", dtype: str | None = None, revision: str | None = None) -> "QSit":
        """
        Load a checkpoint: "demo", a folder, or a Hub id, which is downloaded when needed.

        dtype: "float32", "bfloat16" or "float16"; None chooses `default_dtype`. Raises CheckpointError when the
        checkpoint cannot be found or read, or lacks weights.
        """
        return cls(*loading.load(model, device=device, dtype=dtype or default_dtype(device), revision=revision))

    def prepare(self, image: Image.Image) -> Prepared:
        """Cut an image into tiles, on the host. Pixels are taken as given, converted to RGB when they are not."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        return self.tiling.prepare(image) if self._copy_stream is None else self.tiling.prepare(image, _pinned_zeros)

    def upload(self, images: Sequence[Prepared]) -> UploadedBatch:
        """
        Start to copy the tiles of a batch to the device, in a stream of its own. May run while `score` does.

        Raises MemoryError when they do not fit on the device.
        """
        tiles = [torch.from_numpy(image.tiles) for image in images]
        if self._copy_stream is None:
            return UploadedBatch(images, torch.cat(tiles))
        try:
            with torch.cuda.stream(self._copy_stream):
                return UploadedBatch(images, torch.cat([part.to(self.device, non_blocking=True) for part in tiles]))
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error).splitlines()[0]) from error

    def score(self, images: Sequence[Prepared]) -> list[Score]:
        """
        Score images in one batch, in order. No score depends on the other images.

        Raises ValueError when a rating is not finite, and MemoryError when the batch does not fit on the device.
        """
        return [score for score, _ in self.look(images, ())]

    def look(
        self,
        images: Sequence[Prepared],
        questions: Sequence[str | Question],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        asks: Callable[[int, Score], Sequence[int]] | None = None,
    ) -> list[tuple[Score, list[Answer]]]:
        """
        Score images in one batch as `score` does, and answer questions about them, in order.

        No answer depends on the other images or questions. Raises CheckpointError for one that has the image token.

        max_new_tokens: the limit for questions that are given as text.
        asks: returns the indices of the questions to ask about an image, from its index and score; None asks all.
        """
        if not images:
            return []
        asked = [
            each if isinstance(each, Question) else Question(each, each, max_new_tokens=max_new_tokens)
            for each in questions
        ]
        try:
            with torch.inference_mode():
                return self._look(images, asked, asks or (lambda *_: range(len(asked))))
        except torch.OutOfMemoryError as error:
            message = str(error).splitlines()[0]
        torch.cuda.empty_cache()  # the error is gone by now, and with it the frames that held the batch's memory
        self.tiles_per_pass = max(1, self.tiles_per_pass // 2)
        raise MemoryError(message)

    def _look(
        self, images: Sequence[Prepared], questions: Sequence[Question], asks: Callable[[int, Score], Sequence[int]]
    ) -> list[tuple[Score, list[Answer]]]:
        kv_cache: KVCache | None = [] if questions else None
        scores = self._score(images, kv_cache)
        pairs = [(image, index) for image, score in enumerate(scores) for index in asks(image, score)]
        answers: list[list[Answer]] = [[] for _ in images]
        if kv_cache and pairs:
            for (image, _), answer in zip(pairs, self._answer(images, kv_cache, questions, pairs), strict=True):
                answers[image].append(answer)
        return list(zip(scores, answers, strict=True))

    def _score(self, images: Sequence[Prepared], kv_cache: KVCache | None = None) -> list[Score]:
        batch = images if isinstance(images, UploadedBatch) else self.upload(images)
        if self._copy_stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._copy_stream)
            batch.tiles.record_stream(torch.cuda.current_stream(self.device))
        encoded = self._encoder.encode(batch.tiles, batch, self.tiles_per_pass)
        prompts = [part for tokens in encoded for part in (self._before, tokens, self._after)]
        last = self._language_model(torch.cat(prompts), self._pack(images), kv_cache)
        return [score_of(logits) for logits in linear(last.float(), self._rating_head).tolist()]

    def _pack(self, images: Sequence[Prepared]) -> PackedSequences:
        prompt_tokens = len(self._before) + len(self._after)
        return PackedSequences([image.tokens + prompt_tokens for image in images], self.device)

    def _answer(
        self,
        images: Sequence[Prepared],
        kv_cache: KVCache,
        questions: Sequence[Question],
        pairs: Sequence[tuple[int, int]],
    ) -> Iterator[Answer]:
        """Answer pairs of an image and a question, by their indices, in ascending order of the images."""
        ids = {index: self._encode_question(questions[index]) for index in {index for _, index in pairs}}
        asked_images = sorted({image for image, _ in pairs})
        prefixes = PrefixCache(kv_cache, self._pack(images), asked_images, drop_last=len(self._after))
        for start in range(0, len(pairs), MAX_CONTINUATIONS):
            some = pairs[start : start + MAX_CONTINUATIONS]
            prefix_indices = [asked_images.index(image) for image, _ in some]
            continuations = Continuations(self._language_model, prefixes, prefix_indices)
            asked, asked_ids = [questions[index] for _, index in some], [ids[index] for _, index in some]
            yield from answer_questions(continuations, asked, asked_ids, self._logits, self._prompts)

    def _encode_question(self, question: Question) -> list[int]:
        """Return the ids after the image."""
        before, after = self._prompts.encode_turn(render_prompt(question))
        if before != self._ids_before:
            raise CheckpointError("the chat template puts the question before the image, so it cannot be shared")
        return after

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(hidden, self._head).float()


def _choose_budgets(model: Any, tiling: Tiling) -> tuple[int, int]:
    """Return the tokens of a batch and the tiles of a vision pass that the device's memory allows."""
    device, vision, text = model.device.type, model.config.vision_config, model.config.text_config
    if device != "cuda":
        return BATCH_TOKENS["cpu"], TILES_PER_PASS["cpu"]
    values = torch.cuda.mem_get_info(model.device)[0] * FREE_MEMORY_SHARE / model.dtype.itemsize
    per_token = 3 * text.intermediate_size + 6 * text.hidden_size  # in memory at once in the MLP, the widest part
    per_tile = tiling.patches**2 * (2 * vision.intermediate_size + 6 * vision.hidden_size)
    tiles = max(1, min(TILES_PER_PASS[device], int(values / per_tile)))
    return min(BATCH_TOKENS[device], int(values / per_token)), tiles


def _pinned_zeros(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return zeros in page-locked memory, which a GPU copies from on its own."""
    zeros: NDArray[np.uint8] = torch.zeros(shape, dtype=torch.uint8, pin_memory=True).numpy()
    return zeros
