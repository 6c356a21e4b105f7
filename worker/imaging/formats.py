"""Detect the format of a file by its content; the name does not count."""

from qsit.errors import ImageError
from qsit.states import Reason

SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),  # MPO, too
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    ((b"GIF87a", b"GIF89a"), "GIF"),
    ((b"II*\0", b"MM\0*", b"II+\0"), "TIFF"),  # the last is BigTIFF
    ((b"II\0*", b"MM*\0"), "TIFF"),  # wrong byte order, but Pillow reads it
    ((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"), "JPEG2000"),
)
UNSUPPORTED_SIGNATURES = (
    ((b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a"), "JPEG XL"),
    (b"MM\0+", "big-endian BigTIFF"),
    (b"8BPS", "Photoshop's PSD"),
    (b"%PDF", "PDF"),
    (b"FUJIFILMCCD-RAW", "Fujifilm raw"),
    ((b"IIRO", b"IIRS"), "Olympus raw"),
    (b"IIU\0", "Panasonic raw"),
)
AVIF_BRANDS = frozenset([b"avif", b"avis"])
HEVC_BRANDS = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"])
HEIF_BRANDS = frozenset([b"mif1", b"mif2", b"msf1"])  # of the container, whatever codec it has


def detect_format(data: bytes) -> str:
    """Return JPEG, PNG, WEBP, AVIF, TIFF, GIF, BMP, JPEG2000 or HEIF. Raises ImageError for any other."""
    for signatures, name in SIGNATURES:
        if data.startswith(signatures):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM" and data[15:18] == b"\0\0\0":  # high bytes of the header's length
        return "BMP"
    for signatures, name in UNSUPPORTED_SIGNATURES:
        if data.startswith(signatures):
            raise unsupported(name)
    if data[4:8] == b"ftyp":
        return _detect_by_brands(data)
    raise ImageError(Reason.NOT_AN_IMAGE, "the content has no supported image format")


def unsupported(name: str) -> ImageError:
    """Return the error for a format, or a variant of one, that is not supported."""
    return ImageError(Reason.UNSUPPORTED, f"{name} is not supported; convert it to JPEG or PNG")


def _detect_by_brands(data: bytes) -> str:
    """Tell AVIF from HEIC, which share a container, by the major brand, then by the compatible brands."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    major = data[8:12]
    for brands in ({major}, {data[offset : offset + 4] for offset in range(16, end, 4)}):
        if brands & AVIF_BRANDS:
            return "AVIF"
        if brands & HEVC_BRANDS:
            return "HEIF"
    if major in HEIF_BRANDS:
        return "HEIF"
    raise unsupported("Canon raw" if major == b"crx " else "video, or another ISO media file,")
