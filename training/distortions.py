"""What makes a photo worse, from severity 0, which leaves it as it is, to 1.

Severities are set on photos of 1024 pixels and scale with the photo: blur, motion and rescaling reach as far, measured
in the photo's longer side; `scale` is that side over 1024. Grain and compression blocks grow with larger photos; in
smaller ones they keep their size, as they do in a camera's.
"""

import io
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

REFERENCE = 1024
"""Pixels of the longer side."""

Distortion = Callable[[Image.Image, float, np.random.Generator, float], Image.Image]
Pixels = NDArray[np.float32]


def blur(image: Image.Image, severity: float, _: np.random.Generator, scale: float) -> Image.Image:
    """Gaussian, of up to 6 pixels' standard deviation."""
    return image.filter(ImageFilter.GaussianBlur(6 * severity**1.3 * scale))


def motion(image: Image.Image, severity: float, rng: np.random.Generator, scale: float) -> Image.Image:
    """Along a line of up to 32 pixels, in any direction."""
    length, angle = 32 * severity**1.2 * scale, rng.uniform(0, math.pi)
    pixels: Pixels = _pixels(image)
    for halving in range(1, 7):  # each step blends with a copy: together, 64 copies evenly along the line
        part = length / 2**halving
        pixels = (pixels + _shifted(pixels, round(part * math.cos(angle)), round(part * math.sin(angle)))) * np.float32(
            0.5
        )
    return _image(pixels)


def noise(image: Image.Image, severity: float, rng: np.random.Generator, scale: float) -> Image.Image:
    """
    Gaussian, of up to 0.15 of full scale, in a random part the same in all channels.

    That part is what stays of it in a JPEG with colours at half the size.
    """
    width, height = _at_reference(image, scale)
    grey = rng.random()
    shared, own = rng.normal(size=(height, width, 1)), rng.normal(size=(height, width, 3))
    grain = 255 * 0.15 * severity**1.3 * (math.sqrt(grey) * shared + math.sqrt(1 - grey) * own)
    return _image(_pixels(image) + _enlarged(grain.astype(np.float32), image.size))


def jpeg(image: Image.Image, severity: float, _: np.random.Generator, scale: float) -> Image.Image:
    """Of quality 70 down to 4."""
    return _compressed(image, scale, "JPEG", quality=round(70 * (4 / 70) ** severity)) if severity else image


def webp(image: Image.Image, severity: float, _: np.random.Generator, scale: float) -> Image.Image:
    """Of quality 60 down to 0."""
    return _compressed(image, scale, "WEBP", quality=round(60 * (1 - severity) ** 1.5)) if severity else image


def rescaling(image: Image.Image, severity: float, _: np.random.Generator, scale: float) -> Image.Image:
    """Shrunk to as little as an eighth, and enlarged again."""
    factor = 1 + 7 * severity**1.2 * scale
    small = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    return image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def underexposure(image: Image.Image, severity: float, _: np.random.Generator, _scale: float) -> Image.Image:
    """By up to five stops."""
    return exposed(image, -5 * severity)


def overexposure(image: Image.Image, severity: float, _: np.random.Generator, _scale: float) -> Image.Image:
    """By up to four stops, what is too bright clipped."""
    return exposed(image, 4 * severity)


def contrast(image: Image.Image, severity: float, _: np.random.Generator, _scale: float) -> Image.Image:
    """Down to a tenth, around the mean."""
    pixels = _pixels(image)
    mean = pixels.mean()
    return _image(mean + (pixels - mean) * (1 - 0.9 * severity**0.7))


def cast(image: Image.Image, severity: float, rng: np.random.Generator, _scale: float) -> Image.Image:
    """Of a random hue: channels are multiplied with up to 2.7, or divided by it, at the same brightness."""
    angle = rng.uniform(0, 2 * math.pi)
    gains = np.exp(severity**0.8 * np.cos(angle + np.array([0, 2, 4]) * math.pi / 3)).astype(np.float32)
    brightness = gains @ np.array([0.299, 0.587, 0.114], np.float32)
    return _image(_pixels(image) * (gains / brightness))


DISTORTIONS: dict[str, Distortion] = {
    each.__name__: each
    for each in (
        blur, motion, noise, jpeg, webp, rescaling, underexposure, overexposure, contrast, cast,
    )
}  # fmt: skip


def distort(name: str, image: Image.Image, severity: float, rng: np.random.Generator) -> Image.Image:
    """A copy of a whole photo, of the same size."""
    return DISTORTIONS[name](image, severity, rng, max(image.size) / REFERENCE)


def _at_reference(image: Image.Image, scale: float) -> tuple[int, int]:
    """The size of what a larger photo would show at the reference."""
    scale = max(1.0, scale)
    return round(image.width / scale), round(image.height / scale)


def _compressed(image: Image.Image, scale: float, kind: str, *, quality: int) -> Image.Image:
    """What compression at the reference size changes is enlarged, and added."""
    small = image.resize(_at_reference(image, scale), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, kind, quality=quality)
    with Image.open(buffer) as opened:
        lossy = opened.convert("RGB")
    if small.size == image.size:
        return lossy
    return _image(_pixels(image) + _enlarged(_pixels(lossy) - _pixels(small), image.size))


def exposed(image: Image.Image, stops: float) -> Image.Image:
    """In linear light, as a longer or shorter exposure would."""
    encoded = np.arange(256) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    linear = np.minimum(linear * 2**stops, 1)
    table = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return image.point(list(np.rint(table * 255).astype(int)) * 3)


def _shifted(pixels: Pixels, right: int, down: int) -> Pixels:
    """What moves out of the image is dropped, the edge repeated."""
    height, width = pixels.shape[:2]
    rows, columns = np.clip(np.arange(height) - down, 0, height - 1), np.clip(np.arange(width) - right, 0, width - 1)
    return pixels[rows][:, columns]


def _enlarged(change: Pixels, size: tuple[int, int]) -> Pixels:
    if change.shape[1::-1] == size:
        return change
    channels = (Image.fromarray(change[:, :, channel]) for channel in range(3))
    return np.dstack([np.asarray(channel.resize(size, Image.Resampling.BICUBIC)) for channel in channels])


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image, np.float32)


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
