"""Embedded ICC profiles: pixels are those of a colour-managed viewer."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from tests.support import icc_profiles
from tests.support.samples import encoded, photo, png
from worker.imaging.color_profiles import convert_to_srgb
from worker.imaging.decode import decode

RED, GREEN, GREY = (200, 30, 30), (30, 180, 40), (90, 90, 90)
P3_TO_SRGB = [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]


def plain(colour: object, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (64, 64), colour)  # type: ignore[arg-type]


def shown(data: bytes, *, as_stored: bool = False) -> NDArray[np.float64]:
    """Return the decoded colour in the middle."""
    image = decode(data, max_pixels=10_000, as_stored=as_stored)
    return np.asarray(image.getpixel((image.width // 2, image.height // 2)), float)


def p3_to_srgb(colour: Any) -> NDArray[np.float64]:
    """Convert by the published matrix; both colour spaces have the same curve."""
    value = np.asarray(colour) / 255
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    light = (light @ np.array(P3_TO_SRGB).T).clip(0, 1)
    result: NDArray[np.float64] = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return result


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "HEIF"])
@pytest.mark.parametrize("colour", [RED, GREEN, GREY])
def test_display_p3_is_converted_in_every_format(image_format: str, colour: tuple[int, int, int]) -> None:
    data = encoded(plain(colour), image_format, icc_profile=icc_profiles.display_p3(), quality=95)

    np.testing.assert_allclose(shown(data), p3_to_srgb(colour), atol=5)
    np.testing.assert_allclose(shown(data, as_stored=True), colour, atol=5)


def jpeg2000_with(profile: bytes, image: Image.Image) -> bytes:
    """Encode an image with a profile in the container's colour box."""
    data = encoded(image, "JPEG2000")
    header = data.index(b"jp2h") - 4
    box_start = data.index(b"colr") - 4
    length = int.from_bytes(data[box_start : box_start + 4], "big")
    box = struct.pack(">I", 11 + len(profile)) + b"colr\2\0\0" + profile
    header_length = int.from_bytes(data[header : header + 4], "big") - length + len(box)
    return (
        data[:header]
        + struct.pack(">I", header_length)
        + data[header + 4 : box_start]
        + box
        + data[box_start + length :]
    )


def test_a_profile_in_jpeg2000_is_used() -> None:
    data = jpeg2000_with(icc_profiles.display_p3(), plain(RED))

    np.testing.assert_allclose(shown(data), p3_to_srgb(RED), atol=2)
    np.testing.assert_allclose(shown(jpeg2000_with(b"no profile", plain(RED))), RED)


def test_an_srgb_profile_returns_the_same_image() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = photo()

    assert convert_to_srgb(image, profile) is image


def test_an_rgb_image_is_converted_in_place() -> None:
    image = photo()
    profile = icc_profiles.display_p3()
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    expected = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    assert expected is not None

    assert convert_to_srgb(image, profile) is image
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_a_profile_named_linear_srgb_is_not_srgb() -> None:
    profile = icc_profiles.display_p3().replace(b"Display P3\0", b"LinearsRGB\0")

    np.testing.assert_allclose(shown(encoded(plain(RED), "PNG", icc_profile=profile)), p3_to_srgb(RED), atol=2)


@pytest.mark.parametrize("mode", ["L", "LA"])
@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_a_grey_profile_is_used(image_format: str, mode: str) -> None:
    colour = 128 if mode == "L" else (128, 255)

    data = encoded(plain(colour, mode), image_format, icc_profile=icc_profiles.grey(1.0))

    np.testing.assert_allclose(shown(data), 188, atol=1)  # half of linear light


def test_a_grey_profile_is_used_at_16_bits() -> None:
    data = encoded(plain(32768, "I;16"), "PNG", icc_profile=icc_profiles.grey(1.0))
    np.testing.assert_allclose(shown(data), 188, atol=1)

    row = np.array([32768, 65535], ">u2").tobytes()  # with alpha; Pillow reads it as colours
    extra = b"name\0\0" + zlib.compress(icc_profiles.grey(1.0))
    chunk = struct.pack(">I", len(extra)) + b"iCCP" + extra + struct.pack(">I", zlib.crc32(b"iCCP" + extra))
    np.testing.assert_allclose(
        shown(png(1, 1, zlib.compress(b"\0" + row), depth=16, colour=4, extra=chunk)), 188, atol=1
    )


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])  # Pillow inverts JPEGs, as Adobe does
@pytest.mark.parametrize(
    ("ink", "expected"), [((0, 0, 0, 0), 255), ((128, 0, 0, 0), 119), ((0, 0, 128, 0), 119), ((255, 255, 255, 255), 0)]
)
def test_cmyk_is_converted_by_its_profile(image_format: str, ink: object, expected: int) -> None:
    data = encoded(plain(ink, "CMYK"), image_format, icc_profile=icc_profiles.cmyk(), quality=100)

    np.testing.assert_allclose(shown(data), expected, atol=3)


def test_a_cmyk_jpeg_without_the_adobe_marker_is_inverted_too() -> None:
    data = encoded(plain((128, 0, 0, 0), "CMYK"), "JPEG", icc_profile=icc_profiles.cmyk(), quality=100)
    marker = data.index(b"\xff\xee\0\x0eAdobe")

    unmarked = data[:marker] + data[marker + 16 :]

    np.testing.assert_allclose(shown(unmarked), 119, atol=3)  # as browsers do


@pytest.mark.parametrize(
    ("mode", "colour", "profile"),
    [
        ("RGB", RED, icc_profiles.cmyk()),
        ("RGB", RED, icc_profiles.display_p3()[:300]),
        ("CMYK", (0, 255, 255, 0), icc_profiles.display_p3()),
        ("L", 90, icc_profiles.cmyk()),
    ],
)
def test_a_profile_for_other_channels_is_ignored(mode: str, colour: object, profile: bytes) -> None:
    image = plain(colour, mode)

    np.testing.assert_allclose(
        shown(encoded(image, "TIFF", icc_profile=profile)), np.asarray(image.convert("RGB"))[0, 0]
    )


def test_conversion_is_thread_safe() -> None:
    data = [encoded(plain((level, 40, 40)), "PNG", icc_profile=icc_profiles.display_p3()) for level in range(100, 220)]
    alone = [shown(one) for one in data]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(shown, data * 3))

    np.testing.assert_array_equal(together, alone * 3)


def test_the_test_profiles_are_valid() -> None:
    for profile, name in ((icc_profiles.display_p3(), "Display P3"), (icc_profiles.cmyk(), "Grey printer")):
        read = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        assert ImageCms.getProfileDescription(read).strip() == name
