"""Make checkpoints of Q-SiT's true sizes with random weights.

They take as long as trained ones; their scores mean nothing.

    python -m benchmarks.checkpoints FOLDER tiny|mini|full [--tokenizer FOLDER] [--dtype float16] [--seed N]

`mini` and `full` have the sizes of zhangzicheng/q-sit-mini and q-sit; `tiny` has two narrow layers per tower. Layout
and names of the weights are the published ones. Templates, preprocessing and tokenizer are those of the golden
checkpoint. --tokenizer takes a folder with Qwen2's tokenizer instead; its prompt is longer, by about 3 % of the tokens
of a photo.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config

from training.published import save_checkpoint

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "checkpoint"
VISION: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "true": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26, "num_attention_heads": 16},
}
TEXT: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 152000,
        "tie_word_embeddings": True,
    },
    "mini": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 152000,
        "tie_word_embeddings": True,
    },
    "full": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152128,
        "tie_word_embeddings": False,
    },
}
PREPROCESSING = ("chat_template.json", "preprocessor_config.json", "processor_config.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def make_config(shape: str, image_token: int) -> LlavaOnevisionConfig:
    """Return the configuration of a published checkpoint."""
    return LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "patch_size": 14,
            "image_size": 384,
            "vision_use_head": False,
            **VISION["tiny" if shape == "tiny" else "true"],
        },
        text_config=Qwen2Config(
            max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            rms_norm_eps=1e-6,
            use_sliding_window=False,
            bos_token_id=None,
            eos_token_id=None,
            **TEXT[shape],
        ),
        image_token_index=image_token,
        tie_word_embeddings=False,
    )


@contextmanager
def open_checkpoint(name: str) -> Iterator[Path]:
    """Yield the folder of a checkpoint: the named folder, or a temporary one of the named shape."""
    if name not in TEXT:
        yield Path(name)
        return
    with tempfile.TemporaryDirectory(prefix="qsit-checkpoint-") as folder:
        make_checkpoint(Path(folder), name)
        yield Path(folder)


def make_checkpoint(
    folder: Path, shape: str, *, tokenizer: Path = GOLDEN, dtype: str = "float16", seed: int = 0
) -> int:
    """Write a checkpoint and return its number of parameters."""
    image_token = next(
        int(entry["id"])
        for entry in json.loads((tokenizer / "tokenizer.json").read_text())["added_tokens"]
        if entry["content"] == "<image>"
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        model = LlavaOnevisionForConditionalGeneration(make_config(shape, image_token))
    finally:
        torch.set_default_dtype(before)
    save_checkpoint(model, folder)
    for name in PREPROCESSING:
        shutil.copy(GOLDEN / name, folder)
    for name in TOKENIZER:
        shutil.copy(tokenizer / name, folder)
    return sum(each.numel() for each in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape", choices=TEXT)
    parser.add_argument("--tokenizer", type=Path, default=GOLDEN)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    count = make_checkpoint(args.folder, args.shape, tokenizer=args.tokenizer, dtype=args.dtype, seed=args.seed)
    print(f"{args.folder}: {count:,} parameters")


if __name__ == "__main__":
    main()
