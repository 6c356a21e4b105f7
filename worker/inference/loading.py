"""Reading a checkpoint, and refusing what is not whole; the only module with transformers."""

from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration
from transformers.utils import logging as transformers_logging

from qsit import checkpoints
from qsit.errors import CheckpointError
from worker.inference.prompts import Prompts
from worker.inference.tiles import Tiling

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(model: str, *, device: str, dtype: str, revision: str | None) -> tuple[Any, Prompts, Tiling]:
    """
    The model on its device, what it is asked with, and how images are cut for it. Arguments are those of `QSit.load`.

    Raises:
        CheckpointError: when it cannot be found or read, or its weights are not complete.
    """
    name = checkpoints.full_name(model)
    folder = checkpoints.fetch(name, revision or checkpoints.resolve(name))
    wanted = DTYPES[dtype]
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
    return loaded, Prompts(folder, tokenizer, loaded.config.image_token_id, _ends(folder, loaded, tokenizer)), tiling


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
    if "sliding_attention" in getattr(config.text_config, "layer_types", ()):
        raise CheckpointError(f"{folder}: attention by a sliding window is not supported")
    if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "full":
        raise CheckpointError(f"{folder}: only all features of the vision tower's last layer are supported")


def _ends(folder: Path, model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer."""
    for given in (
        model.generation_config.eos_token_id, model.config.text_config.eos_token_id, tokenizer.eos_token_id,
    ):  # fmt: skip
        if given is not None:
            return given if isinstance(given, list) else [given]
    raise CheckpointError(f"{folder} names no token that ends an answer")
