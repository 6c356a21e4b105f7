"""What must be known of a file before a decoder is given it, because the decoder would not say so in time."""

import io
import struct
from typing import Any

from PIL import ExifTags
from PIL.TiffImagePlugin import COMPRESSION_INFO, MAX_SAMPLESPERPIXEL, ImageFileDirectory_v2

from qsit.errors import ImageError
from qsit.states import Reason
from worker.imaging.formats import unsupported

MAX_SIDE = 1_000_000
"""In pixels: to shrink a photo, Pillow makes a table of 32 bytes for each pixel of a side."""

HEIF_PADDING = 64
HEIF_SIZE = b"\0\0\0\x14ispe\0\0\0\0"
TIFF_PIXELS = (
    {ExifTags.Base.ImageWidth},
    {ExifTags.Base.ImageLength},
    {ExifTags.Base.StripOffsets, ExifTags.Base.TileOffsets},
)
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


def check_whole(data: bytes, _: int) -> None:
    """Of HEIC cut into tiles, those that are missing at its end would be black; AVIF is built in the same way."""
    place = 0
    while len(header := data[place : place + 16]) >= 8:
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        if header[4:8] == b"mdat" and place + length > len(data):
            raise ImageError(Reason.CORRUPT, "the data is broken: it ends before the picture does")
        place += length if length >= 8 else len(data)


def check_heif(data: bytes, max_pixels: int) -> None:
    """What is decoded may be far more than what is left when it has been cropped, as padding always is."""
    check_whole(data, max_pixels)
    place = data.find(HEIF_SIZE)
    while place >= 0:
        place += len(HEIF_SIZE)
        width, height = struct.unpack_from(">2I", data, place)
        if (width - HEIF_PADDING) * (height - HEIF_PADDING) > max_pixels:
            check_size(width, height, max_pixels)
        place = data.find(HEIF_SIZE, place)


def check_tiff(data: bytes, max_pixels: int) -> None:
    """Raw files are TIFFs by their look, with a small preview first; and tiles may be larger than the image."""
    tags = _first_directory(data)
    if DNG_VERSION in tags:
        raise unsupported("a raw file (DNG)")
    if number(tags, SUBFILE_TYPE) & 1 or number(tags, OLD_SUBFILE_TYPE) == 2 or data[8:10] == b"CR":
        raise unsupported("a TIFF that begins with a preview, as raw files do,")
    if number(tags, ExifTags.Base.PhotometricInterpretation) in (CFA, LINEAR_RAW):
        raise unsupported("a raw file")
    if (channels := number(tags, ExifTags.Base.SamplesPerPixel)) > MAX_SAMPLESPERPIXEL:
        raise unsupported(f"TIFF of {channels} channels")
    if (compression := number(tags, ExifTags.Base.Compression, 1)) not in COMPRESSION_INFO:
        raise unsupported(f"TIFF of compression {compression}")
    if not all(tags.keys() & place for place in TIFF_PIXELS):
        raise ImageError(Reason.CORRUPT, "the data is broken: the directory of its pixels is missing")
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
