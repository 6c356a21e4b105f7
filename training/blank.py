"""
Make an untrained checkpoint: a small Q-SiT with its own tile size and tokenizer.

    python -m training.blank FOLDER LIST [--seed 0]

LIST is a list for training; the tokenizer learns its words. The vision tower does not start at random: see
training/vision.py.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config

from training.lists import Entry, read_list
from training.published import save_checkpoint
from training.sizes import REFERENCE, TILE
from training.vision import PATCH, WIDTH, initialize_vision
from worker.inference.tiles import Tiling

IMAGES = 500
"""The number of images from which the vision tower gets its means and spreads."""
PINPOINTS = [list(pair) for pair in product(range(TILE, REFERENCE + 1, TILE), repeat=2)]
"""Photos of up to 1024 pixels keep their size; larger ones are shrunk to that."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
MAX_VOCABULARY = 640
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern of Qwen2's tokenizer."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] if content['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(entries: Sequence[Entry]) -> Tokenizer:
    """Learn byte pairs from the conversations of a list."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = {text for entry in entries for text in (entry.question, entry.reply)}
    tokenizer.train_from_iterator(sorted(texts), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return tokenizer


def make_config(tokenizer: Tokenizer) -> LlavaOnevisionConfig:
    """Return a configuration with two narrow layers per tower: one core scores a photo of 1024x768 in 0.05 s."""
    ids = {token: int(tokenizer.token_to_id(token) or 0) for token in SPECIAL}
    return LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": TILE,
            "patch_size": PATCH,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vision_use_head": False,
        },
        text_config=Qwen2Config(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=tokenizer.get_vocab_size(),
            max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
            initializer_range=0.08,
            tie_word_embeddings=True,
            bos_token_id=ids["<|endoftext|>"],
            eos_token_id=ids["<|im_end|>"],
            pad_token_id=ids["<|endoftext|>"],
        ),
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_1",
        tie_word_embeddings=False,
    )


def make_blank(folder: Path, entries: Sequence[Entry], seed: int = 0) -> None:
    """Write an untrained checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(entries)
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(make_config(tokenizer))
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in (
        (
            "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "clean_up_tokenization_spaces": False,
                "model_max_length": 32768,
            },
        ),
        ("chat_template.json", {"chat_template": TEMPLATE}),
        (
            "preprocessor_config.json",
            {
                "image_processor_type": "LlavaOnevisionImageProcessor",
                "processor_class": "LlavaOnevisionProcessor",
                "do_convert_rgb": True,
                "do_resize": True,
                "do_rescale": True,
                "do_normalize": True,
                "do_pad": True,
                "image_grid_pinpoints": PINPOINTS,
                "size": {"height": TILE, "width": TILE},
                "resample": 3,
                "rescale_factor": 1 / 255,
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            },
        ),
        (
            "processor_config.json",
            {
                "processor_class": "LlavaOnevisionProcessor",
                "num_image_tokens": (TILE // PATCH) ** 2,
                "vision_feature_select_strategy": "full",
                "image_token": "<image>",
                "video_token": "<video>",
            },
        ),
    ):
        (folder / name).write_text(json.dumps(content))
    model.config.save_pretrained(folder)
    initialize_vision(
        model, Tiling.of_checkpoint(folder), list(dict.fromkeys(entry.image for entry in entries))[:IMAGES]
    )
    save_checkpoint(model, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("list", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_blank(args.folder, read_list(args.list), args.seed)


if __name__ == "__main__":
    main()
