"""Build ICC profiles of version 2."""

import struct

D50 = (0.9642, 1.0, 0.8249)


def display_p3() -> bytes:
    """Return the wide-gamut profile of phones: its primaries under D50 and the curve of sRGB."""
    curve = _parametric(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags = {
        b"rXYZ": _xyz(0.51512, 0.2412, -0.00105),
        b"gXYZ": _xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": _xyz(0.1571, 0.06657, 0.78407),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    return _profile("Display P3", b"mntr", b"RGB ", b"XYZ ", tags)


def grey(gamma: float) -> bytes:
    """Return a grey profile with a gamma curve."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    return _profile(f"Grey {gamma}", b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve})


def cmyk() -> bytes:
    """Return a printer profile whose inks are all grey: Lab lightness 100 without ink, 0 with full ink of any kind."""
    points = bytes([255, 128, 128]) + 15 * bytes([0, 128, 128])  # a table of 2 x 2 x 2 x 2
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if row == column else 0 for row in range(3) for column in range(3)))
    table = b"mft1" + bytes(4) + struct.pack(">4B", 4, 3, 2, 0) + matrix + identity * 4 + points + identity * 3
    return _profile("Grey printer", b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def _profile(name: str, device: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    description = name.encode() + b"\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(description)) + description + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": _xyz(*D50),
    } | tags
    offset = 128 + 4 + 12 * len(tags)
    index, bodies = struct.pack(">I", len(tags)), b""
    for tag, body in tags.items():
        index += tag + struct.pack(">II", offset + len(bodies), len(body))
        bodies += body + bytes(-len(body) % 4)
    header = struct.pack(">I4xI4s4s4s", offset + len(bodies), 0x02400000, device, space, connection)
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", *(round(65536 * part) for part in D50))
    return header + bytes(128 - len(header)) + index + bodies


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * value) for value in values))


def _parametric(*values: float) -> bytes:
    return b"para" + bytes(4) + struct.pack(">HH5i", 3, 0, *(round(65536 * value) for value in values))
