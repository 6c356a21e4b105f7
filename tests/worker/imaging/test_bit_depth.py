"""High bit depths are scaled to 8 bits in every format."""

import io
import struct
import zlib

import numpy as np
import pytest

from qsit.errors import ImageError
from qsit.states import Reason
from tests.support.samples import (
    AVIF_OF_10_BITS,
    JPEG2000_OF_12_BITS,
    chunk,
    encoded,
    every_sample,
    grey_tiff,
    photo,
    png,
    tiff,
)
from worker.imaging.decode import decode


def shown(data: bytes) -> list[int]:
    """Return the first row of a decoded grey image."""
    pixels = np.asarray(decode(data, max_pixels=10_000)).astype(int)
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["TIFF in 12-bit grey", "TIFF in 16-bit grey", "PNG in 16-bit grey"])
def test_12_and_16_bits_look_like_8_bits(name: str) -> None:
    grey = np.asarray(photo().convert("L")).astype(int)

    deep = np.asarray(decode(every_sample()[name], max_pixels=10_000)).astype(int)

    assert np.abs(deep - grey[..., None]).max() <= 1


def test_12_bits_of_a_tiff_are_scaled() -> None:
    assert shown(grey_tiff([[0, 1024, 2048, 4095]], bits=12)) == [0, 64, 128, 255]


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_of_a_tiff_are_scaled(order: str) -> None:
    assert shown(grey_tiff([[0, 300, 32768, 65535]], bits=16, order=order)) == [0, 1, 128, 255]
    assert shown(grey_tiff([[-5, 0, 16384, 32767]], bits=16, form=2, order=order)) == [0, 0, 128, 255]


@pytest.mark.parametrize(
    ("values", "bits", "form", "expected"),
    [
        ([0, 100, 255], 8, 1, [255, 155, 0]),
        ([0, 32768, 65535], 16, 1, [255, 127, 0]),
        ([0.0, 0.5, 1.0], 32, 3, [255, 127, 0]),
    ],
)
def test_white_may_be_zero(values: list[float], bits: int, form: int, expected: list[int]) -> None:
    result = shown(grey_tiff([values], bits=bits, form=form, photometric=0))

    np.testing.assert_allclose(result, expected, atol=1)


@pytest.mark.parametrize(
    ("values", "form", "expected"),
    [
        ([0, 128, 255], 1, [0, 128, 255]),
        ([0, 32768, 65535], 1, [0, 128, 255]),
        ([0, 32768, 70000], 1, [0, 128, 255]),  # a little above white
        ([0, 2**31, 2**32 - 1], 1, [0, 128, 255]),
        ([-(2**31), 2**30, 2**31 - 1], 2, [0, 128, 255]),
    ],
)
def test_32_bits_are_scaled_from_the_range_of_their_values(values: list[int], form: int, expected: list[int]) -> None:
    assert shown(grey_tiff([values], bits=32, form=form)) == expected
    assert shown(grey_tiff([values[:1]], bits=32, form=form)) == [0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.2], [0, 128, 255]),  # a little above white, as sharpening leaves it
        ([0.0, 128.0, 260.0], [0, 128, 255]),
        ([0.0, 5e8, 1e9], [0, 128, 255]),
        ([0.0, 0.0, 0.0], [0, 0, 0]),
        ([-3e38, 1e-38, 3e38], [0, 0, 255]),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_floats_may_be_a_little_above_white(values: list[float], expected: list[int], order: str) -> None:
    assert shown(grey_tiff([values], bits=32, form=3, order=order)) == expected


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_per_colour_of_a_tiff_are_scaled(order: str) -> None:
    tags = {256: (2,), 257: (1,), 258: (16,) * 3, 259: (1,), 262: (2,), 277: (3,), 278: (1,)}
    rows = np.array([[65535, 32768, 0], [255, 256, 65535]], f"{order}u2")

    plain = np.asarray(decode(tiff(tags, rows.tobytes(), order), max_pixels=2))
    np.testing.assert_array_equal(plain, [[[255, 128, 0], [0, 1, 255]]])

    tags |= {258: (16,) * 4, 277: (4,), 338: (2,)}
    rows = np.array([[65535, 32768, 0, 0], [0, 0, 65535, 32768]], f"{order}u2")
    clear = np.asarray(decode(tiff(tags, rows.tobytes(), order), max_pixels=2))
    np.testing.assert_allclose(clear, [[[255, 255, 255], [127, 127, 255]]], atol=1)


def test_alpha_of_16_bits_is_composited_on_white() -> None:
    grey = np.array([65535, 0, 0, 32768, 0, 65535], ">u2")  # three pairs of value and opacity
    colour = np.array([65535, 0, 0, 65535, 0, 0, 0, 0, 0, 0, 0, 32768], ">u2")

    assert shown(png(3, 1, zlib.compress(b"\0" + grey.tobytes()), depth=16, colour=4)) == [255, 127, 0]
    pixels = np.asarray(decode(png(3, 1, zlib.compress(b"\0" + colour.tobytes()), depth=16, colour=6), max_pixels=3))
    np.testing.assert_allclose(pixels, [[[255, 0, 0], [255] * 3, [127] * 3]], atol=1)


def test_a_transparent_value_of_16_bits_is_white() -> None:
    row = np.array([1000, 1001, 65535], ">u2").tobytes()

    data = png(3, 1, zlib.compress(b"\0" + row), depth=16, extra=chunk(b"tRNS", struct.pack(">H", 1000)))

    assert shown(data) == [255, 3, 255]


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_heic_of_10_and_12_bits_is_scaled(bits: int, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import pillow_heif

    monkeypatch.setattr("pillow_heif.options.SAVE_HDR_TO_12_BIT", bits == 12)
    values = np.full((64, 64, len(mode)), 65535, np.uint16)
    values[:, :32, :3] = 32768
    file = io.BytesIO()
    pillow_heif.from_bytes(f"{mode};16", (64, 64), values.tobytes()).save(file, quality=-1, chroma=444)
    assert pillow_heif.open_heif(file.getvalue()).info["bit_depth"] == bits

    row = shown(file.getvalue())

    assert row == [128] * 32 + [255] * 32


def test_avif_of_10_bits_is_scaled() -> None:
    assert shown(AVIF_OF_10_BITS) == [128] * 32 + [255] * 32


def test_jpeg2000_in_12_bit_grey_is_scaled() -> None:
    assert shown(JPEG2000_OF_12_BITS) == [128] * 32 + [255] * 32


def test_jpeg2000_in_colours_of_more_than_8_bits_is_refused() -> None:
    data = bytearray(encoded(photo(), "JPEG2000"))
    offset = data.index(b"\xff\x4f\xff\x51") + 42
    for component in range(3):
        data[offset + 3 * component] = 11  # 12 bits

    with pytest.raises(ImageError, match="more than 8 bits") as error:
        decode(bytes(data), max_pixels=10_000)
    assert error.value.reason is Reason.UNSUPPORTED
