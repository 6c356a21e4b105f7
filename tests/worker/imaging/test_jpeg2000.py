"""What small files of JPEG 2000 may not ask of their decoder."""

import struct
from pathlib import Path

import pytest

from qsit.errors import ImageError
from qsit.states import Reason
from tests.support.memory import measured
from tests.support.samples import HEIGHT, WIDTH, every_sample
from worker.imaging.decode import decode
from worker.imaging.jpeg2000 import CODESTREAM


def of_size(width: int, height: int, tile: tuple[int, int] | None = None, *, container: bool = True) -> bytes:
    """The sample, pretending to be larger."""
    data = bytearray(every_sample()["JPEG2000"])
    place = data.index(CODESTREAM) + 8
    struct.pack_into(">II", data, place, width, height)
    struct.pack_into(">II", data, place + 16, *(tile or (width, height)))
    if container:
        struct.pack_into(">II", data, data.index(b"ihdr") + 4, height, width)
    return bytes(data)


def with_blocks(data: bytes, exponent: int) -> bytes:
    """Cut into blocks of a side of 4 times two to the power of `exponent`."""
    place = data.index(b"\xff\x52") + 10
    return data[:place] + bytes([exponent, exponent]) + data[place + 2 :]


def with_precincts(data: bytes, exponent: int) -> bytes:
    """Cut into precincts of a side of two to the power of `exponent`, at each of its levels."""
    place = data.index(b"\xff\x52")
    length, style, levels = struct.unpack_from(">HB4xB", data, place + 2)
    sizes = bytes([exponent * 17]) * (levels + 1)
    start = data[:place] + b"\xff\x52" + struct.pack(">HB", length + len(sizes), style | 1)
    return start + data[place + 5 : place + 2 + length] + sizes + data[place + 2 + length :]


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
def test_what_would_take_gigabytes_is_refused(data: bytes, tmp_path: Path) -> None:
    outcome, grown = measured(data, tmp_path)

    assert outcome == Reason.TOO_LARGE
    assert grown < 30


@pytest.mark.parametrize("data", [with_blocks(of_size(4000, 4000), 1), with_precincts(of_size(4000, 4000), 5)])
def test_small_parts_alone_are_no_reason_to_refuse(data: bytes, tmp_path: Path) -> None:
    assert measured(data, tmp_path)[0] == Reason.CORRUPT, "it has not the pixels that it says"


def test_channels_that_are_no_colours_are_unsupported() -> None:
    data = bytearray(every_sample()["JPEG2000"])
    struct.pack_into(">H", data, data.index(CODESTREAM) + 40, 16_384)

    with pytest.raises(ImageError, match="16384 channels") as error:
        decode(bytes(data), max_pixels=10_000)
    assert error.value.reason is Reason.UNSUPPORTED


def test_lengths_that_lead_back_end() -> None:
    data = bytearray(every_sample()["JPEG2000, codestream"])
    place = data.index(b"\xff\x90")
    struct.pack_into(">I", data, place + 6, 12)

    with pytest.raises(ImageError):
        decode(bytes(data), max_pixels=10_000)
    assert decode(every_sample()["JPEG2000, codestream"], max_pixels=10_000).size == (WIDTH, HEIGHT)
