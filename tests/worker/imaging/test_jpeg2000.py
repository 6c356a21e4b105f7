"""Small JPEG 2000 files cannot make the decoder allocate much memory."""

import struct
from pathlib import Path

import pytest

from qsit.errors import ImageError
from qsit.states import Reason
from tests.support.decode_memory import measured
from tests.support.samples import HEIGHT, WIDTH, every_sample
from worker.imaging.decode import decode
from worker.imaging.jpeg2000 import CODESTREAM


def of_size(width: int, height: int, tile: tuple[int, int] | None = None, *, container: bool = True) -> bytes:
    """Return the sample with a larger size in its headers."""
    data = bytearray(every_sample()["JPEG2000"])
    offset = data.index(CODESTREAM) + 8
    struct.pack_into(">II", data, offset, width, height)
    struct.pack_into(">II", data, offset + 16, *(tile or (width, height)))
    if container:
        struct.pack_into(">II", data, data.index(b"ihdr") + 4, height, width)
    return bytes(data)


def with_blocks(data: bytes, exponent: int) -> bytes:
    """Set the side of the code-blocks to 4 * 2 ** exponent."""
    offset = data.index(b"\xff\x52") + 10
    return data[:offset] + bytes([exponent, exponent]) + data[offset + 2 :]


def with_precincts(data: bytes, exponent: int) -> bytes:
    """Set the side of the precincts to 2 ** exponent at every resolution."""
    offset = data.index(b"\xff\x52")
    length, style, levels = struct.unpack_from(">HB4xB", data, offset + 2)
    sizes = bytes([exponent * 17]) * (levels + 1)
    start = data[:offset] + b"\xff\x52" + struct.pack(">HB", length + len(sizes), style | 1)
    return start + data[offset + 5 : offset + 2 + length] + sizes + data[offset + 2 + length :]


@pytest.mark.parametrize(
    "data",
    [
        of_size(60_000, 60_000),
        of_size(60_000, 60_000, container=False),
        with_blocks(of_size(14_000, 14_000), 0),
        with_precincts(of_size(14_000, 14_000), 0),
        of_size(65_535, 1, (1, 1)),
    ],
    ids=["pixels", "pixels of the codestream", "blocks", "precincts", "tiles"],
)
def test_files_that_would_take_gigabytes_are_refused(data: bytes, tmp_path: Path) -> None:
    outcome, grown = measured(data, tmp_path)

    assert outcome == Reason.TOO_LARGE
    assert grown < 30


@pytest.mark.parametrize("data", [with_blocks(of_size(4000, 4000), 1), with_precincts(of_size(4000, 4000), 5)])
def test_small_parts_in_reasonable_numbers_are_accepted(data: bytes, tmp_path: Path) -> None:
    assert measured(data, tmp_path)[0] == Reason.CORRUPT, "it has fewer pixels than its header says"


def test_more_than_four_channels_are_unsupported() -> None:
    data = bytearray(every_sample()["JPEG2000"])
    struct.pack_into(">H", data, data.index(CODESTREAM) + 40, 16_384)

    with pytest.raises(ImageError, match="16384 channels") as error:
        decode(bytes(data), max_pixels=10_000)
    assert error.value.reason is Reason.UNSUPPORTED


def test_a_tile_part_length_that_leads_backwards_does_not_loop() -> None:
    data = bytearray(every_sample()["JPEG2000, codestream"])
    offset = data.index(b"\xff\x90")
    struct.pack_into(">I", data, offset + 6, 12)

    with pytest.raises(ImageError):
        decode(bytes(data), max_pixels=10_000)
    assert decode(every_sample()["JPEG2000, codestream"], max_pixels=10_000).size == (WIDTH, HEIGHT)
