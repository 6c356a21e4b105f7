"""
Cut images into uint8 tiles, as the checkpoint's configuration says.

The tiles equal those of transformers' LlavaOnevisionImageProcessorPil bit for bit. Scaling and normalising, its float
arithmetic, are done on the device.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qsit.errors import CheckpointError

Zeros = Callable[[tuple[int, ...]], NDArray[np.uint8]]


@dataclass(frozen=True)
class Prepared:
    """
    An image that is ready for the model.

    tiles: (n, size, size, 3) uint8; the first shows the whole image, the others are cut from it row by row.
    """

    tiles: NDArray[np.uint8]
    width: int  # of the image, in pixels
    height: int
    tokens: int  # of the image in the language model


@dataclass(frozen=True)
class Layout:
    """How the features of a grid of tiles become tokens."""

    tiles: tuple[int, int]  # rows and columns of tiles
    top: int  # rows of features to crop as padding, above and below
    left: int  # columns, on the left and the right
    rows: int  # of features, after shrinking
    columns: int


@dataclass(frozen=True)
class Tiling:
    """How a checkpoint cuts its images. Sizes are in pixels, pinpoints are (height, width)."""

    size: int
    pinpoints: tuple[tuple[int, int], ...]
    resample: Image.Resampling
    scale: float  # factor of a pixel before normalising
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patches: int  # along a side of a tile
    max_tiles: int  # the features of larger grids are shrunk

    @classmethod
    def of_checkpoint(cls, folder: Path) -> "Tiling":
        """
        Read config.json and preprocessor_config.json, or processor_config.json, where transformers 5 nests the latter.

        Raises CheckpointError when a file or value is missing, or asks for unsupported preprocessing.
        """
        try:
            config = json.loads((folder / "config.json").read_text())
            if (file := folder / "preprocessor_config.json").exists():
                steps = json.loads(file.read_text())
            else:
                steps = json.loads((folder / "processor_config.json").read_text())["image_processor"]
            vision, size = config["vision_config"], steps["size"]
            if size["height"] != size["width"]:
                raise ValueError(f"tiles of {size['height']} x {size['width']} px are not square")
            tiling = cls(
                size=size["height"],
                pinpoints=tuple((int(h), int(w)) for h, w in steps["image_grid_pinpoints"]),
                resample=Image.Resampling(steps.get("resample", Image.Resampling.BICUBIC)),
                scale=float(steps.get("rescale_factor", 1 / 255)),
                mean=tuple(map(float, steps["image_mean"])),
                std=tuple(map(float, steps["image_std"])),
                patches=vision["image_size"] // vision["patch_size"],
                max_tiles=int(config.get("vision_aspect_ratio", "anyres_max_9").removeprefix("anyres_max_")),
            )
            tiling._check(folder, config, steps)
        except (OSError, AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            reason = f"no value for {error}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"{folder} is not a Q-SiT checkpoint: {reason}") from error
        return tiling

    def _check(self, folder: Path, config: dict[str, Any], steps: dict[str, Any]) -> None:
        for step in ("do_resize", "do_rescale", "do_normalize", "do_center_crop"):
            needed, given = step != "do_center_crop", steps.get(step)
            if given is not None and bool(given) is not needed:
                raise CheckpointError(f"{folder}: preprocessing with {step} {'on' if given else 'off'} is unsupported")
        if self.size != (expected := config["vision_config"]["image_size"]):
            raise CheckpointError(f"{folder}: tiles of {self.size} px for a vision tower of {expected} px")
        pinpoints = tuple(tuple(pair) for pair in config["image_grid_pinpoints"])
        if not pinpoints or pinpoints != self.pinpoints or any(side % self.size for pair in pinpoints for side in pair):
            problem = "the pinpoints of model and preprocessor differ, or are not multiples of the tile size"
            raise CheckpointError(f"{folder}: {problem}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(self.std):
            raise CheckpointError(f"{folder}: mean and std must have three numbers each, and std no 0")

    def prepare(self, image: Image.Image, zeros: Zeros | None = None) -> Prepared:
        """Cut an RGB image into tiles, in an array from `zeros`, or NumPy. Resizing releases the interpreter lock."""
        width, height = image.size
        grid_height, grid_width = select_best_resolution(width, height, self.pinpoints)
        shape = (1 + grid_height * grid_width // self.size**2, self.size, self.size, 3)
        tiles = np.zeros(shape, np.uint8) if zeros is None else zeros(shape)
        tiles[0] = np.asarray(image.resize((self.size, self.size), self.resample))

        inner_width, inner_height = _fit_inside(width, height, grid_width, grid_height)
        inner = np.asarray(image.resize((inner_width, inner_height), self.resample))
        top, left = (grid_height - inner_height) // 2, (grid_width - inner_width) // 2
        corners = product(range(-top, grid_height - top, self.size), range(-left, grid_width - left, self.size))
        for tile, (y, x) in zip(tiles[1:], corners, strict=True):  # without a padded copy of the whole grid
            part = inner[max(y, 0) : max(y + self.size, 0), max(x, 0) : max(x + self.size, 0)]
            tile[max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1]] = part
        return Prepared(tiles, width, height, self.tokens(width, height))

    def layout(self, width: int, height: int) -> "Layout":
        """Return how the features of an image's grid become tokens: padding cropped, shrunk when large."""
        grid_height, grid_width = select_best_resolution(width, height, self.pinpoints)
        rows = self.patches * (grid_height // self.size)
        columns = self.patches * (grid_width // self.size)
        top = left = 0
        if width / height > columns / rows:
            top = (rows - int(round(height * (columns / width), 7))) // 2
        else:
            left = (columns - int(round(width * (rows / height), 7))) // 2
        rows, columns = rows - 2 * top, columns - 2 * left
        ratio = math.sqrt(rows * columns / (self.max_tiles * self.patches**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
        return Layout((grid_height // self.size, grid_width // self.size), top, left, rows, columns)

    def tokens(self, width: int, height: int) -> int:
        """Return the tokens of an image in the language model: base tile, grid, a newline per row of the grid."""
        layout = self.layout(width, height)
        return self.patches**2 + layout.rows * layout.columns + layout.rows


def select_best_resolution(width: int, height: int, pinpoints: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """Return the pinpoint (height, width) that keeps the most pixels of the image; among equals, the smallest waste."""
    best, most_kept, least_wasted = pinpoints[0], 0, math.inf
    for grid_height, grid_width in pinpoints:
        scale = min(grid_width / width, grid_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        wasted = grid_height * grid_width - kept
        if kept > most_kept or (kept == most_kept and wasted < least_wasted):
            best, most_kept, least_wasted = (grid_height, grid_width), kept, wasted
    return best


def _fit_inside(width: int, height: int, grid_width: int, grid_height: int) -> tuple[int, int]:
    """Return the (width, height) of an image scaled to fit into a grid."""
    scale_width, scale_height = grid_width / width, grid_height / height
    if scale_width < scale_height:
        return grid_width, min(math.ceil(height * scale_width), grid_height)
    return min(math.ceil(width * scale_height), grid_width), grid_height
