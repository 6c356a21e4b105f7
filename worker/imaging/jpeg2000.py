"""What a JPEG 2000 file says of itself that Pillow does not ask for."""

import struct
from collections.abc import Iterator

from qsit.errors import ImageError
from qsit.states import Reason
from worker.imaging.formats import unsupported
from worker.imaging.limits import check_size

SIZE, CODING, CODING_OF_COLOUR, TILE_PART, DATA = 0x51, 0x52, 0x53, 0x90, 0x93
CODESTREAM = b"\xff\x4f\xff\x51"


def check_jpeg2000(data: bytes, max_pixels: int) -> None:
    """
    Pillow goes by the size in the container, but what is decoded is that of the codestream, whose decoder keeps some
    hundred bytes of each block and precinct, and thousands of each tile; a small file can have millions of them.
    Colours of more than 8 bits are refused: Pillow 13 rounds the brightest of them up to 256, and shows them black.
    """
    pixels = components = 0
    for marker, content in _segments(data):
        if marker == SIZE:
            right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", content, 2)
            components, depth = struct.unpack_from(">HB", content, 34)
            pixels = (right - left) * (bottom - top)
            check_size(right - left, bottom - top, max_pixels)
            if components > 4:
                raise unsupported(f"JPEG 2000 of {components} channels")
            if components > 1 and depth & 127 > 7:
                raise unsupported("JPEG 2000 with more than 8 bits a colour")
            _check_parts(-(-right // tile_width) * -(-bottom // tile_height), 1_000 + pixels // 1024)
        elif marker == CODING:
            _check_parts(components * _parts(content[5:], pixels, content[0] & 1), 1_000_000 + pixels // 32)
        elif marker == CODING_OF_COLOUR:
            _check_parts(components * _parts(content[2:], pixels, content[1] & 1), 1_000_000 + pixels // 32)


def _check_parts(parts: int, limit: int) -> None:
    if parts > limit:
        raise ImageError(Reason.TOO_LARGE, f"it is cut into {parts:,} parts, which is more than its size allows")


def profile_of_jpeg2000(data: bytes) -> bytes | None:
    """Its ICC profile, which Pillow passes over."""
    place = data.find(b"colr", 0, data.index(CODESTREAM))
    if place < 4 or data[place + 4 : place + 5] != b"\2":
        return None
    return data[place + 7 : place - 4 + int.from_bytes(data[place - 4 : place], "big")]


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Markers and their content: of the main header, and of the header of each part of a tile."""
    place, part, length_of_part = data.index(CODESTREAM) + 2, 0, 0
    while place + 4 <= len(data):
        mark, marker, length = struct.unpack_from(">BBH", data, place)
        if mark != 0xFF:
            return
        if marker == DATA:
            if part + length_of_part <= place:
                return  # this part goes to the end, or pretends to have been before
            place = part + length_of_part
            continue
        content = data[place + 4 : place + 2 + length]
        if marker == TILE_PART:
            part, length_of_part = place, struct.unpack_from(">I", content, 2)[0]
        yield marker, content
        place += 2 + length


def _parts(style: bytes, pixels: int, has_precincts: int) -> int:
    """Blocks and precincts of one colour: `style` is levels, sizes of blocks, two bytes, sizes of precincts."""
    blocks = pixels >> (min(style[1], 8) + 2 + min(style[2], 8) + 2)
    if not has_precincts:
        return blocks
    sizes = style[5 : 6 + style[0]]  # of the smallest resolution first
    return blocks + sum(
        (pixels >> 2 * (len(sizes) - 1 - level)) >> ((size & 15) + (size >> 4)) for level, size in enumerate(sizes)
    )
