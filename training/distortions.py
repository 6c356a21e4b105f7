"""Distortions of photos, from severity 0, which changes nothing, to severity 1.

Severities are defined for photos whose longer side has 1024 pixels; `scale` is the longer side of a photo over 1024.
Blur, motion and rescaling scale with the photo. Grain and compression blocks grow with larger photos and keep their
size in smaller ones, as in photos of a camera.
"""

import io
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from training.sizes import REFERENCE

Distortion = Callable[[Image.Image, float, np.random.Generator, float], Image.Image]
Pixels = NDArray[np.float32]


def blur(image: Image.Image, severity: float, _: np.random.Generator, scale: float) -> Image.Image:
    """Blur with a Gaussian of up to 6 pixels standard deviation."""
    return image.filter(ImageFilter.GaussianBlur(6 * severity**1.3 * scale))


def motion(image: Image.Image, severity: float, rng: np.random.Generator, scale: float) -> Image.Image:
    """Blur along a line of up to 32 pixels in a random direction."""
    length, angle = 32 * severity**1.2 * scale, rng.uniform(0, math.pi)
    pixels: Pixels = _to_array(image)
    for halving in range(1, 7):  # each step blends with a shifted copy: 64 copies in all, evenly along the line
        part = length / 2**halving
        pixels = (pixels + _shift(pixels, round(part * math.cos(angle)), round(part * math.sin(angle)))) * np.float32(
            0.5
        )
    return _to_image(pixels)


def noise(image: Image.Image, severity: float, rng: np.random.Generator, scale: float) -> Image.Image:
    """
    Add Gaussian noise of up to 0.15 of full scale. A random share of it is the same in all channels.

    That share survives in a JPEG with colors at half the resolution.
    """
    width, height = _reference_size(image, scale)
    grey = rng.random()
    shared, own = rng.normal(size=(height, width, 1)), rng.normal(size=(height, width, 3))
    grain = 255 * 0.15 * severity**1.3 * (math.sqrt(grey) * shared + math.sqrt(1 - grey) * own)
    return _to_image(_to_array(image) + _enlarge(grain.astype(np.float32), image.size))


def jpeg(image: Image.Image, severity: float, _: np.random.Generator, scale: float) -> Image.Image:
    """Compress with a quality from 70 down to 4."""
    return _compress(image, scale, "JPEG", quality=round(70 * (4 / 70) ** severity)) if severity else image


def webp(image: Image.Image, severity: float, _: np.random.Generator, scale: float) -> Image.Image:
    """Compress with a quality from 60 down to 0."""
    return _compress(image, scale, "WEBP", quality=round(60 * (1 - severity) ** 1.5)) if severity else image


def rescaling(image: Image.Image, severity: float, _: np.random.Generator, scale: float) -> Image.Image:
    """Shrink to as little as an eighth and enlarge again."""
    factor = 1 + 7 * severity**1.2 * scale
    small = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    return image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def underexposure(image: Image.Image, severity: float, _: np.random.Generator, _scale: float) -> Image.Image:
    """Darken by up to five stops."""
    return expose(image, -5 * severity)


def overexposure(image: Image.Image, severity: float, _: np.random.Generator, _scale: float) -> Image.Image:
    """Brighten by up to four stops and clip."""
    return expose(image, 4 * severity)


def contrast(image: Image.Image, severity: float, _: np.random.Generator, _scale: float) -> Image.Image:
    """Reduce the contrast around the mean to as little as a tenth."""
    pixels = _to_array(image)
    mean = pixels.mean()
    return _to_image(mean + (pixels - mean) * (1 - 0.9 * severity**0.7))


def cast(image: Image.Image, severity: float, rng: np.random.Generator, _scale: float) -> Image.Image:
    """Tint with a random hue: multiply or divide channels by up to 2.7 at the same brightness."""
    angle = rng.uniform(0, 2 * math.pi)
    gains = np.exp(severity**0.8 * np.cos(angle + np.array([0, 2, 4]) * math.pi / 3)).astype(np.float32)
    brightness = gains @ np.array([0.299, 0.587, 0.114], np.float32)
    return _to_image(_to_array(image) * (gains / brightness))


DISTORTIONS: dict[str, Distortion] = {
    each.__name__: each
    for each in (blur, motion, noise, jpeg, webp, rescaling, underexposure, overexposure, contrast, cast)
}


def distort(name: str, image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """Return a distorted copy of a whole photo, of the same size."""
    return DISTORTIONS[name](image, severity, rng, max(image.size) / REFERENCE)


def _reference_size(image: Image.Image, scale: float) -> tuple[int, int]:
    """Return the size of a photo scaled down to the reference; a smaller photo keeps its size."""
    scale = max(1.0, scale)
    return round(image.width / scale), round(image.height / scale)


def _compress(image: Image.Image, scale: float, kind: str, *, quality: int) -> Image.Image:
    """Compress at the reference size, enlarge the changes, and add them."""
    small = image.resize(_reference_size(image, scale), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, kind, quality=quality)
    with Image.open(buffer) as opened:
        lossy = opened.convert("RGB")
    if small.size == image.size:
        return lossy
    return _to_image(_to_array(image) + _enlarge(_to_array(lossy) - _to_array(small), image.size))


def expose(image: Image.Image, stops: float) -> Image.Image:
    """Change the exposure in linear light, as a longer or shorter exposure time does."""
    encoded = np.arange(256) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    linear = np.minimum(linear * 2**stops, 1)
    table = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return image.point(list(np.rint(table * 255).astype(int)) * 3)


def _shift(pixels: Pixels, right: int, down: int) -> Pixels:
    """Shift pixels, repeating the edge."""
    height, width = pixels.shape[:2]
    rows, columns = np.clip(np.arange(height) - down, 0, height - 1), np.clip(np.arange(width) - right, 0, width - 1)
    return pixels[rows][:, columns]


def _enlarge(change: Pixels, size: tuple[int, int]) -> Pixels:
    if change.shape[1::-1] == size:
        return change
    channels = (Image.fromarray(change[:, :, channel]) for channel in range(3))
    return np.dstack([np.asarray(channel.resize(size, Image.Resampling.BICUBIC)) for channel in channels])


def _to_array(image: Image.Image) -> Pixels:
    return np.asarray(image, np.float32)


def _to_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
