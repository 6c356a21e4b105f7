"""
The vision tower of the blank checkpoint, set by hand to features that separate grain, blur, blocks and tones.

Its first layer computes a cosine transform of each patch and the strength of each pattern. Its second layer averages
them over the tile. Training only has to learn what these features mean.
"""

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from worker.inference.tiles import Tiling

PATCH, WIDTH = 16, 128
LUMA_FREQUENCIES, COLOR_FREQUENCIES = (0, 1, 2, 3, 5, 7, 9, 12, 15), (0, 2, 8)
"""Frequencies of the cosine transform in both directions, of brightness and of each of two color differences."""
PATTERNS = len(LUMA_FREQUENCIES) ** 2 + 2 * len(COLOR_FREQUENCIES) ** 2
CONSTANTS = slice(PATTERNS, PATTERNS + 4)
"""Constant channels: they keep normalization from amplifying a faint patch, and show how strong the patch is."""
STRENGTH = CONSTANTS.stop
TONES = torch.linspace(-3.2, 3.2, 15)
"""Levels of the normalized brightness of a patch: an even patch has -2.7 if black and 2.7 if white."""
TONE = slice(STRENGTH + 1, STRENGTH + 1 + len(TONES) - 2)
"""Channels that count the patches of each brightness. The rest of the width is free."""
SHIFT = 6.0


def make_cosines() -> Tensor:
    """Return the filters, (PATTERNS, 3, PATCH, PATCH), scaled so that fine and coarse patterns are equally strong."""
    phases = (torch.arange(PATCH) + 0.5) * math.pi / PATCH
    luma, color = torch.tensor([0.299, 0.587, 0.114]), torch.tensor([[1.0, -0.5, -0.5], [0.0, 1.0, -1.0]])

    def pattern(down: int, right: int) -> Tensor:
        wave = torch.outer(torch.cos(down * phases), torch.cos(right * phases))
        scaled: Tensor = wave / wave.norm() * (2 * (1 + down + right) ** 1.5 / PATCH)
        return scaled

    filters = [luma[:, None, None] * pattern(*pair) for pair in product(LUMA_FREQUENCIES, repeat=2)]
    filters += [
        each[:, None, None] * pattern(*pair) / 2 for each in color for pair in product(COLOR_FREQUENCIES, repeat=2)
    ]
    return torch.stack(filters)


@torch.no_grad()
def initialize_vision(model: Any, tiling: Tiling, images: Sequence[Path]) -> None:
    """
    Set the initial weights of the vision tower and the projector.

    images: their tiles give the mean and spread that normalize each feature.
    """
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    first, second = tower.encoder.layers
    one = torch.eye(WIDTH)
    embeddings = tower.embeddings
    embeddings.position_embedding.weight.mul_(0.2)
    embeddings.patch_embedding.weight.zero_()[:PATTERNS] = make_cosines()
    embeddings.patch_embedding.bias.zero_()[CONSTANTS] = torch.tensor([4.0, -4.0, 4.0, -4.0])
    first.self_attn.out_proj.weight.mul_(0.03)
    fc1, fc2 = first.mlp.fc1, first.mlp.fc2
    fc1.weight.copy_(4 * torch.cat((one, -one)))
    fc1.bias.zero_()
    signs = torch.ones(WIDTH)  # gelu(x) + gelu(-x) is about |x|, and gelu(x) - gelu(-x) is x
    signs[[0, len(LUMA_FREQUENCIES) ** 2, len(LUMA_FREQUENCIES) ** 2 + len(COLOR_FREQUENCIES) ** 2]] = -1
    fc2.weight.copy_(torch.cat((one, torch.diag(signs)), dim=1))
    fc2.weight[STRENGTH:] = 0
    fc2.weight[STRENGTH, CONSTANTS.start] = 1
    hinges = torch.arange(len(TONES)) + STRENGTH + 1
    fc1.weight[hinges] = 4 * one[0]
    fc1.bias[hinges] = -4 * TONES
    for index, channel in enumerate(range(TONE.start, TONE.stop)):
        fc2.weight[channel, hinges[index : index + 3]] = torch.tensor([1.0, -2.0, 1.0])
    for narrow in (second.self_attn.q_proj, second.self_attn.k_proj):
        narrow.weight.mul_(0.2)
    second.self_attn.v_proj.weight.copy_(one)
    second.self_attn.out_proj.weight.zero_()
    second.mlp.fc2.weight.mul_(0.3)
    projector.linear_1.weight.copy_(one)
    projector.linear_2.weight.copy_(one)
    projector.linear_1.bias.fill_(SHIFT)  # where gelu is linear
    projector.linear_2.bias.fill_(-SHIFT)

    features = []
    for image in images:
        with Image.open(image) as opened:
            tiles = torch.from_numpy(tiling.prepare(opened).tiles[1:])
        output = tower(tiles.movedim(3, 1) / 127.5 - 1, output_hidden_states=True)
        features.append(output.hidden_states[-1].mean((0, 1)))
    means, spread = torch.stack(features).mean(0), torch.stack(features).std(0).clamp(min=0.01)
    kept = torch.zeros(WIDTH)
    kept[:PATTERNS], kept[STRENGTH : TONE.stop] = 1, 1
    fc2.weight.mul_((kept / spread)[:, None])
    fc2.bias.copy_(-kept * means / spread)
    second.self_attn.out_proj.weight.copy_(torch.diag(6 * kept))
