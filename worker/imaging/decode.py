"""From the bytes of a file to upright sRGB pixels, or to the reason why not.

Limits come before decoding, and the kind of a file is decided by its content, never by its name.
"""

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

from qsit.errors import ImageError
from qsit.states import Reason
from worker.imaging import limits
from worker.imaging.bit_depth import DEEP, to_eight_bits
from worker.imaging.color_profiles import to_srgb
from worker.imaging.formats import format_of, unsupported
from worker.imaging.jpeg2000 import check_jpeg2000, profile_of_jpeg2000

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", *DEEP)
"""Pillow's pixel layouts that become RGB here."""

NO_HEIF = "HEIC/HEIF is read with pillow-heif, which this worker lacks: pip install 'qsit[heif]'"


def decode(data: bytes, *, max_pixels: int, as_stored: bool = False) -> Image.Image:
    """
    The photo in `data` as an RGB image: its first frame, turned as it says, on white where it is transparent, more
    than 8 bits scaled to 8, colours converted to sRGB.

    as_stored: Pillow's `convert("RGB")` alone. HEIC and AVIF are as their plugins give them: HEIC turned (its decoder
    turns it), AVIF not.

    Raises:
        ImageError: when it is empty, no image, of an unsupported kind, too large, or broken.
    """
    if not data:
        raise ImageError(Reason.EMPTY, "the file has zero bytes")
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is fixed and sometimes a warning; ours follows below
    kind = format_of(data)
    with _broken_data():
        if kind in CHECKS:
            CHECKS[kind](data, max_pixels)
        image = OPENERS[kind](io.BytesIO(data))
        limits.check_size(*image.size, max_pixels)
        if image.mode not in MODES:
            raise ImageError(Reason.UNSUPPORTED, f"{kind} of colour mode {image.mode} is not read; convert it to RGB")
        image.load()
        if not as_stored:
            return _as_shown(image)
        return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _avif(file: io.BytesIO) -> Image.Image:
    image = AvifImageFile(file)
    image.info.pop("xmp", None)  # Pillow would look there, too, for how to turn it; only the container says that
    return image


def _jpeg2000(file: io.BytesIO) -> Image.Image:
    image = Jpeg2KImageFile(file)
    if (profile := profile_of_jpeg2000(file.getvalue())) is not None:
        image.info["icc_profile"] = profile
    return image


def _tiff(file: io.BytesIO) -> Image.Image:
    try:
        return TiffImageFile(file)
    except SyntaxError as error:
        if not str(error).startswith("unknown"):  # data organization, pixel mode
            raise
        raise unsupported(f"TIFF of this kind ({error})") from error


def _heif(file: io.BytesIO) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile  # an extra

        image: Image.Image = HeifImageFile(file)  # type: ignore[no-untyped-call]
        return image
    except ImportError as error:
        raise ImageError(Reason.UNSUPPORTED, NO_HEIF) from error


OPENERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "JPEG": jpeg_factory,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "AVIF": _avif,
    "TIFF": _tiff,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "JPEG2000": _jpeg2000,
    "HEIF": _heif,
}
"""No other decoder meets a stranger's bytes."""

CHECKS: dict[str, Callable[[bytes, int], None]] = {
    "WEBP": limits.check_webp,
    "AVIF": limits.check_whole,
    "TIFF": limits.check_tiff,
    "JPEG2000": check_jpeg2000,
    "HEIF": limits.check_heif,
}


@contextmanager
def _broken_data() -> Iterator[None]:
    """Whatever a decoder raises on bad data becomes one error; none promises a particular one."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, MemoryError) or "memory" in words.lower():
            raise ImageError(Reason.TOO_LARGE, "decoding it needs more memory than there is") from error
        if words.startswith(("Unsupported", "conversion from")):
            raise ImageError(Reason.UNSUPPORTED, f"it is of a kind that is not read: {words}") from error
        raise ImageError(Reason.CORRUPT, f"the data is broken: {words}") from error


def _as_shown(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    turn = _TURNS.get(_orientation(image))
    if image.mode in DEEP:
        image = to_eight_bits(image)
    image = _on_white(image)
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    if profile:
        image = to_srgb(image, profile)
    if image.mode != "RGB":
        image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image.Image) -> Image.Image:
    if "transparency" in image.info or image.mode in ("PA", "RGBa"):
        image = image.convert("RGBA")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode not in ("RGBA", "LA"):
        return image
    colours = image.convert(image.mode[:-1])
    white = Image.new(colours.mode, image.size, "white")
    white.paste(colours, mask=image.getchannel("A"))
    return white


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
