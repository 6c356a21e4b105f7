"""Q-SiT itself: loading a checkpoint, and scoring prepared images with it.

The only module with torch and transformers. It reads prompt template, token ids, tile size, pinpoints, mean and
standard deviation from the checkpoint, so that nothing here assumes a size of SigLIP or Qwen2.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch.nn.functional import linear
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration
from transformers.utils import logging as transformers_logging

from models.errors import CheckpointError
from worker import checkpoint
from worker.procedure import ANSWER, PROMPT, WORDS, Score, score_of
from worker.tiles import Prepared, Tiling, best_resolution

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_VISION_TILES = 64
"""Tiles in one pass through the vision tower, which bounds its memory."""
PADDING = 1.1
"""Rows of a language-model pass are padded to at most this much of their real tokens."""


class QSit:
    """
    A loaded Q-SiT model on one device.

    `prepare` may run in many threads beside each other and beside `score`; `score` in one at a time.
    """

    def __init__(self, model: Any, tokenizer: Any, template: str, tiling: Tiling) -> None:
        self.tiling = tiling
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self._model = model.model
        self._before, self._after = _prompt_ids(tokenizer, template, model.config.image_token_id)
        rating_ids = _rating_ids(tokenizer)
        self._rating_rows: torch.Tensor = model.get_output_embeddings().weight[rating_ids].float()
        self._scale = tiling.scale
        self._mean = torch.tensor(tiling.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(tiling.std, device=self.device).view(1, 3, 1, 1)

    @classmethod
    def load(cls, model: str, *, device: str = "cpu", dtype: str | None = None, revision: str | None = None) -> "QSit":
        """
        Load a checkpoint: "demo", a folder, or a Hub id, downloaded if need be.

        dtype: "float32", "bfloat16" or "float16"; by default the fastest faithful one, see `default_dtype`.

        Raises:
            CheckpointError: when it cannot be found or read, or its weights are not complete.
        """
        name = checkpoint.full_name(model)
        folder = checkpoint.fetch(name, revision or checkpoint.resolve(name))
        wanted = DTYPES[dtype or default_dtype(device)]
        tiling = Tiling.of_checkpoint(folder)
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # what it would warn of is checked below
        transformers_logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            loaded, report = cast(
                tuple[Any, dict[str, Any]],
                LlavaOnevisionForConditionalGeneration.from_pretrained(
                    folder,
                    dtype=wanted,
                    attn_implementation="sdpa",
                    output_loading_info=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                    ignore_mismatched_sizes=True,  # they are in the report, and refused below
                ),
            )
        except Exception as error:  # any of them means that the files are no such checkpoint
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{folder} cannot be loaded: {type(error).__name__}: {reason}") from error
        finally:
            transformers_logging.set_verbosity(verbosity)
        _check_complete(folder, loaded, report)
        loaded.eval().requires_grad_(False)
        try:
            loaded.to(device)
        except (AssertionError, RuntimeError) as error:  # the former where torch was built without CUDA
            raise CheckpointError(f"{model} does not fit on {device}: {str(error).splitlines()[0]}") from error
        return cls(loaded, tokenizer, _template(folder, tokenizer), tiling)

    def prepare(self, image: Image.Image) -> Prepared:
        """Cut an image into tiles, on the host; its pixels are taken as given, converted to RGB if they are not."""
        return self.tiling.prepare(image if image.mode == "RGB" else image.convert("RGB"))

    def score(self, images: Sequence[Prepared]) -> list[Score]:
        """
        Score images in one batch, in order.

        No image's score depends on the others: rows are padded on the right under causal attention and read at
        their last real position.

        Raises:
            ValueError: when the rating of one of them is not finite.
            MemoryError: when the batch does not fit on the device.
        """
        try:
            with torch.inference_mode():
                return self._score(images)
        except torch.OutOfMemoryError as error:
            words = str(error).splitlines()[0]
        torch.cuda.empty_cache()  # by now the error is gone, and with it the frames that held the batch's memory
        raise MemoryError(words)

    def _score(self, images: Sequence[Prepared]) -> list[Score]:
        features = self._features(images)
        logits: dict[int, list[float]] = {}
        for row in _rows_of_like_length([feature.shape[0] for feature in features]):
            values = self._rating_logits([features[index] for index in row])
            logits.update(zip(row, values.tolist(), strict=True))
        return [score_of(logits[index]) for index in range(len(images))]

    def photos_per_second(self, width: int = 1024, height: int = 768) -> float:
        """About how many photos of that size this device scores a second, from timing one layer of each tower."""
        grid_height, grid_width = best_resolution(width, height, self.tiling.pinpoints)
        tiles = 1 + grid_height * grid_width // self.tiling.size**2
        tokens = self.tiling.tokens(width, height) + len(self._before) + len(self._after)
        tower, text = self._model.vision_tower, self._model.language_model
        with torch.inference_mode():
            patches = torch.zeros(1, self.tiling.patches**2, tower.config.hidden_size)
            patches = patches.to(self.device, self.dtype)
            hidden = torch.zeros(1, tokens, text.config.hidden_size).to(self.device, self.dtype)
            turns = text.rotary_emb(hidden, torch.arange(tokens, device=self.device)[None])
            vision_s = _seconds(lambda: tower.encoder.layers[0](patches, None))
            text_s = _seconds(lambda: text.layers[0](hidden, position_embeddings=turns))
        return 1 / (vision_s * len(tower.encoder.layers) * tiles + text_s * len(text.layers))

    def _features(self, images: Sequence[Prepared]) -> list[torch.Tensor]:
        """Image tokens of each image: (tokens, width of the language model)."""
        tiles = [torch.from_numpy(image.tiles) for image in images]
        projected = torch.cat([self._projected(part) for part in torch.cat(tiles).split(MAX_VISION_TILES)])
        packed, _ = self._model.pack_image_features(
            projected.split([len(part) for part in tiles]),
            [(image.height, image.width) for image in images],
            image_newline=self._model.image_newline,
            vision_aspect_ratio=f"anyres_max_{self.tiling.max_tiles}",
        )
        for image, feature in zip(images, packed, strict=True):
            if feature.shape[0] != image.tokens:
                raise RuntimeError(f"{feature.shape[0]} image tokens where {image.tokens} were counted")
        return list(packed)

    def _projected(self, tiles: torch.Tensor) -> torch.Tensor:
        """Features of the vision tower's last layer, all of them and before its final norm, projected."""
        pixels = tiles.to(self.device).permute(0, 3, 1, 2).float()
        pixels = (pixels * self._scale - self._mean) / self._std
        tower = self._model.vision_tower
        hidden = tower.encoder(inputs_embeds=tower.embeddings(pixels.to(self.dtype))).last_hidden_state
        return self._model.multi_modal_projector(hidden)  # type: ignore[no-any-return]

    def _rating_logits(self, features: list[torch.Tensor]) -> torch.Tensor:
        """(len(features), 5) float32: the head's rows of the five words at each row's last real position."""
        text = self._model.language_model
        before, after = (
            text.embed_tokens(torch.tensor(ids, device=self.device)) for ids in (self._before, self._after)
        )
        rows = [torch.cat((before, feature, after)) for feature in features]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        hidden = text(inputs_embeds=padded, use_cache=False).last_hidden_state
        last = torch.stack([hidden[index, len(row) - 1] for index, row in enumerate(rows)])
        return linear(last.float(), self._rating_rows)


def default_dtype(device: str) -> str:
    """float16 on CUDA, as the checkpoints are published; float32 on a CPU, see benchmarks/README.md for why."""
    return "float16" if device.startswith("cuda") else "float32"


def _seconds(action: Callable[[], torch.Tensor]) -> float:
    action()
    began = time.perf_counter()
    float(action().flatten()[0])  # which waits for the device
    return time.perf_counter() - began


def _rows_of_like_length(lengths: list[int]) -> Iterator[list[int]]:
    """Indices grouped so that padding each group to its longest adds little."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        real = sum(lengths[member] for member in group) + lengths[index]
        if group and lengths[index] * (len(group) + 1) > PADDING * real:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _check_complete(folder: Path, model: Any, report: dict[str, Any]) -> None:
    """Weights that are missing are filled with random numbers by transformers: refuse that."""
    wrong = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
    if wrong:
        raise CheckpointError(
            f"{folder} is incomplete: {len(wrong)} weights are missing or of another shape, such as {wrong[0]}"
        )
    config = model.config
    if getattr(config.text_config, "tie_word_embeddings", False):
        head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        if head.data_ptr() != embedding.data_ptr() and not torch.equal(head, embedding):
            raise CheckpointError(f"{folder}: this transformers release left the tied head unset; use another release")
    if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "full":
        raise CheckpointError(f"{folder}: only all features of the vision tower's last layer are supported")


def _template(folder: Path, tokenizer: Any) -> str:
    try:
        if (own := folder / "chat_template.jinja").exists():
            return own.read_text()
        if (own := folder / "chat_template.json").exists():
            return str(json.loads(own.read_text())["chat_template"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{own} holds no chat template: {type(error).__name__}: {error}") from error
    if tokenizer.chat_template:
        return str(tokenizer.chat_template)
    raise CheckpointError(f"{folder} has no chat template")


def _prompt_ids(tokenizer: Any, template: str, image_token_id: int) -> tuple[list[int], list[int]]:
    """The rating prompt's token ids before and after the image."""
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
    try:
        prompt = tokenizer.apply_chat_template(
            [turn], chat_template=template, add_generation_prompt=True, tokenize=False
        )
    except Exception as error:  # of Jinja or of the template itself
        raise CheckpointError(f"the chat template cannot be used: {type(error).__name__}: {error}") from error
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    if ids.count(image_token_id) != 1:
        raise CheckpointError(f"the chat template puts {ids.count(image_token_id)} image tokens into a prompt, not one")
    place = ids.index(image_token_id)
    return ids[:place], ids[place + 1 :] + tokenizer(ANSWER, add_special_tokens=False).input_ids


def _rating_ids(tokenizer: Any) -> list[int]:
    ids = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in WORDS]
    if len(set(ids)) != len(WORDS):
        raise CheckpointError("the tokenizer does not tell the five rating words apart")
    return ids
