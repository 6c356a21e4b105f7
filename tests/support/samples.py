"""A small real photo as a file of every format, in the variants that photo folders contain."""

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from tests.support import icc_profiles
from tests.support.paths import EXAMPLES

PHOTO = EXAMPLES / "coffee.jpg"
WIDTH, HEIGHT = 72, 48

AVIF_OF_10_BITS = base64.b64decode(
    "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAAAAAAAOcG"
    "l0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAAKQAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEAAGF2MDFDb2xvcgAAAABq"
    "aXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAQcGl4aQAAAAADCgoKAAAADGF2MUOBIEAAAAAAE2NvbHJuY2x4AAIAAgAAgAAAAB"
    "dpcG1hAAAAAAAAAAEAAQQBAoMEAAAAMW1kYXQSAAoJOBV//5wICAJAMhoQAACWl/47xG5u74QMmxNW83f8i+sIL4JMgA=="
)
"""64 x 64 pixels: 512 of 1023 on the left half, 1023 on the right. Pillow cannot write such a file."""

JPEG2000_OF_12_BITS = base64.b64decode(
    "AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaAAAABZpaGRyAAAAQAAAAEAAAQsHAAAAAAAPY29scgEAAAAAABEAAAEVan"
    "AyY/9P/1EAKQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAAAQsBAf9SAAwAAAABAAMEBAAB/1wADUBgaGhwaGhwaGhw/2QAJQAB"
    "Q3JlYXRlZCBieSBPcGVuSlBFRyB2ZXJzaW9uIDIuNS40/5AACgAAAAAAmgAB/5Pf4OAsW9ldFmQh34GQJaCu0hmeKbSv0Jm4jCVwYGrybzXD6K"
    "sQbxEPoqxDMuW+LmKp8YkltdZh14usv8fyLAAhbgxkVwnCBC8GamDVc/5Dl+Q5fkOXx/JOADXyP+N9y8rIsVsHHLxuvnHr2DYbArJBsNfnsA2G"
    "vnHgbDXvOoNhr8P2CABe+sU/m/z/f//Z"
)
"""64 x 64 grey pixels: 2048 of 4095 on the left half, 4095 on the right."""


def photo() -> Image.Image:
    """Return a small real photo, in RGB."""
    with Image.open(PHOTO) as file:
        return file.convert("RGB").resize((WIDTH, HEIGHT))


def half_transparent(image: Image.Image) -> Image.Image:
    """Add an alpha channel: transparent at the top, opaque at the bottom."""
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """Encode in one of Pillow's formats, or in HEIF, whose container gets the orientation of `exif`, too."""
    file = io.BytesIO()
    if image_format == "HEIF":
        import pillow_heif

        if isinstance(options.get("exif"), Image.Exif):
            options["exif"] = options["exif"].tobytes()
        pillow_heif.from_pillow(image).save(file, **options)
    else:
        image.save(file, image_format, **options)
    return file.getvalue()


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 0, extra: bytes = b"") -> bytes:
    """Build a PNG from its compressed rows, with `extra` chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    """Build a chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def tiff(tags: dict[int, tuple[int, ...]], pixels: bytes, order: str = "<") -> bytes:
    """
    Build an uncompressed TIFF of one strip.

    tags: integers by tag, stored in four bytes where the format has it so, else in two.
    """
    wide = {ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength, 254, 273, 278, 279, 322, 323, 330}
    start = b"II*\0" if order == "<" else b"MM\0*"
    tags = {273: (8,), 279: (len(pixels),)} | tags
    offset = 8 + len(pixels) + len(pixels) % 2
    entries, more = b"", b""
    after = offset + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        letter, number = ("I", 4) if tag in wide else ("H", 3)
        content = struct.pack(f"{order}{len(values)}{letter}", *values)
        entries += struct.pack(f"{order}HHI", tag, number, len(values))
        if len(content) > 4:
            entries += struct.pack(f"{order}I", after + len(more))
            more += content + bytes(len(content) % 2)
        else:
            entries += content + bytes(4 - len(content))
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + more
    return start + struct.pack(f"{order}I", offset) + pixels + bytes(len(pixels) % 2) + directory


def grey_tiff(values: Any, *, bits: int, photometric: int = 1, form: int = 1, order: str = "<") -> bytes:
    """Build a TIFF of one grey channel; at 12 bits, two values make three bytes."""
    values = np.asarray(values)
    height, width = values.shape
    if bits == 12:
        pairs = values.astype(int).reshape(-1, 2)
        pixels = b"".join((first << 12 | second).to_bytes(3, "big") for first, second in pairs.tolist())
    else:
        pixels = values.astype(f"{order}{'_uif'[form]}{bits // 8}").tobytes()
    tags = {256: (width,), 257: (height,), 258: (bits,), 259: (1,), 262: (photometric,), 277: (1,), 278: (height,)}
    return tiff({**tags, 339: (form,)}, pixels, order)


@cache
def every_sample() -> dict[str, bytes]:
    """Return files, by a name that begins with their format."""
    return {**dict(_encode_with_pillow()), **dict(_encode_with_pillow_heif())}


def _encode_with_pillow() -> Iterator[tuple[str, bytes]]:
    image = photo()
    alpha = half_transparent(image)
    grey = image.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "camera"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] = 100
    rich: dict[str, Any] = {"exif": exif.tobytes(), "icc_profile": icc_profiles.display_p3()}

    for name in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "JPEG2000", "MPO"):
        yield name, encoded(image, name)
    for name in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "MPO"):
        yield f"{name} with metadata", encoded(image, name, **rich)
    for name in ("PNG", "WEBP", "AVIF", "TIFF", "JPEG2000"):
        yield f"{name} with alpha", encoded(alpha, name)
    for name in ("JPEG", "PNG", "TIFF", "JPEG2000"):
        yield f"{name} in grey", encoded(grey, name)
    for name in ("PNG", "TIFF", "JPEG2000"):
        yield f"{name} in 16-bit grey", encoded(deep, name)
    for name in ("PNG", "TIFF", "BMP"):
        yield f"{name} with a palette", encoded(image.quantize(16), name)
        yield f"{name} in black and white", encoded(image.convert("1"), name)
    for name in ("JPEG", "TIFF"):
        yield f"{name} in CMYK", encoded(image.convert("CMYK"), name, icc_profile=icc_profiles.cmyk())
    for name in ("PNG", "WEBP", "GIF"):
        yield (f"{name} with frames", encoded(image, name, save_all=True, append_images=[image.rotate(180)]))
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield f"TIFF by {compression}", encoded(image, "TIFF", compression=compression)
    yield "TIFF in YCbCr", encoded(image.convert("YCbCr"), "TIFF", compression="jpeg")
    yield "TIFF in floats", encoded(grey.convert("F"), "TIFF")
    yield "TIFF in 32-bit grey", encoded(grey.convert("I"), "TIFF")
    yield "TIFF in 12-bit grey", grey_tiff(np.asarray(grey).astype(int) * 16, bits=12)
    yield "JPEG, progressive", encoded(image, "JPEG", progressive=True)
    yield "JPEG2000, codestream", encoded(image, "JPEG2000", no_jp2=True, tile_size=(32, 32))
    yield "WEBP, lossless", encoded(image, "WEBP", lossless=True)
    yield "AVIF in 10 bits", AVIF_OF_10_BITS
    yield "JPEG2000 in 12-bit grey", JPEG2000_OF_12_BITS
    row = np.dstack([np.asarray(image)] * 2).astype(">u2")[..., :4] * 257
    rows = b"".join(b"\0" + line.tobytes() for line in row)
    yield "PNG in 16 bits", png(WIDTH, HEIGHT, zlib.compress(rows), depth=16, colour=6)


def _encode_with_pillow_heif() -> Iterator[tuple[str, bytes]]:
    import pillow_heif

    image = photo()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    yield "HEIF", encoded(image, "HEIF")
    yield "HEIF with metadata", encoded(image, "HEIF", exif=exif.tobytes(), icc_profile=icc_profiles.display_p3())
    yield "HEIF with alpha", encoded(half_transparent(image), "HEIF")
    yield "HEIF in grey", encoded(image.convert("L"), "HEIF")
    yield "HEIF in tiles", encoded(image, "HEIF", tile_size=32)
    deep = np.asarray(image).astype(np.uint16) * 257
    file = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", image.size, deep.tobytes()).save(file)
    yield "HEIF in 10 bits", file.getvalue()
