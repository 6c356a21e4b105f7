"""What the first bytes of a file say it is; its name says nothing."""

from qsit.errors import ImageError
from qsit.states import Reason

STARTS = (
    (b"\xff\xd8\xff", "JPEG"),  # MPO, too
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II\0*", "TIFF"),  # wrong, but read
    (b"MM*\0", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)

STARTS_OF_OTHERS = (
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"MM\0+", "a big-endian BigTIFF"),
    (b"8BPS", "Photoshop's PSD"),
    (b"%PDF", "PDF"),
    (b"FUJIFILMCCD-RAW", "a Fujifilm raw file"),
    (b"IIRO", "an Olympus raw file"),
    (b"IIRS", "an Olympus raw file"),
    (b"IIU\0", "a Panasonic raw file"),
)

AVIF_BRANDS = frozenset([b"avif", b"avis"])
HEVC_BRANDS = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"])
HEIF_BRANDS = frozenset([b"mif1", b"mif2", b"msf1"])  # of the container, whatever is in it


def format_of(data: bytes) -> str:
    """
    JPEG, PNG, WEBP, AVIF, TIFF, GIF, BMP, JPEG2000 or HEIF.

    Raises:
        ImageError: when it is of a kind that is not read, or of none that is known.
    """
    for start, kind in STARTS:
        if data.startswith(start):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM" and data[15:18] == b"\0\0\0":  # the length of a header, which is short
        return "BMP"
    for start, words in STARTS_OF_OTHERS:
        if data.startswith(start):
            raise unsupported(words)
    if data[4:8] == b"ftyp":
        return _kind_by_brands(data)
    raise ImageError(Reason.NOT_AN_IMAGE, "the content is of no image format that is read")


def unsupported(words: str) -> ImageError:
    """That a photo is of a kind which is not read."""
    return ImageError(Reason.UNSUPPORTED, f"{words} is not read; convert it to JPEG or PNG")


def _kind_by_brands(data: bytes) -> str:
    """AVIF and HEIC share their container; the major brand counts, or those it is said to be compatible with."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    major = data[8:12]
    for brands in ({major}, {data[place : place + 4] for place in range(16, end, 4)}):
        if brands & AVIF_BRANDS:
            return "AVIF"
        if brands & HEVC_BRANDS:
            return "HEIF"
    if major in HEIF_BRANDS:
        return "HEIF"
    raise unsupported("a Canon raw file" if major == b"crx " else "a film, or another kind of ISO media file,")
