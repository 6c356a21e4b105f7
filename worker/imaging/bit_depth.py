"""Scale 12, 16 or 32 bits per pixel to 8; Pillow's own conversion would clip."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from worker.imaging.limits import read_integer

SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
HIGH_BIT_DEPTH_MODES = (*SIXTEEN_BIT_MODES, "I", "F")


def scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a grey image of a high bit depth to mode L. Its transparent value, if it has one, becomes white."""
    stored = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    bits = read_integer(tags, ExifTags.Base.BitsPerSample, 16)
    is_signed = read_integer(tags, ExifTags.Base.SampleFormat, 1) == 2
    if image.mode in SIXTEEN_BIT_MODES:
        grey = (stored >> (min(bits, 16) - 8)).astype(np.uint8)  # Pillow unpacks 12 bits without scaling them
    elif image.mode == "F":
        grey = _scale(np.nan_to_num(stored, nan=0.0, posinf=0.0, neginf=0.0), (1, 255, 65535))
    elif bits == 16:
        grey = _scale(stored, (32767,))
    elif is_signed:
        grey = _scale(stored, (255, 65535, 2**31 - 1))
    else:
        grey = _scale(stored.view(np.uint32), (255, 65535, 2**32 - 1))
    if read_integer(tags, ExifTags.Base.PhotometricInterpretation, 1) == 0:  # white is zero
        grey = 255 - grey
    if (transparent := image.info.get("transparency")) is not None:
        grey[stored == transparent] = 255
    return Image.fromarray(grey)


def _scale(values: NDArray[Any], white_levels: tuple[int, ...]) -> NDArray[np.uint8]:
    """
    Scale values so that white becomes 255.

    A file does not say which value is white. It is the first white level of which no value exceeds the double;
    sharpening may leave values a little above white.
    """
    brightest = float(values.max())
    white = next((level for level in white_levels if brightest <= 2 * level), max(brightest, 1.0))
    return (np.clip(values / white, 0, 1) * 255).round().astype(np.uint8)
