"""From the tiles of images to their tokens in the language model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, linear, scaled_dot_product_attention

from worker.inference.forward import join_qkv
from worker.inference.tiles import Prepared, Tiling


class ImageEncoder:
    """SigLIP and the projector, with the pixels before them and the arrangement of their features after them."""

    def __init__(self, model: Any, tiling: Tiling) -> None:
        """model: transformers' LlavaOnevisionModel, which this changes."""
        self._embeddings = model.vision_tower.embeddings
        self._projector = model.multi_modal_projector
        self._layers = list(model.vision_tower.encoder.layers)
        for layer in self._layers:
            join_qkv(layer.self_attn)
        self._newline: Tensor = model.image_newline
        self._patch_size: int = model.config.vision_config.patch_size
        self._tiling = tiling
        self._mean = torch.tensor(tiling.mean, device=model.device).view(3, 1)
        self._std = torch.tensor(tiling.std, device=model.device).view(3, 1)

    def encode(self, tiles: Tensor, images: Sequence[Prepared], tiles_per_pass: int) -> list[Tensor]:
        """
        Return the embeddings of each image, (tokens, width).

        tiles: of all images, (n, size, size, 3) uint8, on the device.
        """
        passes = [self._embed_tiles(part) for part in tiles.split(tiles_per_pass)]
        features = torch.cat(passes).split([len(image.tiles) for image in images])
        return [self.arrange(part, image) for part, image in zip(features, images, strict=True)]

    def _embed_tiles(self, tiles: Tensor) -> Tensor:
        """Return the features of the last layer, before its norm, projected: (tiles, patches, width)."""
        embedding = self._embeddings.patch_embedding  # a convolution, which a matrix product equals
        hidden = linear(self._cut_patches(tiles), embedding.weight.flatten(1), embedding.bias)
        hidden = hidden.add_(self._embeddings.position_embedding.weight)
        for layer in self._layers:
            hidden = vision_layer(layer, hidden)
        return self._projector(hidden)  # type: ignore[no-any-return]

    def _cut_patches(self, tiles: Tensor) -> Tensor:
        """(n, size, size, 3) uint8 to (n, patches, values of a patch): normalised, channel by channel."""
        side, size = self._tiling.patches, self._patch_size
        tiles = tiles[:, : side * size, : side * size]  # no patch covers the rest
        patches = tiles.unflatten(2, (side, size)).unflatten(1, (side, size)).permute(0, 1, 3, 5, 2, 4)
        values = patches.reshape(len(tiles), side * side, 3, size * size).float()
        normalised = values.mul_(self._tiling.scale).sub_(self._mean).div_(self._std)
        return normalised.flatten(2).to(self._newline.dtype)  # type: ignore[no-any-return]

    def arrange(self, features: Tensor, image: Prepared) -> Tensor:
        """
        Return the tokens of the base tile, then those of the grid: padding cropped, shrunk, a newline after each row.

        features: (tiles, patches, width) of one image. Returns (tokens, width).
        """
        layout, side = self._tiling.layout(image.width, image.height), self._tiling.patches
        grid = features[1:].unflatten(1, (side, side)).unflatten(0, layout.tiles).transpose(1, 2)
        grid = grid.flatten(2, 3).flatten(0, 1)
        grid = grid[layout.top : grid.shape[0] - layout.top, layout.left : grid.shape[1] - layout.left]
        if grid.shape[:2] != (layout.rows, layout.columns):
            grid = interpolate(grid.movedim(2, 0)[None], (layout.rows, layout.columns), mode="bilinear")
            grid = grid[0].movedim(0, 2)
        newlines = self._newline.expand(layout.rows, 1, -1)
        return torch.cat((features[0], torch.cat((grid, newlines), dim=1).flatten(0, 1)))


def vision_layer(layer: Any, hidden: Tensor) -> Tensor:
    """Apply a layer of the vision tower: (tiles, patches, width) to the same."""
    attention = layer.self_attn
    qkv = linear(layer.layer_norm1(hidden), attention.weight, attention.bias).unflatten(2, (-1, attention.head_dim))
    queries, keys, values = qkv.transpose(1, 2).chunk(3, dim=1)
    attended = scaled_dot_product_attention(queries, keys, values, scale=attention.scale)
    hidden = attention.out_proj(attended.transpose(1, 2).flatten(2)).add_(hidden)
    inner = layer.mlp.activation_fn(layer.mlp.fc1(layer.layer_norm2(hidden)))
    return layer.mlp.fc2(inner).add_(hidden)  # type: ignore[no-any-return]
