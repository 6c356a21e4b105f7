"""Q-SiT itself: scoring prepared images, and answering questions about them.

Prompt template, token ids, tile size, pinpoints, mean and standard deviation are the checkpoint's, so that nothing here
assumes a size of SigLIP or Qwen2. torch is in loading.py, forward.py, branches.py and answering.py, too.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import interpolate, linear

from qsit.errors import CheckpointError
from qsit.questions import MAX_NEW_TOKENS, Answer, Question, render_prompt
from qsit.rating import ANSWER, PROMPT, Score, score_of
from worker.inference import generation, loading
from worker.inference.forward import KVCache, LanguageModel, PackedSequences, VisionTower, text_layer, vision_layer
from worker.inference.prompts import Prompts
from worker.inference.shared_prefix import Continuations, PrefixCache
from worker.inference.tiles import Prepared, Tiling

T = TypeVar("T")
BATCH_TOKENS = {"cpu": 8192, "cuda": 65536}
"""The most tokens of a batch; that of CUDA was not measured."""
VISION_TILES = {"cpu": 1, "cuda": 64}
"""The most tiles in one pass through the vision tower; one alone stays in a CPU's cache."""
BRANCHES = 256
"""The most questions, of all photos of a batch, that are answered beside each other."""
OF_FREE_MEMORY = 0.4
"""The share of a GPU's free memory that each of the two passes may take."""


class Uploaded(list[Prepared]):
    """Prepared images whose tiles, (n, size, size, 3) uint8, are on the device or on their way; those of the host are
    held until they are there."""

    def __init__(self, images: Sequence[Prepared], tiles: torch.Tensor) -> None:
        super().__init__(images)
        self.tiles = tiles


class QSit:
    """
    A loaded Q-SiT model on one device.

    `prepare` may run in many threads beside each other and beside the others; `score` and `look` in one at a time.
    """

    def __init__(self, model: Any, prompts: Prompts, tiling: Tiling) -> None:
        self.tiling = tiling
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self._tower = VisionTower(model.model.vision_tower, model.model.multi_modal_projector)
        self._text = LanguageModel(model.model.language_model)
        self._newline: torch.Tensor = model.model.image_newline
        self._prompts = prompts
        self._ids_before, after = prompts.ids(PROMPT, ANSWER)
        with torch.inference_mode():
            self._before, self._after = self._text.embed(self._ids_before), self._text.embed(after)
        self._head: torch.Tensor = model.get_output_embeddings().weight
        self._rating_rows = self._head[prompts.rating_ids()].float()
        self._patch: int = model.config.vision_config.patch_size
        self._mean = torch.tensor(tiling.mean, device=self.device).view(3, 1)
        self._std = torch.tensor(tiling.std, device=self.device).view(3, 1)
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.batch_tokens, self._pass_tiles = self._budgets(model.config)

    @classmethod
    def load(cls, model: str, *, device: str = "cpu", dtype: str | None = None, revision: str | None = None) -> "QSit":
        """
        Load a checkpoint: "demo", a folder, or a Hub id, downloaded if need be.

        dtype: "float32", "bfloat16" or "float16"; by default the fastest faithful one, see `default_dtype`.

        Raises:
            CheckpointError: when it cannot be found or read, or its weights are not complete.
        """
        return cls(*loading.load(model, device=device, dtype=dtype or default_dtype(device), revision=revision))

    def prepare(self, image: Image.Image) -> Prepared:
        """Cut an image into tiles, on the host; its pixels are taken as given, converted to RGB if they are not."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        return self.tiling.prepare(image) if self._copies is None else self.tiling.prepare(image, _pinned_zeros)

    def upload(self, images: Sequence[Prepared]) -> Uploaded:
        """
        Have the tiles of a batch copied to the device, beside what it computes. May be called beside `score`, which
        then does not wait for them.

        Raises:
            MemoryError: when they do not fit on the device.
        """
        tiles = [torch.from_numpy(image.tiles) for image in images]
        if self._copies is None:
            return Uploaded(images, torch.cat(tiles))
        try:
            with torch.cuda.stream(self._copies):
                parts = [part.to(self.device, non_blocking=True) for part in tiles]
                return Uploaded(images, torch.cat(parts))
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error).splitlines()[0]) from error

    def score(self, images: Sequence[Prepared]) -> list[Score]:
        """
        Score images in one batch, in order.

        No image's score depends on the others, which lie in the same pass but are not attended to.

        Raises:
            ValueError: when the rating of one of them is not finite.
            MemoryError: when the batch does not fit on the device.
        """
        if not images:
            return []
        return self._in_one_pass(lambda: self._rated(images))

    def look(
        self,
        images: Sequence[Prepared],
        questions: Sequence[str | Question],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        asks: Callable[[int, Score], Sequence[int]] | None = None,
    ) -> list[tuple[Score, list[Answer]]]:
        """
        Score images in one batch, and answer questions about them; in order. Scores are those of `score`, and no answer
        depends on the other images or questions.

        max_new_tokens: of the answers to questions that are given as text.
        asks: by the place and the score of an image, the places of the questions about it; all of them if None.

        Raises: as `score`, and CheckpointError when a question holds what the tokenizer takes for an image.
        """
        asked = [
            each if isinstance(each, Question) else Question(each, each, max_new_tokens=max_new_tokens)
            for each in questions
        ]

        def rated_and_asked() -> list[tuple[Score, list[Answer]]]:
            kept: KVCache = []
            scores = self._rated(images, kept)
            places = [list(asks(*each)) if asks else list(range(len(asked))) for each in enumerate(scores)]
            return list(zip(scores, self._answers(images, kept, asked, places), strict=True))

        return self._in_one_pass(rated_and_asked) if images else []

    def _in_one_pass(self, work: Callable[[], T]) -> T:
        """What comes of work without gradients; a device that is full is told of when what filled it is gone."""
        try:
            with torch.inference_mode():
                return work()
        except torch.OutOfMemoryError as error:
            words = str(error).splitlines()[0]
        torch.cuda.empty_cache()  # by now the error is gone, and with it the frames that held the batch's memory
        self._pass_tiles = max(1, self._pass_tiles // 2)
        raise MemoryError(words)

    def _rated(self, images: Sequence[Prepared], kept: KVCache | None = None) -> list[Score]:
        uploaded = images if isinstance(images, Uploaded) else self.upload(images)
        if self._copies is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._copies)
            uploaded.tiles.record_stream(torch.cuda.current_stream(self.device))
        hidden = torch.cat([part for row in self._rows(uploaded) for part in row])
        last = self._text(hidden, self._packing(images), kept)
        return [score_of(logits) for logits in linear(last.float(), self._rating_rows).tolist()]

    def _packing(self, images: Sequence[Prepared]) -> PackedSequences:
        return PackedSequences([image.tokens + len(self._before) + len(self._after) for image in images], self.device)

    def _answers(
        self, images: Sequence[Prepared], kept: KVCache, asked: Sequence[Question], places: Sequence[Sequence[int]]
    ) -> list[list[Answer]]:
        """places: of each image, those of the questions about it."""
        pairs = [(image, place) for image, some in enumerate(places) for place in some]
        if not pairs:
            return [[] for _ in places]
        ids = {place: self._after_image(render_prompt(asked[place])) for place in {place for _, place in pairs}}
        looked_at = [image for image, some in enumerate(places) if some]
        rows = PrefixCache(kept, self._packing(images), looked_at, len(self._after))
        row_of = {image: row for row, image in enumerate(looked_at)}
        found: list[Answer] = []
        for start in range(0, len(pairs), BRANCHES):
            some_pairs = pairs[start : start + BRANCHES]
            branches = Continuations(self._text, rows, [row_of[image] for image, _ in some_pairs])
            questions = [asked[place] for _, place in some_pairs]
            found += generation.answers(
                branches, questions, [ids[place] for _, place in some_pairs], self._logits, self._prompts
            )
        given = iter(found)
        return [list(islice(given, len(some))) for some in places]

    def _after_image(self, question: str) -> list[int]:
        before, after = self._prompts.ids(question)
        if before != self._ids_before:
            raise CheckpointError("the chat template puts the question before the image; then it cannot be shared")
        return after

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(hidden, self._head).float()

    def photos_per_second(self, width: int = 1024, height: int = 768) -> float:
        """About how many photos of that size this device scores a second, from timing one layer of each tower."""
        tiles = 1 + math.prod(self.tiling.layout(width, height).tiles)
        tokens = self.tiling.tokens(width, height) + len(self._before) + len(self._after)
        packing = PackedSequences([tokens], self.device)
        with torch.inference_mode():
            patches = torch.zeros(1, self.tiling.patches**2, self._tower.width, device=self.device, dtype=self.dtype)
            hidden = torch.zeros(tokens, len(self._newline), device=self.device, dtype=self.dtype)
            turns = self._text.turns(packing.positions, self.dtype)
            vision_s = _seconds(lambda: vision_layer(self._tower.layers[0], patches))
            text_s = _seconds(lambda: text_layer(self._text.layers[0], hidden, turns, packing))
        return 1 / (vision_s * len(self._tower.layers) * tiles + text_s * len(self._text.layers))

    def _budgets(self, config: Any) -> tuple[int, int]:
        """Tokens of a batch and tiles of a vision pass, as this device's memory allows."""
        kind = self.device.type
        if kind != "cuda":
            return BATCH_TOKENS["cpu"], VISION_TILES["cpu"]
        room = torch.cuda.mem_get_info(self.device)[0] * OF_FREE_MEMORY / self.dtype.itemsize
        vision, text = config.vision_config, config.text_config
        token = 3 * text.intermediate_size + 6 * text.hidden_size  # what is held at once at the widest place
        tile = self.tiling.patches**2 * (2 * vision.intermediate_size + 6 * vision.hidden_size)
        return min(BATCH_TOKENS[kind], int(room / token)), max(1, min(VISION_TILES[kind], int(room / tile)))

    def _rows(self, images: Uploaded) -> Iterator[tuple[torch.Tensor, ...]]:
        """Of each image the embeddings that make its row: prompt, base tile, grid, prompt."""
        features = torch.cat([self._tower(self._patches(part)) for part in images.tiles.split(self._pass_tiles)])
        for image, feature in zip(images, features.split([len(image.tiles) for image in images]), strict=True):
            yield self._before, feature[0], self._grid(feature[1:], image), self._after

    def _patches(self, tiles: torch.Tensor) -> torch.Tensor:
        """(n, size, size, 3) uint8 to (n, patches, values of a patch): normalised, the channels one after another."""
        side, size = self.tiling.patches, self._patch
        tiles = tiles[:, : side * size, : side * size]  # what is over is seen by no patch
        patches = tiles.unflatten(2, (side, size)).unflatten(1, (side, size)).permute(0, 1, 3, 5, 2, 4)
        values = patches.reshape(len(tiles), side * side, 3, size * size).float()
        normalised = values.mul_(self.tiling.scale).sub_(self._mean).div_(self._std)
        flat: torch.Tensor = normalised.flatten(2)
        return flat.to(self.dtype)

    def _grid(self, features: torch.Tensor, image: Prepared) -> torch.Tensor:
        """(tiles, patches, width) to (tokens, width): put together, without padding, shrunk, a newline a row."""
        layout, side = self.tiling.layout(image.width, image.height), self.tiling.patches
        grid = features.unflatten(1, (side, side)).unflatten(0, layout.tiles).transpose(1, 2)
        grid = grid.flatten(2, 3).flatten(0, 1)
        grid = grid[layout.top : grid.shape[0] - layout.top, layout.left : grid.shape[1] - layout.left]
        if grid.shape[:2] != (layout.rows, layout.columns):
            grid = interpolate(grid.movedim(2, 0)[None], (layout.rows, layout.columns), mode="bilinear")
            grid = grid[0].movedim(0, 2)
        newlines = self._newline.expand(layout.rows, 1, -1)
        return torch.cat((grid, newlines), dim=1).flatten(0, 1)


def _pinned_zeros(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Of memory that a GPU copies from by itself."""
    zeros: NDArray[np.uint8] = torch.zeros(shape, dtype=torch.uint8, pin_memory=True).numpy()
    return zeros


def default_dtype(device: str) -> str:
    """float16 on CUDA, as the checkpoints are published; float32 on a CPU, see benchmarks/README.md for why."""
    return "float16" if device.startswith("cuda") else "float32"


def _seconds(action: Callable[[], torch.Tensor]) -> float:
    action()
    began = time.perf_counter()
    float(action().flatten()[0])  # which waits for the device
    return time.perf_counter() - began
