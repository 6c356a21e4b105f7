"""
A checkpoint that has learned nothing yet: a small Q-SiT, with tiles and a tokenizer of its own.

    python -m training.blank FOLDER LIST [--seed 0]

LIST is one that training reads; the tokenizer learns its words. The vision tower starts not at random but as what is
known to tell grain, blur and blocks apart: its first layer takes the cosine transform of each patch and how strong each
pattern is, and its second the mean of that over the tile. What is left to learn is what these figures mean.
"""

import argparse
import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config

from training.lists import Entry, read
from training.published import save
from worker.inference.tiles import Tiling

TILE, PATCH, WIDTH = 128, 16, 128
STEPS, COLOURS = (0, 1, 2, 3, 5, 7, 9, 12, 15), (0, 2, 8)
"""Of the cosine transform, both ways: those of brightness, and of each of two differences of colours."""
PATTERNS = len(STEPS) ** 2 + 2 * len(COLOURS) ** 2
CONSTANTS = slice(PATTERNS, PATTERNS + 4)
"""They keep normalising from making a faint patch a strong one; how small they come out tells how strong it is."""
STRENGTH = CONSTANTS.stop
TONES = torch.linspace(-3.2, 3.2, 15)
"""Of a patch's brightness, once normalised: an even one is -2.7 if black and 2.7 if white."""
TONE = slice(STRENGTH + 1, STRENGTH + 1 + len(TONES) - 2)
"""How many patches are about how bright; the rest of the width is free."""
SHIFT = 6.0
IMAGES = 500
PINPOINTS = [list(pair) for pair in product(range(TILE, 1024 + 1, TILE), repeat=2)]
"""Photos of up to 1024 pixels are seen as they are; larger ones shrunk to that."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
WORDS_AT_MOST = 640
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's."""
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] if content['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_of(entries: Sequence[Entry]) -> Tokenizer:
    """Byte pairs, merged by how often they come in the conversations of a list."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS_AT_MOST - len(SPECIAL), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    texts = {text for entry in entries for text in (entry.question, entry.reply)}
    tokenizer.train_from_iterator(sorted(texts), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    return tokenizer


def config_of(tokenizer: Tokenizer) -> LlavaOnevisionConfig:
    """Both towers are two layers deep, and so narrow that a photo of 1024x768 takes a core a twentieth of a second."""
    ids = {token: int(tokenizer.token_to_id(token) or 0) for token in SPECIAL}
    return LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model", "image_size": TILE, "patch_size": PATCH, "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "vision_use_head": False,
        },
        text_config=Qwen2Config(
            hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=32768,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0}, initializer_range=0.08,
            tie_word_embeddings=True,
            bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"],
        ),
        image_token_index=ids["<image>"], video_token_index=ids["<video>"], image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_1", tie_word_embeddings=False,
    )  # fmt: skip


def cosines() -> Tensor:
    """(PATTERNS, 3, PATCH, PATCH): a cosine transform in which fine patterns of photos come out as strong as coarse."""
    places = (torch.arange(PATCH) + 0.5) * math.pi / PATCH
    luma, colour = torch.tensor([0.299, 0.587, 0.114]), torch.tensor([[1.0, -0.5, -0.5], [0.0, 1.0, -1.0]])

    def pattern(down: int, right: int) -> Tensor:
        wave = torch.outer(torch.cos(down * places), torch.cos(right * places))
        scaled: Tensor = wave / wave.norm() * (2 * (1 + down + right) ** 1.5 / PATCH)
        return scaled

    filters = [luma[:, None, None] * pattern(*pair) for pair in product(STEPS, repeat=2)]
    filters += [each[:, None, None] * pattern(*pair) / 2 for each in colour for pair in product(COLOURS, repeat=2)]
    return torch.stack(filters)


@torch.no_grad()
def start(model: Any, tiling: Tiling, images: Sequence[Path]) -> None:
    """
    Set the vision tower and the projector to what they start as.

    images: whose tiles tell the mean and spread of each figure, which it is normalised with.
    """
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    first, second = tower.encoder.layers
    one = torch.eye(WIDTH)
    embeddings = tower.embeddings
    embeddings.position_embedding.weight.mul_(0.2)
    embeddings.patch_embedding.weight.zero_()[:PATTERNS] = cosines()
    embeddings.patch_embedding.bias.zero_()[CONSTANTS] = torch.tensor([4.0, -4.0, 4.0, -4.0])
    first.self_attn.out_proj.weight.mul_(0.03)
    fc1, fc2 = first.mlp.fc1, first.mlp.fc2
    fc1.weight.copy_(4 * torch.cat((one, -one)))
    fc1.bias.zero_()
    signs = torch.ones(WIDTH)  # gelu(x) + gelu(-x) is about the amount of x, gelu(x) - gelu(-x) is x
    signs[[0, len(STEPS) ** 2, len(STEPS) ** 2 + len(COLOURS) ** 2]] = -1
    fc2.weight.copy_(torch.cat((one, torch.diag(signs)), dim=1))
    fc2.weight[STRENGTH:] = 0
    fc2.weight[STRENGTH, CONSTANTS.start] = 1
    hinges = torch.arange(len(TONES)) + STRENGTH + 1
    fc1.weight[hinges] = 4 * one[0]
    fc1.bias[hinges] = -4 * TONES
    for place, channel in enumerate(range(TONE.start, TONE.stop)):
        fc2.weight[channel, hinges[place : place + 3]] = torch.tensor([1.0, -2.0, 1.0])
    for narrow in (second.self_attn.q_proj, second.self_attn.k_proj):
        narrow.weight.mul_(0.2)
    second.self_attn.v_proj.weight.copy_(one)
    second.self_attn.out_proj.weight.zero_()
    second.mlp.fc2.weight.mul_(0.3)
    projector.linear_1.weight.copy_(one)
    projector.linear_2.weight.copy_(one)
    projector.linear_1.bias.fill_(SHIFT)  # where gelu is straight
    projector.linear_2.bias.fill_(-SHIFT)

    figures = []
    for image in images:
        with Image.open(image) as opened:
            tiles = torch.from_numpy(tiling.prepare(opened).tiles[1:])
        seen = tower(tiles.movedim(3, 1) / 127.5 - 1, output_hidden_states=True)
        figures.append(seen.hidden_states[-1].mean((0, 1)))
    means, spread = torch.stack(figures).mean(0), torch.stack(figures).std(0).clamp(min=0.01)
    kept = torch.zeros(WIDTH)
    kept[:PATTERNS], kept[STRENGTH : TONE.stop] = 1, 1
    fc2.weight.mul_((kept / spread)[:, None])
    fc2.bias.copy_(-kept * means / spread)
    second.self_attn.out_proj.weight.copy_(torch.diag(6 * kept))


def make(folder: Path, entries: Sequence[Entry], seed: int = 0) -> None:
    """Write the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_of(entries)
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(config_of(tokenizer))
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in (
        ("tokenizer_config.json", {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False, "model_max_length": 32768,
        }),
        ("chat_template.json", {"chat_template": TEMPLATE}),
        ("preprocessor_config.json", {
            "image_processor_type": "LlavaOnevisionImageProcessor", "processor_class": "LlavaOnevisionProcessor",
            "do_convert_rgb": True, "do_resize": True, "do_rescale": True, "do_normalize": True, "do_pad": True,
            "image_grid_pinpoints": PINPOINTS, "size": {"height": TILE, "width": TILE}, "resample": 3,
            "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        }),
        ("processor_config.json", {
            "processor_class": "LlavaOnevisionProcessor", "num_image_tokens": (TILE // PATCH) ** 2,
            "vision_feature_select_strategy": "full", "image_token": "<image>", "video_token": "<video>",
        }),
    ):  # fmt: skip
        (folder / name).write_text(json.dumps(content))
    model.config.save_pretrained(folder)
    start(model, Tiling.of_checkpoint(folder), list(dict.fromkeys(entry.image for entry in entries))[:IMAGES])
    save(model, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("list", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make(args.folder, read(args.list), args.seed)


if __name__ == "__main__":
    main()
