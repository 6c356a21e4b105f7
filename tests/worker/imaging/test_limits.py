"""Files that are refused before decoding, and the memory that this takes."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qsit.errors import ImageError
from qsit.states import Reason
from tests.support.decode_memory import MAX_PIXELS, measured
from tests.support.samples import HEIGHT, WIDTH, chunk, encoded, every_sample, grey_tiff, photo, png, tiff
from worker.imaging.decode import decode

RGB_TIFF = {256: (4,), 257: (2,), 258: (8, 8, 8), 259: (1,), 262: (2,), 277: (3,), 278: (2,)}
PIXELS = bytes(range(24))


def refused(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as error:
        decode(data, max_pixels=MAX_PIXELS)
    return error.value


def with_number(data: bytes, after: bytes, code: str, *values: int) -> bytes:
    """Replace the numbers after some bytes of a header."""
    offset = data.index(after) + len(after)
    piece = struct.pack(code, *values)
    return data[:offset] + piece + data[offset + len(piece) :]


def webp_of_canvas(width: int, height: int) -> bytes:
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    parts = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sides + every_sample()["WEBP"][12:]
    return b"RIFF" + struct.pack("<I", len(parts)) + parts


def tiff_of_tiles(side: int) -> bytes:
    data = zlib.compress(bytes(256))
    tags = {256: (16,), 257: (16,), 258: (8,), 259: (8,), 262: (1,), 277: (1,)}
    return tiff({**tags, 322: (side,), 323: (side,), 324: (8,), 325: (len(data),)}, data)


TOO_LARGE = {
    "WEBP": webp_of_canvas(16_384, 16_384),
    "TIFF, of its tiles": tiff_of_tiles(44_000),
    "JPEG": with_number(every_sample()["JPEG"], b"\xff\xc0\0\x11\x08", ">HH", 60_000, 60_000),
    "GIF": with_number(every_sample()["GIF"], b",\0\0\0\0", "<HH", 60_000, 60_000),
    "BMP": with_number(every_sample()["BMP"], b"\x36\0\0\0\x28\0\0\0", "<ii", 60_000, 60_000),
    "AVIF": with_number(every_sample()["AVIF"], b"ispe\0\0\0\0", ">II", 16_000, 16_000),
    "HEIF, before it is cropped": with_number(every_sample()["HEIF"], b"ispe\0\0\0\0", ">II", 30_000, 30_000),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_too_large_images_are_refused_before_they_take_memory(name: str, tmp_path: Path) -> None:
    outcome, grown = measured(TOO_LARGE[name], tmp_path)

    assert outcome == Reason.TOO_LARGE
    assert grown < 30


def test_a_canvas_and_tiles_within_the_limit_are_accepted() -> None:
    assert refused(webp_of_canvas(200, 100)).reason is Reason.CORRUPT, "its frame is smaller"
    assert decode(tiff_of_tiles(16), max_pixels=MAX_PIXELS).size == (16, 16)


@pytest.mark.parametrize("size", [(1_000_001, 1), (1, 1_000_001)])
def test_a_side_over_a_million_pixels_is_refused(size: tuple[int, int]) -> None:
    width, height = size
    rows = zlib.compress((b"\0" + bytes((width + 7) // 8)) * height)

    error = refused(png(width, height, rows, depth=1))

    assert error.reason is Reason.TOO_LARGE
    assert "1,000,000" in str(error)
    assert decode(png(1_000_000, 1, zlib.compress(bytes(125_001)), depth=1), max_pixels=MAX_PIXELS).width == 1_000_000


def test_an_image_that_does_not_fit_into_memory_is_too_large(tmp_path: Path) -> None:
    rows = zlib.compress((b"\0" + bytes(1000)) * 8000, 1)

    assert measured(png(8000, 8000, rows, depth=1), tmp_path, limit_mb=40)[0] == Reason.TOO_LARGE
    assert measured(encoded(photo().resize((6000, 5000)), "JPEG"), tmp_path, limit_mb=40)[0] == Reason.TOO_LARGE


RAW: dict[str, tuple[dict[int, Any], str]] = {
    "DNG": ({50706: (1, 4, 0, 0)}, "DNG"),
    "DNG that begins with a preview": ({50706: (1, 4, 0, 0), 254: (1,), 330: (8,)}, "DNG"),
    "NEF": ({254: (1,), 330: (8,)}, "preview"),
    "old preview": ({255: (2,)}, "preview"),
    "mosaic": ({262: (32803,), 258: (8,), 277: (1,), 256: (24,), 257: (1,)}, "raw"),
}


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("as_stored", [False, True])
def test_raw_files_are_unsupported_rather_than_read_by_their_preview(name: str, order: str, as_stored: bool) -> None:
    tags, message = RAW[name]

    with pytest.raises(ImageError, match=message) as error:
        decode(tiff(RGB_TIFF | tags, PIXELS, order), max_pixels=MAX_PIXELS, as_stored=as_stored)
    assert error.value.reason is Reason.UNSUPPORTED


def test_a_canon_raw_file_is_detected_by_its_signature() -> None:
    data = tiff(RGB_TIFF, b"CR\2\0" + PIXELS[4:])

    assert refused(data).reason is Reason.UNSUPPORTED


@pytest.mark.parametrize("subfile", [0, 2, 4])
def test_other_subfile_types_are_accepted(subfile: int) -> None:
    data = tiff(RGB_TIFF | {254: (subfile,)}, PIXELS)

    np.testing.assert_array_equal(np.asarray(decode(data, max_pixels=100)).ravel(), np.frombuffer(PIXELS, np.uint8))


@pytest.mark.parametrize(
    "data",
    [
        tiff(RGB_TIFF | {258: (32, 32, 32), 339: (3, 3, 3)}, bytes(96)),
        grey_tiff(np.zeros((2, 8)), bits=64, form=3),
        tiff(RGB_TIFF | {259: (34712,)}, PIXELS),
        tiff(RGB_TIFF | {258: (8,) * 12, 277: (12,)}, bytes(96)),
    ],
    ids=["floats in colour", "doubles", "JPEG 2000 inside", "twelve channels"],
)
def test_unsupported_variants_of_tiff_are_not_called_corrupt(data: bytes) -> None:
    error = refused(data)

    assert error.reason is Reason.UNSUPPORTED
    assert str(error).startswith("TIFF ")


@pytest.mark.filterwarnings("ignore:Truncated File Read")  # as the worker does
@pytest.mark.parametrize("name", [name for name in every_sample() if "frames" not in name])
@pytest.mark.parametrize("part", [0.4, 0.6, 0.9])
def test_truncated_files_are_corrupt(name: str, part: float) -> None:
    data = every_sample()[name]

    assert refused(data[: int(len(data) * part)]).reason is Reason.CORRUPT


def test_trailing_data_is_ignored() -> None:
    for name in ("HEIF", "AVIF", "JPEG", "PNG"):
        data = every_sample()[name] + b"MotionPhoto_Data" + bytes(100)
        assert decode(data, max_pixels=WIDTH * HEIGHT).size == (WIDTH, HEIGHT)


def test_unknown_png_chunks_are_ignored() -> None:
    data = png(1, 1, zlib.compress(b"\0\0"), extra=chunk(b"prIv", bytes(1000)))

    assert decode(data, max_pixels=1).size == (1, 1)


def test_the_first_page_of_a_tiff_is_decoded() -> None:
    pages = [photo(), Image.new("RGB", (500, 500))]

    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])

    assert decode(data, max_pixels=WIDTH * HEIGHT).size == (WIDTH, HEIGHT)
