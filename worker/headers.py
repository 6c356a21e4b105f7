"""What must be known of a file before a decoder is given it, because the decoder would not say so in time."""

import io
import struct
from typing import Any

from PIL import ExifTags
from PIL.TiffImagePlugin import MAX_SAMPLESPERPIXEL, ImageFileDirectory_v2

from models.errors import ImageError
from models.states import Reason
from worker.kinds import not_read

MAX_SIDE = 1_000_000
"""In pixels: to shrink a photo, Pillow makes a table of 32 bytes for each pixel of a side."""

HEIF_PADDING = 64
HEIF_SIZE = b"\0\0\0\x14ispe\0\0\0\0"
CODESTREAM = b"\xff\x4f\xff\x51"
DNG_VERSION = 50706
SUBFILE_TYPE, OLD_SUBFILE_TYPE = 254, 255
CFA, LINEAR_RAW = 32803, 34892


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises ImageError when an image has more pixels than the limits allow."""
    if width * height > max_pixels:
        raise ImageError(
            Reason.TOO_LARGE,
            f"{width} x {height} pixels are more than the limit of {max_pixels:,} (QSIT_MAX_PIXELS)",
        )
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            Reason.TOO_LARGE, f"{width} x {height} pixels: a side is longer than the limit of {MAX_SIDE:,}"
        )


def check_webp(data: bytes, max_pixels: int) -> None:
    """Its decoder sets memory aside for the whole canvas as soon as it is opened."""
    if data[12:16] == b"VP8X" and len(data) >= 30:
        width, height = (1 + int.from_bytes(data[place : place + 3], "little") for place in (24, 27))
        check_size(width, height, max_pixels)


def check_heif(data: bytes, max_pixels: int) -> None:
    """What is decoded may be far more than what is left when it has been cropped, as padding always is."""
    place = data.find(HEIF_SIZE)
    while place >= 0:
        place += len(HEIF_SIZE)
        width, height = struct.unpack_from(">2I", data, place)
        if (width - HEIF_PADDING) * (height - HEIF_PADDING) > max_pixels:
            check_size(width, height, max_pixels)
        place = data.find(HEIF_SIZE, place)


def check_jpeg2000(data: bytes, max_pixels: int) -> None:
    """
    Pillow goes by the size in the container, but what is decoded is that of the codestream. Colours of more than 8
    bits are refused: Pillow 13 rounds the brightest of them up to 256, and shows them black.
    """
    start = data.index(CODESTREAM)
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    check_size(right - left, bottom - top, max_pixels)
    components, depth = struct.unpack_from(">HB", data, start + 40)
    if components > 1 and depth & 127 > 7:
        raise not_read("JPEG 2000 with more than 8 bits a colour")


def profile_of_jpeg2000(data: bytes) -> bytes | None:
    """Its ICC profile, which Pillow passes over."""
    place = data.find(b"colr", 0, data.index(CODESTREAM))
    if place < 4 or data[place + 4 : place + 5] != b"\2":
        return None
    return data[place + 7 : place - 4 + int.from_bytes(data[place - 4 : place], "big")]


def check_tiff(data: bytes, max_pixels: int) -> None:
    """Raw files are TIFFs by their look, with a small preview first; and tiles may be larger than the image."""
    tags = _first_directory(data)
    if DNG_VERSION in tags:
        raise not_read("a raw file (DNG)")
    if number(tags, SUBFILE_TYPE) & 1 or number(tags, OLD_SUBFILE_TYPE) == 2 or data[8:10] == b"CR":
        raise not_read("a TIFF that begins with a preview, as raw files do,")
    if number(tags, ExifTags.Base.PhotometricInterpretation) in (CFA, LINEAR_RAW):
        raise not_read("a raw file")
    if (channels := number(tags, ExifTags.Base.SamplesPerPixel)) > MAX_SAMPLESPERPIXEL:
        raise not_read(f"TIFF of {channels} channels")
    tile = number(tags, ExifTags.Base.TileWidth), number(tags, ExifTags.Base.TileLength)
    check_size(*tile, max_pixels)


def number(tags: Any, tag: int, default: int = 0) -> int:
    """The value of a TIFF tag, or the first of its values, if that is a whole number."""
    value = tags.get(tag, default)
    if isinstance(value, tuple) and value:
        value = value[0]
    return value if isinstance(value, int) else default


def _first_directory(data: bytes) -> ImageFileDirectory_v2:
    file = io.BytesIO(data)
    tags = ImageFileDirectory_v2(file.read(16 if data[2] == 43 else 8))
    file.seek(tags.next)
    tags.load(file)
    return tags
