"""Make many images to distort from few photos: parts of photos, and collages of parts."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from training.distortions import expose
from training.sizes import REFERENCE, TILE

SHAPES = ((4, 3), (3, 4), (3, 2), (2, 3), (1, 1), (16, 9))
SMALLEST = 320
"""The shortest longer side, in pixels."""
PIECES = 6
"""The most pieces of a collage, without its background."""
GAMMA = 2.2
"""The exponent from pixel values to light."""


def make_scene(photos: Sequence[Path], rng: np.random.Generator) -> Image.Image:
    """Make an undistorted image. Half are collages; two thirds have varied parts, and half of these are relit."""
    make, chance = make_collage if rng.random() < 0.5 else cut_photo, rng.random()
    image = make(photos, rng, vary=chance < 2 / 3)
    return relight(image, rng) if chance < 1 / 3 else image


def cut_photo(photos: Sequence[Path], rng: np.random.Generator, *, vary: bool = False) -> Image.Image:
    """Cut a part of one photo."""
    return _cut(photos, choose_size(rng), rng, vary)


def make_collage(photos: Sequence[Path], rng: np.random.Generator, *, vary: bool) -> Image.Image:
    """Put sharp pieces of photos on a part of another photo, which is sometimes blurred, as if out of focus."""
    wanted = choose_size(rng)
    canvas = _cut(photos, wanted, rng, vary)
    if canvas.size != wanted:
        canvas = ImageOps.fit(canvas, wanted, Image.Resampling.BICUBIC)
    elif rng.random() < 0.3:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(2, 8)))
    for _ in range(rng.integers(1, PIECES, endpoint=True)):
        width, height = (int(side * rng.uniform(0.2, 0.8)) for side in wanted)
        piece = _cut(photos, (width, height), rng, vary)
        left, top = (
            round(rng.uniform(-0.2 * part, side - 0.8 * part)) for part, side in zip(piece.size, wanted, strict=True)
        )
        canvas.paste(piece, (left, top), _make_outline(piece.size, rng))
    return canvas


def choose_size(rng: np.random.Generator) -> tuple[int, int]:
    """Choose width and height. Half have the full size; most of the smaller ones are multiples of a tile."""
    shape, chance = SHAPES[rng.integers(len(SHAPES))], rng.random()
    longer = float(REFERENCE)
    if chance < 0.5:
        longer = SMALLEST * (REFERENCE / SMALLEST) ** rng.random()
    if chance < 0.35:
        longer = TILE * round(longer / TILE)  # the model sees multiples of a tile pixel by pixel
    return round(longer * shape[0] / max(shape)), round(longer * shape[1] / max(shape))


def vary_look(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Make a part look like another photo: change orientation, colors, exposure, contrast or sharpness."""
    if rng.random() < 0.7:
        image = image.transpose(Image.Transpose(int(rng.integers(len(Image.Transpose)))))
    if rng.random() < 0.5:
        image = expose(image, float(np.clip(rng.normal(0, 0.4), -0.8, 0.8)))
    if rng.random() < 0.7:
        pixels = np.asarray(image, np.float32)
        if rng.random() < 0.3:
            pixels = pixels[:, :, rng.permutation(3)]
        grey = pixels.mean(axis=2, keepdims=True)
        pixels = grey + (pixels - grey) * np.float32(0 if rng.random() < 0.1 else rng.uniform(0.5, 1.4))
        pixels = pixels.mean() + (pixels - pixels.mean()) * np.float32(rng.uniform(0.75, 1.2))
        pixels = pixels * np.exp(rng.normal(0, 0.05, 3)).astype(np.float32)
        image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    chance = rng.random()
    if chance < 0.25:
        return image.filter(ImageFilter.UnsharpMask(rng.uniform(0.5, 1.5), int(rng.uniform(0, 80)), 0))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.5))) if chance < 0.4 else image


def relight(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change the light: make parts up to three stops darker than others, tint them, or blur them."""
    if rng.random() < 0.3:
        soft = image.filter(ImageFilter.GaussianBlur(rng.uniform(2, 8)))
        image = Image.composite(image, soft, _make_focus_mask(image.size, rng))
    pixels = np.asarray(image, np.float32) / 255
    if rng.random() < 0.5:
        pixels = pixels ** np.float32(np.exp(rng.normal(0, 0.3)))
    if rng.random() < 0.6:
        stops = rng.uniform(0, 3) * _make_field(image.size, rng)
        pixels = pixels * np.exp2(-(stops - stops.min()) / GAMMA)[:, :, None]
    if rng.random() < 0.5:
        reach = rng.uniform(0, 0.5)
        pixels = pixels * np.exp2(np.dstack([reach * _make_field(image.size, rng) for _ in range(3)]) / GAMMA)
    return Image.fromarray(np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8))


@lru_cache
def open_photo(photo: Path) -> Image.Image:
    """Return the pixels of a photo."""
    with Image.open(photo) as file:
        return file.convert("RGB")


def _cut(photos: Sequence[Path], wanted: tuple[int, int], rng: np.random.Generator, vary: bool) -> Image.Image:
    """Cut a part of a random photo. It has the wanted size, or only the shape where the photo is too small."""
    photo = open_photo(photos[int(rng.integers(len(photos)))])
    least = 2 if max(photo.size) > 1500 else 1  # large photos are not sharp at single pixels
    most = min(photo.width / wanted[0], photo.height / wanted[1])
    fits = min(1, most / least)
    width, height = (max(1, int(side * fits)) for side in wanted)
    shrunk = least * max(1, most / least) ** rng.random()
    left = rng.uniform(0, max(0, photo.width - width * shrunk))
    top = rng.uniform(0, max(0, photo.height - height * shrunk))
    box = (left, top, min(photo.width, left + width * shrunk), min(photo.height, top + height * shrunk))
    part = photo.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=3)
    return vary_look(part, rng) if vary else part


def _make_outline(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Return a mask with soft edges: a rectangle, an ellipse or a polygon."""
    mask = Image.new("L", size)
    draw, chance = ImageDraw.Draw(mask), rng.random()
    if chance < 0.4:
        draw.rectangle((0, 0, *size), fill=255)
    elif chance < 0.7:
        draw.ellipse((0, 0, size[0] - 1, size[1] - 1), fill=255)
    else:
        corners = int(rng.integers(3, 8))
        angles, reach = np.sort(rng.uniform(0, 2 * math.pi, corners)), rng.uniform(0.5, 1, corners)
        right, down = size[0] / 2 * (1 + reach * np.cos(angles)), size[1] / 2 * (1 + reach * np.sin(angles))
        draw.polygon(list(zip(right.tolist(), down.tolist(), strict=True)), fill=255)
    return mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))


def _make_field(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a smooth random field of this width and height, with values from about -0.5 to 0.5."""
    few = rng.uniform(-0.5, 0.5, rng.integers(2, 6, 2)).astype(np.float32)
    return np.asarray(Image.fromarray(few).resize(size, Image.Resampling.BICUBIC))


def _make_focus_mask(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Return a mask of about half of the image: the part in focus."""
    return Image.fromarray(np.clip(127 + 2000 * _make_field(size, rng), 0, 255).astype(np.uint8))
