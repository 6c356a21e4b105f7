"""Embedded profiles: what is shown is what a colour-managed viewer shows."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from tests.support import profiles
from tests.support.samples import encoded, photo, png
from worker.imaging import color_profiles as ours
from worker.imaging.decode import decode

RED, GREEN, GREY = (200, 30, 30), (30, 180, 40), (90, 90, 90)
P3_TO_SRGB = [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]


def plain(colour: object, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (64, 64), colour)  # type: ignore[arg-type]


def shown(data: bytes, *, as_stored: bool = False) -> NDArray[np.float64]:
    """The colour in the middle."""
    image = decode(data, max_pixels=10_000, as_stored=as_stored)
    return np.asarray(image.getpixel((image.width // 2, image.height // 2)), float)


def p3_to_srgb(colour: Any) -> NDArray[np.float64]:
    """By the published matrix; both have the same curve."""
    value = np.asarray(colour) / 255
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    light = (light @ np.array(P3_TO_SRGB).T).clip(0, 1)
    result: NDArray[np.float64] = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return result


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "HEIF"])
@pytest.mark.parametrize("colour", [RED, GREEN, GREY])
def test_a_phones_wide_gamut_does_not_look_dull(kind: str, colour: tuple[int, int, int]) -> None:
    data = encoded(plain(colour), kind, icc_profile=profiles.display_p3(), quality=95)

    np.testing.assert_allclose(shown(data), p3_to_srgb(colour), atol=5)
    np.testing.assert_allclose(shown(data, as_stored=True), colour, atol=5)


def jpeg2000_with(profile: bytes, image: Image.Image) -> bytes:
    """Its box for the colour space filled with a profile."""
    data = encoded(image, "JPEG2000")
    header = data.index(b"jp2h") - 4
    place = data.index(b"colr") - 4
    length = int.from_bytes(data[place : place + 4], "big")
    box = struct.pack(">I", 11 + len(profile)) + b"colr\2\0\0" + profile
    whole = int.from_bytes(data[header : header + 4], "big") - length + len(box)
    return data[:header] + struct.pack(">I", whole) + data[header + 4 : place] + box + data[place + length :]


def test_a_profile_counts_in_jpeg2000() -> None:
    data = jpeg2000_with(profiles.display_p3(), plain(RED))

    np.testing.assert_allclose(shown(data), p3_to_srgb(RED), atol=2)
    np.testing.assert_allclose(shown(jpeg2000_with(b"no profile", plain(RED))), RED)


def test_an_srgb_profile_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = photo()

    assert ours.to_srgb(image, profile) is image


def test_a_photo_in_rgb_is_converted_without_a_copy() -> None:
    image = photo()
    profile = profiles.display_p3()
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    expected = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    assert expected is not None

    assert ours.to_srgb(image, profile) is image
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_linear_light_is_not_srgb_though_it_is_named_after_it() -> None:
    profile = profiles.display_p3().replace(b"Display P3\0", b"LinearsRGB\0")

    np.testing.assert_allclose(shown(encoded(plain(RED), "PNG", icc_profile=profile)), p3_to_srgb(RED), atol=2)


@pytest.mark.parametrize("mode", ["L", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_has_profiles_too(kind: str, mode: str) -> None:
    colour = 128 if mode == "L" else (128, 255)

    data = encoded(plain(colour, mode), kind, icc_profile=profiles.grey(1.0))

    np.testing.assert_allclose(shown(data), 188, atol=1)  # linear light, half of it


def test_grey_of_16_bits_has_profiles_too() -> None:
    data = encoded(plain(32768, "I;16"), "PNG", icc_profile=profiles.grey(1.0))
    np.testing.assert_allclose(shown(data), 188, atol=1)

    row = np.array([32768, 65535], ">u2").tobytes()  # with alpha, which Pillow reads as colours
    extra = b"name\0\0" + zlib.compress(profiles.grey(1.0))
    chunk = struct.pack(">I", len(extra)) + b"iCCP" + extra + struct.pack(">I", zlib.crc32(b"iCCP" + extra))
    np.testing.assert_allclose(
        shown(png(1, 1, zlib.compress(b"\0" + row), depth=16, colour=4, extra=chunk)), 188, atol=1
    )


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])  # Pillow's JPEGs are inverted, as Adobe's
@pytest.mark.parametrize(
    ("ink", "expected"),
    [((0, 0, 0, 0), 255), ((128, 0, 0, 0), 119), ((0, 0, 128, 0), 119), ((255, 255, 255, 255), 0)],
)
def test_inks_are_shown_as_their_profile_says(kind: str, ink: object, expected: int) -> None:
    data = encoded(plain(ink, "CMYK"), kind, icc_profile=profiles.cmyk(), quality=100)

    np.testing.assert_allclose(shown(data), expected, atol=3)


def test_inks_of_a_jpeg_are_inverted_without_adobes_mark_too() -> None:
    data = encoded(plain((128, 0, 0, 0), "CMYK"), "JPEG", icc_profile=profiles.cmyk(), quality=100)
    place = data.index(b"\xff\xee\0\x0eAdobe")

    unmarked = data[:place] + data[place + 16 :]

    np.testing.assert_allclose(shown(unmarked), 119, atol=3)  # as browsers do


@pytest.mark.parametrize(
    ("mode", "colour", "profile"),
    [
        ("RGB", RED, profiles.cmyk()),
        ("RGB", RED, profiles.display_p3()[:300]),
        ("CMYK", (0, 255, 255, 0), profiles.display_p3()),
        ("L", 90, profiles.cmyk()),
    ],
)
def test_a_profile_that_does_not_fit_is_ignored(mode: str, colour: object, profile: bytes) -> None:
    image = plain(colour, mode)

    np.testing.assert_allclose(
        shown(encoded(image, "TIFF", icc_profile=profile)), np.asarray(image.convert("RGB"))[0, 0]
    )


def test_threads_do_not_disturb_each_other() -> None:
    data = [encoded(plain((level, 40, 40)), "PNG", icc_profile=profiles.display_p3()) for level in range(100, 220)]
    alone = [shown(one) for one in data]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(shown, data * 3))

    np.testing.assert_array_equal(together, alone * 3)


def test_the_profiles_made_here_are_what_they_say() -> None:
    for profile, name in ((profiles.display_p3(), "Display P3"), (profiles.cmyk(), "Grey printer")):
        read = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        assert ImageCms.getProfileDescription(read).strip() == name
