"""Check a file before a decoder gets it, where the decoder itself checks too late or not at all."""

import io
import struct
from typing import Any

from PIL import ExifTags
from PIL.TiffImagePlugin import COMPRESSION_INFO, MAX_SAMPLESPERPIXEL, ImageFileDirectory_v2

from qsit.errors import ImageError
from qsit.states import Reason
from worker.imaging.formats import unsupported

MAX_SIDE = 1_000_000
"""In pixels. Pillow's resize allocates a table of 32 bytes per pixel of a side."""
HEIF_PADDING = 64
HEIF_SIZE = b"\0\0\0\x14ispe\0\0\0\0"
DNG_VERSION = 50706
SUBFILE_TYPE, OLD_SUBFILE_TYPE = 254, 255
CFA, LINEAR_RAW = 32803, 34892


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise ImageError when an image has more pixels than allowed, or a side is too long."""
    size = f"{width} x {height} pixels"
    if width * height > max_pixels:
        raise ImageError(Reason.TOO_LARGE, f"{size} are more than the limit of {max_pixels:,} (QSIT_MAX_PIXELS)")
    if max(width, height) > MAX_SIDE:
        raise ImageError(Reason.TOO_LARGE, f"{size}: a side is longer than the limit of {MAX_SIDE:,}")


def check_webp(data: bytes, max_pixels: int) -> None:
    """Check the canvas, for which the decoder allocates memory as soon as it opens the file."""
    if data[12:16] == b"VP8X" and len(data) >= 30:
        width, height = (1 + int.from_bytes(data[offset : offset + 3], "little") for offset in (24, 27))
        check_size(width, height, max_pixels)


def check_isobmff(data: bytes, _: int) -> None:
    """Refuse a truncated HEIC or AVIF, in which the decoder would leave the missing tiles black."""
    offset = 0
    while len(header := data[offset : offset + 16]) >= 8:
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        if header[4:8] == b"mdat" and offset + length > len(data):
            raise ImageError(Reason.CORRUPT, "the file is truncated")
        offset += length if length >= 8 else len(data)


def check_heif(data: bytes, max_pixels: int) -> None:
    """Check every size in the file: the decoded picture may be far larger than the crop that is shown."""
    check_isobmff(data, max_pixels)
    offset = data.find(HEIF_SIZE)
    while offset >= 0:
        offset += len(HEIF_SIZE)
        width, height = struct.unpack_from(">2I", data, offset)
        if (width - HEIF_PADDING) * (height - HEIF_PADDING) > max_pixels:  # padding is always cropped
            check_size(width, height, max_pixels)
        offset = data.find(HEIF_SIZE, offset)


def check_tiff(data: bytes, max_pixels: int) -> None:
    """Refuse raw files, which look like TIFFs with a small preview first, and tiles larger than the limit."""
    file = io.BytesIO(data)
    tags = ImageFileDirectory_v2(file.read(16 if data[2] == 43 else 8))  # BigTIFF's header is longer
    file.seek(tags.next)
    tags.load(file)
    if DNG_VERSION in tags:
        raise unsupported("raw (DNG)")
    if read_integer(tags, SUBFILE_TYPE) & 1 or read_integer(tags, OLD_SUBFILE_TYPE) == 2 or data[8:10] == b"CR":
        raise unsupported("TIFF that begins with a preview, as raw files do,")
    if read_integer(tags, ExifTags.Base.PhotometricInterpretation) in (CFA, LINEAR_RAW):
        raise unsupported("raw")
    if (channels := read_integer(tags, ExifTags.Base.SamplesPerPixel)) > MAX_SAMPLESPERPIXEL:
        raise unsupported(f"TIFF with {channels} channels")
    if (compression := read_integer(tags, ExifTags.Base.Compression, 1)) not in COMPRESSION_INFO:
        raise unsupported(f"TIFF with compression {compression}")
    has_size = tags.keys() >= {ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength}
    if not has_size or not tags.keys() & {ExifTags.Base.StripOffsets, ExifTags.Base.TileOffsets}:
        raise ImageError(Reason.CORRUPT, "the file is corrupt: the TIFF's size or pixel offsets are missing")
    tile = read_integer(tags, ExifTags.Base.TileWidth), read_integer(tags, ExifTags.Base.TileLength)
    check_size(*tile, max_pixels)


def read_integer(tags: Any, tag: int, default: int = 0) -> int:
    """Return the first value of a TIFF tag, or the default when it is absent or not an integer."""
    value = tags.get(tag, default)
    if isinstance(value, tuple) and value:
        value = value[0]
    return value if isinstance(value, int) else default
