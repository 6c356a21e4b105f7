"""From 12, 16 or 32 bits a pixel to 8: scaled, where Pillow's own conversion would clip."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from worker.imaging.limits import number

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
DEEP = (*SIXTEEN_BITS, "I", "F")


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, scaled from the range it is in; its transparent value, if it has one, becomes white."""
    stored = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    bits = number(tags, ExifTags.Base.BitsPerSample, 16)
    signed = number(tags, ExifTags.Base.SampleFormat, 1) == 2
    if image.mode in SIXTEEN_BITS:
        grey = (stored >> (min(bits, 16) - 8)).astype(np.uint8)  # Pillow unpacks 12 bits, and does not scale them
    elif image.mode == "F":
        grey = _scaled(np.nan_to_num(stored, nan=0.0, posinf=0.0, neginf=0.0), (1, 255, 65535))
    elif bits == 16:
        grey = _scaled(stored, (32767,))
    else:
        grey = _scaled(stored if signed else stored.view(np.uint32), (255, 65535, 2**31 - 1 if signed else 2**32 - 1))
    if number(tags, ExifTags.Base.PhotometricInterpretation, 1) == 0:  # white is zero
        grey = 255 - grey
    if (transparent := image.info.get("transparency")) is not None:
        grey[stored == transparent] = 255
    return Image.fromarray(grey)


def _scaled(values: NDArray[Any], whites: tuple[int, ...]) -> NDArray[np.uint8]:
    """Files do not say what white is: the first of `whites` whose double is not exceeded; a little over it is white."""
    brightest = float(values.max())
    white = next((white for white in whites if brightest <= 2 * white), max(brightest, 1.0))
    grey: NDArray[np.uint8] = (np.clip(values / white, 0, 1) * 255).round().astype(np.uint8)
    return grey
