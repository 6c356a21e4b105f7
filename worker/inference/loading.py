"""Load a checkpoint, and refuse an incomplete one. The only module that imports transformers."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration
from transformers.utils import logging as transformers_logging

from qsit import checkpoints
from qsit.errors import CheckpointError, one_line
from worker.inference.prompts import Prompts
from worker.inference.tiles import Tiling

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(model: str, *, device: str, dtype: str, revision: str | None) -> tuple[Any, Prompts, Tiling]:
    """Return transformers' model on its device, its prompts and its tiling. Arguments and errors are `QSit.load`'s."""
    name = checkpoints.full_name(model)
    folder = checkpoints.fetch(name, revision or checkpoints.resolve(name))
    tiling = Tiling.of_checkpoint(folder)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # _check_complete refuses what it warns of
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        answer: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(
            folder,
            dtype=DTYPES[dtype],
            attn_implementation="sdpa",
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # _check_complete refuses them
        )
        loaded, report = answer
    except Exception as error:  # transformers documents none for broken files
        raise CheckpointError(f"{folder} cannot be loaded: {type(error).__name__}: {one_line(error)[:300]}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    _check_complete(folder, loaded, report)
    loaded.eval().requires_grad_(False)
    try:
        loaded.to(device)
    except (AssertionError, RuntimeError) as error:  # the former when torch was built without CUDA
        raise CheckpointError(f"{model} does not fit on {device}: {str(error).splitlines()[0]}") from error
    eos_token_ids = _find_eos_token_ids(folder, loaded, tokenizer)
    return loaded, Prompts(folder, tokenizer, loaded.config.image_token_id, eos_token_ids), tiling


def _check_complete(folder: Path, model: Any, report: dict[str, Any]) -> None:
    """Refuse missing weights, which transformers fills with random numbers, and unsupported architectures."""
    unusable = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
    if unusable:
        missing = f"{len(unusable)} weights are missing or of another shape, such as {unusable[0]}"
        raise CheckpointError(f"{folder} is incomplete: {missing}")
    config = model.config
    if getattr(config.text_config, "tie_word_embeddings", False):
        head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        if head.data_ptr() != embedding.data_ptr() and not torch.equal(head, embedding):
            raise CheckpointError(f"{folder}: this transformers leaves the tied output head unset; use another release")
    if "sliding_attention" in getattr(config.text_config, "layer_types", ()):
        raise CheckpointError(f"{folder}: sliding-window attention is not supported")
    if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "full":
        raise CheckpointError(f"{folder}: only all features of the vision tower's last layer are supported")


def _find_eos_token_ids(folder: Path, model: Any, tokenizer: Any) -> list[int]:
    for config in (model.generation_config, model.config.text_config, tokenizer):
        if (ids := config.eos_token_id) is not None:
            return ids if isinstance(ids, list) else [ids]
    raise CheckpointError(f"{folder} names no token that ends an answer")
