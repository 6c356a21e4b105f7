"""
Decode mutated photos until the time is over; run it in a process of its own, which may crash.

    python -m tests.support.fuzz_images SECONDS FIRST_SEED NOTE

NOTE is a file for the current example; when the process dies, it contains the cause.
"""

import io
import resource
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from qsit.errors import ImageError
from tests.support.samples import chunk, every_sample
from worker.imaging.decode import OPENERS, decode
from worker.imaging.formats import detect_format

MAX_PIXELS = 500_000
ADDRESS_SPACE = 4 << 30  # far more than memory: decoders with threads reserve much and use little
GROWTH_KB = 300 << 10
EXAMPLE_S = 20

Change = Callable[[bytearray], None]
offsets = st.one_of(st.integers(0, 400), st.integers(0, 1 << 16))
lengths = st.one_of(st.integers(1, 16), st.integers(1, 4000))


def flip(offset: int, bits: int) -> Change:
    def change(data: bytearray) -> None:
        data[offset % len(data)] ^= bits

    return change


def cut(offset: int, length: int) -> Change:
    def change(data: bytearray) -> None:
        start = offset % len(data)
        del data[start : start + length]

    return change


def end(offset: int) -> Change:
    def change(data: bytearray) -> None:
        del data[offset % len(data) :]

    return change


def insert(offset: int, piece: bytes) -> Change:
    def change(data: bytearray) -> None:
        start = offset % len(data)
        data[start:start] = piece

    return change


def number(offset: int, code: str, value: int) -> Change:
    """Overwrite a number, such as a size, count or offset that a decoder trusts."""

    def change(data: bytearray) -> None:
        piece = struct.pack(code, value & ((1 << 8 * struct.calcsize(code)) - 1))
        start = offset % len(data)
        data[start : start + len(piece)] = piece

    return change


def swap(one: int, other: int, length: int) -> Change:
    def change(data: bytearray) -> None:
        first, second = sorted((one % len(data), other % len(data)))
        length_ = min(length, second - first, len(data) - second)
        data[first : first + length_], data[second : second + length_] = (
            data[second : second + length_],
            data[first : first + length_],
        )

    return change


def repeat(offset: int, length: int) -> Change:
    def change(data: bytearray) -> None:
        start = offset % len(data)
        data[start:start] = data[start : start + length]

    return change


def swap_chunks(one: int, other: int) -> Change:
    """Swap chunks of a PNG, or what looks like boxes or segments of other formats."""

    def change(data: bytearray) -> None:
        parts = chunks(bytes(data))
        if len(parts) > 2:
            first, second = 1 + one % (len(parts) - 1), 1 + other % (len(parts) - 1)
            parts[first], parts[second] = parts[second], parts[first]
            data[:] = b"".join(parts)

    return change


def chunks(data: bytes) -> list[bytes]:
    """Split a file into its signature and its chunks."""
    is_png, is_jpeg = data.startswith(b"\x89PNG"), data.startswith(b"\xff\xd8")
    offset = 8 if is_png else 2 if is_jpeg else 0
    parts = [data[:offset]]
    while offset < len(data):
        if is_jpeg:
            length = 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
        else:
            length = 12 * is_png + int.from_bytes(data[offset : offset + 4], "big")
        parts.append(data[offset : offset + max(length, 4)])
        offset += max(length, 4)
    return parts


def fix_checksums(data: bytes) -> bytes:
    """Give the chunks of a PNG valid checksums, so that the decoder reads them."""
    if data[:4] != b"\x89PNG":
        return data
    start, *parts = chunks(data)
    return start + b"".join(chunk(part[4:8], part[8:-4]) for part in parts if len(part) >= 12)


changes = st.one_of(
    st.builds(flip, offsets, st.integers(1, 255)),
    st.builds(flip, offsets, st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128])),
    st.builds(cut, offsets, lengths),
    st.builds(end, offsets),
    st.builds(insert, offsets, st.binary(min_size=1, max_size=64)),
    st.builds(
        number,
        offsets,
        st.sampled_from(["B", "<H", ">H", "<I", ">I"]),
        st.one_of(st.sampled_from([0, 1, 255, 256, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, -1]), st.integers(0, 1 << 32)),
    ),
    st.builds(swap, offsets, offsets, lengths),
    st.builds(repeat, offsets, lengths),
    st.builds(swap_chunks, st.integers(0, 50), st.integers(0, 50)),
)


def size_in_header(data: bytes) -> tuple[int, int]:
    return OPENERS[detect_format(data)](io.BytesIO(data)).size


def peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def check(data: bytes, as_stored: bool) -> None:
    """Assert that decoding gives pixels of the header's size or an ImageError, within the memory limit."""
    before = peak_kb()
    try:
        image = decode(data, max_pixels=MAX_PIXELS, as_stored=as_stored)
    except ImageError as error:
        assert str(error) == " ".join(str(error).split())  # noqa: PT017 -- both outcomes are right
    else:
        assert image.mode == "RGB"
        size = size_in_header(data)
        cropped = detect_format(data) == "HEIF" and image.width * image.height <= MAX_PIXELS
        assert cropped or image.size in (size, size[::-1]), size
        assert image.tobytes()
    assert peak_kb() - before < GROWTH_KB, f"took {(peak_kb() - before) // 1024} MB"


def main(seconds: float, first_seed: int, note: Path) -> None:
    """Run rounds of examples, each with the next seed."""
    samples = every_sample()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module="PIL")  # as the worker does
    for data in samples.values():
        check(data, False)
    tried = 0

    def one_round(round_seed: int) -> None:
        @seed(round_seed)
        @settings(
            max_examples=500,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(
            name=st.sampled_from(sorted(samples)),
            mutations=st.lists(changes, min_size=1, max_size=5),
            has_checksums=st.booleans(),
            as_stored=st.booleans(),
        )
        def examples(name: str, mutations: list[Change], has_checksums: bool, as_stored: bool) -> None:
            nonlocal tried
            if time.monotonic() > until:
                return
            data = bytearray(samples[name])
            for mutation in mutations:
                if data:
                    mutation(data)
            mutated = fix_checksums(bytes(data)) if has_checksums else bytes(data)
            note.write_bytes(mutated)
            signal.alarm(EXAMPLE_S)
            check(mutated, as_stored)
            signal.alarm(0)
            tried += 1

        examples()

    until = time.monotonic() + seconds
    round_seed = first_seed
    while time.monotonic() < until:
        one_round(round_seed)
        round_seed += 1
    print(tried)  # noqa: T201 -- what the parent reads


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
