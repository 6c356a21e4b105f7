"""From the bytes of a file to upright sRGB pixels, or to the reason why not.

Limits come before decoding, and the kind of a file is decided by its content, never by its name.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import (  # the plugins register what FORMATS names
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    ExifTags,
    GifImagePlugin,  # noqa: F401
    Image,
    ImageCms,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from models.errors import ImageError
from models.states import Reason

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "JPEG2000")
"""What Pillow may try (MPO comes with JPEG); no other decoder meets a stranger's bytes."""

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I", "F", *SIXTEEN_BITS)
"""Pillow's pixel layouts that become RGB here."""


def decode(data: bytes, *, max_pixels: int, as_stored: bool = False) -> Image.Image:
    """
    The photo in `data` as an RGB image: its first frame, turned as its EXIF orientation says, on white where it is
    transparent, 16-bit values scaled to 8, colours converted to sRGB. `as_stored`: Pillow's `convert("RGB")` alone.

    Raises:
        ImageError: when it is empty, no image, of an unsupported kind, too large, or broken.
    """
    if not data:
        raise ImageError(Reason.EMPTY, "the file has zero bytes")
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is fixed and sometimes a warning; ours follows below
    image = _opened(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            Reason.TOO_LARGE,
            f"{width} x {height} pixels are more than the limit of {max_pixels:,} (QSIT_MAX_PIXELS)",
        )
    if image.mode not in MODES:
        raise ImageError(
            Reason.UNSUPPORTED, f"{image.format} of colour mode {image.mode} is not read; convert it to RGB"
        )
    with _broken_data():
        image.load()
        return image.convert("RGB") if as_stored else _as_shown(image)


def _opened(data: bytes) -> Image.Image:
    try:
        with _broken_data():
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except ImageError as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
    if (kind := _known_kind(data)) is not None:
        raise ImageError(Reason.UNSUPPORTED, f"{kind} is not read by this version; convert it to JPEG or PNG")
    raise ImageError(Reason.NOT_AN_IMAGE, "the content is of no image format that is read")


@contextmanager
def _broken_data() -> Iterator[None]:
    """Whatever a decoder raises on bad data becomes one error; Pillow promises no particular one."""
    try:
        yield
    except MemoryError as error:
        raise ImageError(Reason.TOO_LARGE, "decoding it needs more memory than there is") from error
    except ImageError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(Reason.CORRUPT, f"the data is broken: {reason}") from error


def _known_kind(data: bytes) -> str | None:
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"):
        return "HEIC/HEIF"
    if data[:4] == b"8BPS":
        return "Photoshop's PSD"
    if data[:4] == b"%PDF":
        return "PDF"
    return None


def _as_shown(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    orientation = _orientation(image)
    image = _eight_bits(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    if image.mode in ("P", "YCbCr"):
        image = image.convert("RGB")
    if profile and image.mode in ("RGB", "L", "CMYK"):
        image = _in_srgb(image, profile)
    image = image.convert("RGB")
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 -- a viewer, too, shows a photo whose EXIF is broken
        return 1


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits, where Pillow's own conversion would clip."""
    if image.mode in SIXTEEN_BITS:
        values = np.asarray(image).astype(np.uint16)
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "I":
        values = np.clip(np.asarray(image), 0, 65535)
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image), nan=0.0, posinf=0.0, neginf=0.0)
        top = 1.0 if values.max(initial=0.0) <= 1.0 else 255.0 if values.max() <= 255.0 else 65535.0
        return Image.fromarray((np.clip(values / top, 0, 1) * 255).round().astype(np.uint8))
    return image


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Converted from its embedded profile, unless that is sRGB by its own name or cannot be used."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image  # a viewer, too, shows a photo whose profile is broken
    return image if converted is None else converted
