"""Decode a file to upright sRGB pixels, or raise the reason why that is impossible. Limits are checked first."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import ExifTags, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from qsit.errors import ImageError, one_line
from qsit.states import Reason
from worker.imaging import limits
from worker.imaging.bit_depth import HIGH_BIT_DEPTH_MODES, scale_to_8_bits
from worker.imaging.color_profiles import convert_to_srgb
from worker.imaging.formats import detect_format, unsupported
from worker.imaging.jpeg2000 import check_jpeg2000, read_jpeg2000_profile

SUPPORTED_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
NO_HEIF = "HEIC/HEIF needs pillow-heif, which this worker lacks: pip install 'qsit[heif]'"
EXIF_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""


def decode(data: bytes, *, max_pixels: int, as_stored: bool = False) -> Image.Image:
    """
    Decode the first frame as a viewer shows it: upright, on white, in sRGB, 8 bits per channel, mode RGB.

    as_stored: apply Pillow's `convert("RGB")` alone. The plugins' own steps remain: HEIC comes upright, AVIF does not.

    Raises ImageError when the data is empty, not an image, unsupported, too large or corrupt.
    """
    if not data:
        raise ImageError(Reason.EMPTY, "the file has 0 bytes")
    Image.MAX_IMAGE_PIXELS = None  # ours replaces Pillow's limit, which is fixed and at first only a warning
    format_ = detect_format(data)
    with _translate_errors():
        if format_ in CHECKS:
            CHECKS[format_](data, max_pixels)
        image = OPENERS[format_](io.BytesIO(data))
        limits.check_size(*image.size, max_pixels)
        if image.mode not in (*SUPPORTED_MODES, *HIGH_BIT_DEPTH_MODES):
            message = f"{format_} with colour mode {image.mode} is not supported; convert it to RGB"
            raise ImageError(Reason.UNSUPPORTED, message)
        image.load()
        if not as_stored:
            return _render(image)
        return image if image.mode == "RGB" else image.convert("RGB")  # which copies


def _open_avif(file: io.BytesIO) -> Image.Image:
    image = AvifImageFile(file)
    image.info.pop("xmp", None)  # Pillow also looks there for an orientation; only the container's counts
    return image


def _open_jpeg2000(file: io.BytesIO) -> Image.Image:
    image = Jpeg2KImageFile(file)
    if (profile := read_jpeg2000_profile(file.getvalue())) is not None:
        image.info["icc_profile"] = profile
    return image


def _open_tiff(file: io.BytesIO) -> Image.Image:
    try:
        return TiffImageFile(file)
    except SyntaxError as error:
        if not str(error).startswith("unknown"):  # data organization, pixel mode
            raise
        raise unsupported(f"TIFF of this variant ({error})") from error


def _open_heif(file: io.BytesIO) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile  # an extra
    except ImportError as error:
        raise ImageError(Reason.UNSUPPORTED, NO_HEIF) from error
    return HeifImageFile(file)  # type: ignore[no-untyped-call]


OPENERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "JPEG": jpeg_factory,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "AVIF": _open_avif,
    "TIFF": _open_tiff,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "JPEG2000": _open_jpeg2000,
    "HEIF": _open_heif,
}
"""By format. No other decoder gets untrusted bytes."""
CHECKS: dict[str, Callable[[bytes, int], None]] = {
    "WEBP": limits.check_webp,
    "AVIF": limits.check_isobmff,
    "TIFF": limits.check_tiff,
    "JPEG2000": check_jpeg2000,
    "HEIF": limits.check_heif,
}
"""By format, what runs before the opener."""


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError; decoders promise no particular exceptions."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        message = one_line(error)
        if isinstance(error, MemoryError) or "memory" in message.lower():
            raise ImageError(Reason.TOO_LARGE, "there is not enough memory to decode it") from error
        if message.startswith(("Unsupported", "conversion from")):
            raise ImageError(Reason.UNSUPPORTED, f"this variant of the format is not supported: {message}") from error
        raise ImageError(Reason.CORRUPT, f"the file is corrupt: {message}") from error


def _render(image: Image.Image) -> Image.Image:
    """Return the image as a viewer shows it."""
    profile = image.info.get("icc_profile")
    transposition = EXIF_TRANSPOSITIONS.get(_read_exif_orientation(image))
    if image.mode in HIGH_BIT_DEPTH_MODES:
        image = scale_to_8_bits(image)
    image = _composite_on_white(image)
    if profile:
        image = convert_to_srgb(image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB"), profile)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image if transposition is None else image.transpose(transposition)


def _composite_on_white(image: Image.Image) -> Image.Image:
    if "transparency" in image.info or image.mode in ("PA", "RGBa"):
        image = image.convert("RGBA")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode not in ("RGBA", "LA"):
        return image
    opaque = image.convert(image.mode[:-1])
    white = Image.new(opaque.mode, image.size, "white")
    white.paste(opaque, mask=image.getchannel("A"))
    return white


def _read_exif_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 -- viewers show photos with broken EXIF, too
        return 1
