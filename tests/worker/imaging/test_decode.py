"""Decoding of the files that photo folders contain."""

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms
from pillow_heif import HeifImageFile

from qsit.errors import ImageError
from qsit.states import Reason
from tests.support.decode_memory import measured
from tests.support.paths import GOLDEN
from tests.support.samples import chunk, encoded, half_transparent, png, tiff
from worker.imaging.decode import decode

WIDE_GAMUT = GOLDEN / "images" / "rocket_1200x300.png"

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

RED, GREEN, BLUE, YELLOW = (200, 30, 30), (30, 180, 40), (20, 40, 200), (220, 210, 40)
EVERY_FORMAT = ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "JPEG2000", "MPO", "HEIF"]
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "BMP": {}, "JPEG2000": {}}


def decoded(data: bytes, *, as_stored: bool = False) -> Pixels:
    image = decode(data, max_pixels=10_000_000, as_stored=as_stored)
    assert image.mode == "RGB"
    return np.asarray(image)


def refused(data: bytes, max_pixels: int = 10_000_000) -> ImageError:
    with pytest.raises(ImageError) as error:
        decode(data, max_pixels=max_pixels)
    message = str(error.value)
    assert len(message) > 15
    assert message == " ".join(message.split())
    return error.value


def plain(colour: object, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def quarters() -> Image.Image:
    """Return an image of 48 x 32 whose corners show which side is up."""
    image = Image.new("RGB", (48, 32))
    for colour, (x, y) in zip((RED, GREEN, BLUE, YELLOW), ((0, 0), (24, 0), (0, 16), (24, 16)), strict=True):
        image.paste(colour, (x, y, x + 24, y + 16))
    return image


def assert_like(shown: Pixels, expected: object, tolerance: int) -> None:
    np.testing.assert_allclose(shown.astype(float), np.broadcast_to(np.asarray(expected), shown.shape), 0, tolerance)


@pytest.mark.parametrize("image_format", EVERY_FORMAT)
def test_every_format_is_decoded(image_format: str) -> None:
    image = quarters()

    shown = decoded(encoded(image, image_format))

    assert shown.shape == (32, 48, 3)
    centres = shown[8::16, 12::24]
    assert_like(centres, [[RED, GREEN], [BLUE, YELLOW]], tolerance=12)


@pytest.mark.parametrize("image_format", LOSSLESS)
def test_lossless_formats_keep_every_pixel(image_format: str) -> None:
    with Image.open(GOLDEN / "images" / "chelsea_160x120.png") as file:
        image = file.convert("RGB")

    shown = decoded(encoded(image, image_format, **LOSSLESS[image_format]))

    np.testing.assert_array_equal(shown, np.asarray(image))


@pytest.mark.parametrize("image_format", EVERY_FORMAT)
def test_one_pixel_is_decoded(image_format: str) -> None:
    shown = decoded(encoded(plain(RED, size=(1, 1)), image_format))

    assert shown.shape == (1, 1, 3)
    assert_like(shown, RED, tolerance=12)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_the_first_of_several_frames_is_decoded(image_format: str) -> None:
    frames = [plain(RED), plain(GREEN), plain(BLUE)]

    shown = decoded(encoded(frames[0], image_format, save_all=True, append_images=frames[1:]))

    assert_like(shown, RED, tolerance=12)


def test_palettes_are_applied() -> None:
    image = quarters().quantize(4)
    assert image.mode == "P"

    for image_format in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(decoded(encoded(image, image_format)), np.asarray(quarters()))


def test_a_transparent_palette_entry_becomes_white() -> None:
    image = quarters().quantize(4)
    red = image.getpixel((0, 0))

    for image_format in ("PNG", "GIF"):
        shown = decoded(encoded(image, image_format, transparency=red))
        np.testing.assert_array_equal(shown[0, 0], (255, 255, 255))
        np.testing.assert_array_equal(shown[0, 47], GREEN)


def test_palette_entries_may_be_half_transparent() -> None:
    image = quarters().quantize(4)
    red = image.getpixel((0, 0))
    opacities = bytes(51 if index == red else 255 for index in range(4))

    shown = decoded(encoded(image, "PNG", transparency=opacities))

    assert_like(shown[0, 0], [244, 210, 210], tolerance=1)
    np.testing.assert_array_equal(shown[0, 47], GREEN)


@pytest.mark.parametrize(
    ("mode", "colour", "transparent", "opaque"), [("RGB", RED, RED, BLUE), ("L", 90, 90, 91), ("1", 0, 0, 1)]
)
def test_a_transparent_colour_becomes_white(mode: str, colour: object, transparent: object, opaque: object) -> None:
    assert_like(decoded(encoded(plain(colour, mode), "PNG", transparency=transparent)), (255, 255, 255), tolerance=0)

    same = decoded(encoded(plain(colour, mode), "PNG", transparency=opaque))
    np.testing.assert_array_equal(same, np.asarray(plain(colour, mode).convert("RGB")))


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF", "JPEG2000", "HEIF"])
@pytest.mark.parametrize(
    ("pixel", "expected"),
    [
        ((200, 30, 30, 255), RED),
        ((200, 30, 30, 0), (255, 255, 255)),
        ((0, 0, 0, 128), (127, 127, 127)),
        ((255, 0, 0, 51), (255, 204, 204)),
    ],
)
def test_alpha_is_composited_on_white(image_format: str, pixel: object, expected: Colour) -> None:
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}

    assert_like(decoded(encoded(plain(pixel, "RGBA"), image_format, **options)), expected, tolerance=1)


def test_alpha_of_grey_is_composited_on_white() -> None:
    assert_like(decoded(encoded(plain((0, 51), "LA"), "PNG")), (204, 204, 204), tolerance=1)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "JPEG2000"])
def test_16_bits_are_scaled_not_clipped(image_format: str) -> None:
    values = np.array([[0, 255, 256], [32768, 49152, 65535]], np.uint16).repeat(8, 0).repeat(8, 1)

    shown = decoded(encoded(Image.fromarray(values), image_format))

    assert_like(shown[4::8, 4::8, 0], [[0, 1, 1], [128, 192, 255]], tolerance=1)
    assert (shown == shown[..., :1]).all()


def test_big_endian_16_bits_are_scaled() -> None:
    image = plain(32768, "I;16B")

    assert_like(decoded(encoded(image, "TIFF")), (128, 128, 128), tolerance=1)


def test_16_bits_per_colour_are_scaled() -> None:
    row = b"\0" + np.array([32768, 0, 65535] * 2, ">u2").tobytes()

    shown = decoded(png(2, 2, zlib.compress(row * 2), depth=16, colour=2))

    assert_like(shown, (128, 0, 255), tolerance=1)


def test_32_bit_integers_in_the_range_of_16_are_scaled_from_it() -> None:
    values = np.array([[-5, 0], [32768, 70000]], np.int32)

    assert_like(decoded(encoded(Image.fromarray(values), "TIFF"))[..., 0], [[0, 0], [128, 255]], tolerance=1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.25, 0.5, 1.0], [0, 64, 128, 255]),
        ([0.0, 64.0, 128.0, 255.0], [0, 64, 128, 255]),
        ([0.0, 16448.0, 32896.0, 65535.0], [0, 64, 128, 255]),
        ([-1.0, 0.5, 1.0, float("nan")], [0, 128, 255, 0]),
        ([float("inf"), float("-inf"), 0.5, 1.0], [0, 0, 128, 255]),
    ],
)
def test_floats_are_scaled_from_the_range_of_their_values(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))

    shown = decoded(encoded(image, "TIFF"))

    assert_like(shown[0, :, 0], expected, tolerance=1)


def test_one_bit_becomes_black_or_white() -> None:
    image = Image.fromarray(np.array([[True, False], [False, True]]))
    assert image.mode == "1"

    for image_format in ("PNG", "TIFF", "BMP"):
        assert_like(decoded(encoded(image, image_format))[..., 0], [[255, 0], [0, 255]], tolerance=0)


def test_grey_becomes_equal_channels() -> None:
    for image_format in ("PNG", "JPEG", "TIFF", "JPEG2000"):
        assert_like(decoded(encoded(plain(77, "L"), image_format)), (77, 77, 77), tolerance=2)


@pytest.mark.parametrize(
    ("ink", "expected"), [((0, 0, 0, 0), (255, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0))]
)
def test_cmyk_becomes_rgb(ink: object, expected: Colour) -> None:
    for image_format in ("JPEG", "TIFF"):
        assert_like(decoded(encoded(plain(ink, "CMYK"), image_format)), expected, tolerance=4)


STORED_AS: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
"""How a file stores an upright image, by its EXIF orientation."""


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO", "HEIF"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_every_exif_orientation_becomes_the_same_upright_image(image_format: str, orientation: int) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED_AS[orientation](np.asarray(quarters()))))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation

    shown = decoded(encoded(stored, image_format, exif=exif, quality=95))

    assert shown.shape == (32, 48, 3)
    assert_like(shown[8::16, 12::24], [[RED, GREEN], [BLUE, YELLOW]], tolerance=12)


@pytest.mark.parametrize("image_format", ["AVIF", "HEIF"])
def test_the_exif_orientation_of_avif_and_heic_is_ignored_for_the_containers(image_format: str) -> None:
    other, orientation = b"\x01\x13\0\x03\0\0\0\x01\0\x06", b"\x01\x12\0\x03\0\0\0\x01\0\x06"
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + other + bytes(6)
    data = encoded(quarters(), image_format, exif=exif, quality=95)
    assert data.count(other) == 1

    shown = decoded(data.replace(other, orientation))

    assert_like(shown[8::16, 12::24], [[RED, GREEN], [BLUE, YELLOW]], tolerance=12)


def test_the_xmp_orientation_of_avif_is_ignored() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'

    assert decoded(encoded(quarters(), "AVIF", xmp=xmp)).shape == (32, 48, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_exif_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation

    np.testing.assert_array_equal(decoded(encoded(quarters(), "PNG", exif=exif)), np.asarray(quarters()))


@pytest.mark.filterwarnings("ignore::UserWarning")  # as the worker does; Pillow warns of the EXIF
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04six\0\0\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\xff\xff\0\0\0\0\0\0\0\0",
    ],
    ids=["nothing", "garbage", "offset beyond the end", "cut off", "orientation in words", "orientation too long"],
)
def test_broken_exif_is_ignored(exif: bytes) -> None:
    for image_format in ("JPEG", "PNG", "WEBP"):
        shown = decoded(encoded(quarters(), image_format, exif=exif, quality=95))
        assert_like(shown[8::16, 12::24], [[RED, GREEN], [BLUE, YELLOW]], tolerance=12)


def profile_of(path: Path) -> bytes:
    with Image.open(path) as image:
        profile: bytes = image.info["icc_profile"]
    return profile


def adobe_to_srgb(pixels: Pixels) -> Any:
    """Convert Adobe RGB (1998) by the published matrices and gamma; both have white D65."""
    to_xyz = [[0.5766690, 0.1855582, 0.1882286], [0.2973450, 0.6273636, 0.0752915], [0.0270314, 0.0706889, 0.9913375]]
    from_xyz = [
        [3.2404542, -1.5371385, -0.4985314],
        [-0.9692660, 1.8760108, 0.0415560],
        [0.0556434, -0.2040259, 1.0572252],
    ]
    linear = (pixels / 255) ** 2.19921875 @ np.array(to_xyz).T @ np.array(from_xyz).T
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_a_wide_gamut_photo_is_converted_to_srgb() -> None:
    data = WIDE_GAMUT.read_bytes()
    stored = decoded(data, as_stored=True)

    shown = decoded(data)

    expected = adobe_to_srgb(stored)
    assert np.abs(stored - expected).mean() > 5
    assert np.abs(shown - expected).mean() < 1
    assert np.abs(shown - expected).max() < 6


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_profile_is_used_in_every_format_that_has_one(image_format: str) -> None:
    data = encoded(plain(RED), image_format, icc_profile=profile_of(WIDE_GAMUT), quality=95)

    shown = decoded(data)

    assert_like(shown, adobe_to_srgb(np.array([[RED]], np.uint8)), tolerance=8)


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_a_profile_is_used_with_palettes_and_alpha(mode: str) -> None:
    image = plain(RED).quantize(1) if mode == "P" else plain(RED).convert(mode)

    shown = decoded(encoded(image, "PNG", icc_profile=profile_of(WIDE_GAMUT)))

    assert_like(shown, adobe_to_srgb(np.array([[RED]], np.uint8)), tolerance=2)


def test_an_srgb_profile_changes_no_pixel() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with Image.open(GOLDEN / "images" / "coffee_640x480.png") as file:
        image = file.convert("RGB")

    shown = decoded(encoded(image, "PNG", icc_profile=profile))

    np.testing.assert_array_equal(shown, np.asarray(image))


def test_a_profile_named_srgb_is_not_converted() -> None:
    named = profile_of(WIDE_GAMUT).replace(b"Adobe RGB (1998)", b"sRGB IEC61966-2 ")

    np.testing.assert_array_equal(decoded(encoded(quarters(), "PNG", icc_profile=named)), np.asarray(quarters()))


@pytest.mark.parametrize(
    "profile", [b"no profile", b"\0" * 200, profile_of(WIDE_GAMUT)[:100]], ids=["text", "zeros", "cut off"]
)
def test_a_broken_profile_is_ignored(profile: bytes) -> None:
    np.testing.assert_array_equal(decoded(encoded(quarters(), "PNG", icc_profile=profile)), np.asarray(quarters()))


def test_an_rgb_profile_of_a_grey_image_is_ignored() -> None:
    data = encoded(plain(77, "L"), "PNG", icc_profile=profile_of(WIDE_GAMUT))

    assert_like(decoded(data), (77, 77, 77), tolerance=0)


@pytest.mark.parametrize(
    ("image", "image_format"),
    [
        (quarters(), "JPEG"),
        (quarters().quantize(4), "PNG"),
        (plain((200, 30, 30, 0), "RGBA"), "PNG"),
        (plain((90, 0), "LA"), "PNG"),
        (plain(32768, "I;16"), "PNG"),
        (plain(0.5, "F"), "TIFF"),
        (plain((0, 255, 255, 0), "CMYK"), "JPEG"),
        (plain(1, "1"), "PNG"),
    ],
    ids=["RGB", "P", "RGBA", "LA", "I;16", "F", "CMYK", "1"],
)
def test_as_stored_equals_pillows_conversion(image: Image.Image, image_format: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encoded(image, image_format, exif=exif, icc_profile=profile_of(WIDE_GAMUT))
    with Image.open(io.BytesIO(data)) as file:
        expected = np.asarray(file.convert("RGB"))

    np.testing.assert_array_equal(decoded(data, as_stored=True), expected, strict=True)


def test_as_stored_heic_equals_its_plugins_conversion_which_is_upright() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encoded(half_transparent(quarters()), "HEIF", exif=exif, icc_profile=profile_of(WIDE_GAMUT))
    expected = np.asarray(HeifImageFile(io.BytesIO(data)).convert("RGB"))

    np.testing.assert_array_equal(decoded(data, as_stored=True), expected, strict=True)
    assert expected.shape == (48, 32, 3)


def test_as_stored_fails_when_pillow_cannot_convert_to_rgb() -> None:
    tags = {256: (1,), 257: (1,), 258: (8, 8), 259: (1,), 262: (1,), 277: (2,), 278: (1,), 338: (1,)}
    data = tiff(tags, bytes([90, 120]))  # premultiplied grey

    assert_like(decoded(data), (225, 225, 225), tolerance=1)
    with pytest.raises(ImageError, match="conversion from La") as error:
        decode(data, max_pixels=1000, as_stored=True)
    assert error.value.reason is Reason.UNSUPPORTED


@pytest.mark.parametrize("path", sorted((GOLDEN / "images").iterdir()), ids=lambda path: path.name)
def test_golden_images_as_stored_equal_pillows_conversion(path: Path) -> None:
    with Image.open(path) as file:
        expected = np.asarray(file.convert("RGB"))

    np.testing.assert_array_equal(decoded(path.read_bytes(), as_stored=True), expected, strict=True)


def test_zero_bytes_are_empty() -> None:
    assert refused(b"").reason is Reason.EMPTY


@pytest.mark.parametrize(
    "data",
    [
        b"Dear diary,\nno photo today.\n",
        b"BMW and VW\nand other makes",
        b"<html></html>",
        b"\0",
        bytes(5000),
        b"<svg/>",
    ],
    ids=["text", "text that starts as BMP does", "html", "zero", "zeros", "svg"],
)
def test_other_content_is_not_an_image(data: bytes) -> None:
    assert refused(data).reason is Reason.NOT_AN_IMAGE


@pytest.mark.parametrize("image_format", ["PCX", "PPM", "ICO", "TGA", "SGI", "EPS"])
def test_other_formats_of_pillow_are_not_decoded(image_format: str) -> None:
    assert refused(encoded(quarters(), image_format)).reason is Reason.NOT_AN_IMAGE


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"8BPS" + bytes(100), "PSD"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "JPEG XL"),
        (b"\xff\x0a" + bytes(100), "JPEG XL"),
        (b"MM\0+\0\x08\0\0" + bytes(100), "BigTIFF"),
        (b"FUJIFILMCCD-RAW 0201", "Fujifilm raw"),
        (b"IIRO\x08\0\0\0", "Olympus raw"),
        (b"IIU\0\x08\0\0\0", "Panasonic raw"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "Canon raw"),
        (b"\0\0\0\x18ftypqt  \0\0\0\0qt  \0\0\0\0", "video"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_known_unsupported_formats_are_named(data: bytes, name: str) -> None:
    error = refused(data)

    assert error.reason is Reason.UNSUPPORTED
    assert name in str(error)


def test_an_unsupported_colour_mode_is_named() -> None:
    error = refused(encoded(plain((50, 100, 100), "LAB"), "TIFF"))

    assert error.reason is Reason.UNSUPPORTED
    assert "LAB" in str(error)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "JPEG2000", "HEIF"])
def test_half_a_file_is_corrupt(image_format: str) -> None:
    with Image.open(GOLDEN / "images" / "chelsea_160x120.png") as image:
        data = encoded(image.convert("RGB"), image_format)

    assert refused(data[: len(data) // 2]).reason is Reason.CORRUPT


def test_broken_compressed_data_is_corrupt() -> None:
    assert refused(png(16, 16, b"no zlib")).reason is Reason.CORRUPT


@pytest.mark.parametrize("image_format", EVERY_FORMAT)
def test_the_first_20_bytes_of_a_file_are_corrupt(image_format: str) -> None:
    assert refused(encoded(quarters(), image_format)[:20]).reason is Reason.CORRUPT


@pytest.mark.parametrize("image_format", EVERY_FORMAT)
def test_the_pixel_limit_applies_to_every_format(image_format: str) -> None:
    data = encoded(quarters(), image_format)

    assert decode(data, max_pixels=48 * 32).size == (48, 32)
    error = refused(data, max_pixels=48 * 32 - 1)
    assert error.reason is Reason.TOO_LARGE
    assert "48 x 32" in str(error)
    assert "1,535" in str(error)


def test_pillows_own_limit_does_not_apply() -> None:
    rows = zlib.compress((b"\0" + bytes(2000)) * 12_000, 1)  # 192 million pixels; Pillow refuses 179 million

    image = decode(png(16_000, 12_000, rows, depth=1), max_pixels=200_000_000)

    assert image.size == (16_000, 12_000)


def test_decode_memory_measures_decoding(tmp_path: Path) -> None:
    rows = zlib.compress((b"\0" + bytes(1250)) * 10_000, 1)

    outcome, grown = measured(png(10_000, 10_000, rows, depth=1), tmp_path)

    assert outcome == "decoded"
    assert grown > 90


def test_900_million_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    rows = zlib.compress((b"\0" + bytes(3750)) * 30_000, 1)
    data = png(30_000, 30_000, rows, depth=1)
    assert len(data) < 1_000_000

    outcome, grown = measured(data, tmp_path)

    assert outcome == Reason.TOO_LARGE
    assert grown < 50


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_metadata_is_not_unpacked_to_hundreds_of_megabytes(name: bytes, tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(300_000_000))
    start = b"Comment\0\x01\0\0\0" if name == b"iTXt" else b"Comment\0\0"
    data = png(1, 1, zlib.compress(b"\0\0"), extra=chunk(name, start + bomb))

    outcome, grown = measured(data, tmp_path)

    assert outcome == Reason.CORRUPT
    assert grown < 50
