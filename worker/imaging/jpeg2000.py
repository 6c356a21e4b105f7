"""Read what Pillow does not ask of a JPEG 2000 file: the size and parts of its codestream, and its profile."""

import struct
from collections.abc import Iterator

from qsit.errors import ImageError
from qsit.states import Reason
from worker.imaging.formats import unsupported
from worker.imaging.limits import check_size

SIZ, COD, COC, SOT, SOD = 0x51, 0x52, 0x53, 0x90, 0x93
"""Markers of the standard: image size, coding style, that of a component, start of a tile-part, start of data."""
CODESTREAM = b"\xff\x4f\xff\x51"


def check_jpeg2000(data: bytes, max_pixels: int) -> None:
    """
    Raise ImageError when decoding would take too much memory, or would give wrong colours.

    Pillow checks the container's size, but its decoder allocates that of the codestream: some hundred bytes for each
    code-block and precinct, and thousands for each tile. A small file can have millions of them. Colours of more than
    8 bits are refused because Pillow 13 rounds the brightest values up to 256, which wraps to black.
    """
    pixels = components = 0
    for marker, content in _read_segments(data):
        if marker == SIZ:
            right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", content, 2)
            components, depth = struct.unpack_from(">HB", content, 34)
            pixels = (right - left) * (bottom - top)
            check_size(right - left, bottom - top, max_pixels)
            if components > 4:
                raise unsupported(f"JPEG 2000 with {components} channels")
            if components > 1 and depth & 127 > 7:
                raise unsupported("JPEG 2000 with more than 8 bits per colour")
            _check_parts(-(-right // tile_width) * -(-bottom // tile_height), 1_000 + pixels // 1024)
        elif marker in (COD, COC):
            flags, style = (content[0], content[5:]) if marker == COD else (content[1], content[2:])
            _check_parts(components * _count_parts(style, pixels, flags & 1), 1_000_000 + pixels // 32)


def read_jpeg2000_profile(data: bytes) -> bytes | None:
    """Return the ICC profile of the container, which Pillow ignores."""
    offset = data.find(b"colr", 0, data.index(CODESTREAM))
    if offset < 4 or data[offset + 4 : offset + 5] != b"\2":
        return None
    return data[offset + 7 : offset - 4 + int.from_bytes(data[offset - 4 : offset], "big")]


def _check_parts(parts: int, limit: int) -> None:
    if parts > limit:
        raise ImageError(Reason.TOO_LARGE, f"it has {parts:,} tiles or code-blocks, too many for its size")


def _read_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of each segment in the main header and the headers of the tile-parts."""
    offset, tile_part, tile_part_length = data.index(CODESTREAM) + 2, 0, 0
    while offset + 4 <= len(data):
        prefix, marker, length = struct.unpack_from(">BBH", data, offset)
        if prefix != 0xFF:
            return
        if marker == SOD:
            if tile_part + tile_part_length <= offset:
                return  # the last tile-part, or one whose length leads backwards
            offset = tile_part + tile_part_length
            continue
        content = data[offset + 4 : offset + 2 + length]
        if marker == SOT:
            tile_part, tile_part_length = offset, struct.unpack_from(">I", content, 2)[0]
        yield marker, content
        offset += 2 + length


def _count_parts(style: bytes, pixels: int, has_precincts: int) -> int:
    """
    Return the code-blocks and precincts of one component.

    style: levels, exponents of the code-block's sides, two other bytes, sides of the precincts per resolution.
    """
    blocks = pixels >> (min(style[1], 8) + 2 + min(style[2], 8) + 2)
    if not has_precincts:
        return blocks
    sizes = style[5 : 6 + style[0]]  # smallest resolution first
    return blocks + sum(
        (pixels >> 2 * (len(sizes) - 1 - level)) >> ((size & 15) + (size >> 4)) for level, size in enumerate(sizes)
    )
