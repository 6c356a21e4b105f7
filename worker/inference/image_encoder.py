"""From the tiles of images to their tokens in the language model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from worker.inference.forward import VisionTower
from worker.inference.tiles import Prepared, Tiling


class ImageEncoder:
    """The vision tower, with the pixels before it and the arrangement of its features after it."""

    def __init__(self, model: Any, tiling: Tiling) -> None:
        """model: transformers' LlavaOnevisionModel, which this changes."""
        self._tower = VisionTower(model.vision_tower, model.multi_modal_projector)
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
        passes = [self._tower(self._cut_patches(part)) for part in tiles.split(tiles_per_pass)]
        features = torch.cat(passes).split([len(image.tiles) for image in images])
        return [self.arrange(part, image) for part, image in zip(features, images, strict=True)]

    def _cut_patches(self, tiles: Tensor) -> Tensor:
        """(n, size, size, 3) uint8 to (n, patches, values of a patch): normalised, channel by channel."""
        side, size = self._tiling.patches, self._patch_size
        tiles = tiles[:, : side * size, : side * size]  # no patch covers the rest
        patches = tiles.unflatten(2, (side, size)).unflatten(1, (side, size)).permute(0, 1, 3, 5, 2, 4)
        values = patches.reshape(len(tiles), side * side, 3, size * size).float()
        normalised = values.mul_(self._tiling.scale).sub_(self._mean).div_(self._std)
        flat: Tensor = normalised.flatten(2)
        return flat.to(self._newline.dtype)

    def arrange(self, features: Tensor, image: Prepared) -> Tensor:
        """
        Return the tokens of the base tile, then those of the grid: padding cropped, shrunk, a newline after each row.

        features: (tiles, patches, width) of one image.
        returns: (tokens, width).
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
