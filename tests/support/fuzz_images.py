"""
Decodes broken photos until its time is over; a process of its own, for it may crash.

    python -m tests.support.fuzz_images SECONDS FIRST_SEED NOTE

NOTE is a file that holds the example in hand. When this process dies, it is what killed it.
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
from worker.imaging.formats import format_of

MAX_PIXELS = 500_000
MEMORY = 4 << 30  # addresses; decoders with threads take many and use few
GROWTH_KB = 300 << 10
EXAMPLE_S = 20

Change = Callable[[bytearray], None]
places = st.one_of(st.integers(0, 400), st.integers(0, 1 << 16))
lengths = st.one_of(st.integers(1, 16), st.integers(1, 4000))


def flip(place: int, bits: int) -> Change:
    def change(data: bytearray) -> None:
        data[place % len(data)] ^= bits

    return change


def cut(place: int, length: int) -> Change:
    def change(data: bytearray) -> None:
        start = place % len(data)
        del data[start : start + length]

    return change


def end(place: int) -> Change:
    def change(data: bytearray) -> None:
        del data[place % len(data) :]

    return change


def insert(place: int, piece: bytes) -> Change:
    def change(data: bytearray) -> None:
        start = place % len(data)
        data[start:start] = piece

    return change


def number(place: int, code: str, value: int) -> Change:
    """Sizes, counts and offsets are what decoders trust."""

    def change(data: bytearray) -> None:
        piece = struct.pack(code, value & ((1 << 8 * struct.calcsize(code)) - 1))
        start = place % len(data)
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


def repeat(place: int, length: int) -> Change:
    def change(data: bytearray) -> None:
        start = place % len(data)
        data[start:start] = data[start : start + length]

    return change


def swap_chunks(one: int, other: int) -> Change:
    """Of a PNG, or the boxes or segments of other formats, as far as they look like some."""

    def change(data: bytearray) -> None:
        parts = chunks(bytes(data))
        if len(parts) > 2:
            first, second = 1 + one % (len(parts) - 1), 1 + other % (len(parts) - 1)
            parts[first], parts[second] = parts[second], parts[first]
            data[:] = b"".join(parts)

    return change


def chunks(data: bytes) -> list[bytes]:
    """The parts that a file is made of; the first is its start."""
    is_png, is_jpeg = data.startswith(b"\x89PNG"), data.startswith(b"\xff\xd8")
    place = 8 if is_png else 2 if is_jpeg else 0
    parts = [data[:place]]
    while place < len(data):
        if is_jpeg:
            length = 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        else:
            length = 12 * is_png + int.from_bytes(data[place : place + 4], "big")
        parts.append(data[place : place + max(length, 4)])
        place += max(length, 4)
    return parts


def with_right_sums(data: bytes) -> bytes:
    """A PNG whose chunks pass their check, so that what is in them is read."""
    if data[:4] != b"\x89PNG":
        return data
    start, *parts = chunks(data)
    return start + b"".join(chunk(part[4:8], part[8:-4]) for part in parts if len(part) >= 12)


changes = st.one_of(
    st.builds(flip, places, st.integers(1, 255)),
    st.builds(flip, places, st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128])),
    st.builds(cut, places, lengths),
    st.builds(end, places),
    st.builds(insert, places, st.binary(min_size=1, max_size=64)),
    st.builds(
        number,
        places,
        st.sampled_from(["B", "<H", ">H", "<I", ">I"]),
        st.one_of(st.sampled_from([0, 1, 255, 256, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, -1]), st.integers(0, 1 << 32)),
    ),
    st.builds(swap, places, places, lengths),
    st.builds(repeat, places, lengths),
    st.builds(swap_chunks, st.integers(0, 50), st.integers(0, 50)),
)


def size_in_header(data: bytes) -> tuple[int, int]:
    return OPENERS[format_of(data)](io.BytesIO(data)).size


def peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def check(data: bytes, as_stored: bool) -> None:
    """It ends in pixels of the header's size or in an ImageError, and takes no more memory than they do."""
    before = peak_kb()
    try:
        image = decode(data, max_pixels=MAX_PIXELS, as_stored=as_stored)
    except ImageError as error:
        assert str(error) == " ".join(str(error).split())  # noqa: PT017 -- either end is right
    else:
        assert image.mode == "RGB"
        size = size_in_header(data)
        cropped = format_of(data) == "HEIF" and image.width * image.height <= MAX_PIXELS  # a crop of 7 1/2 pixels, say
        assert cropped or image.size in (size, size[::-1]), size
        assert image.tobytes()
    assert peak_kb() - before < GROWTH_KB, f"it took {(peak_kb() - before) // 1024} MB"


def main(seconds: float, first_seed: int, note: Path) -> None:
    """Rounds of examples, each with the next seed."""
    samples = every_sample()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module="PIL")  # as a worker does
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
            right_sums=st.booleans(),
            as_stored=st.booleans(),
        )
        def examples(name: str, mutations: list[Change], right_sums: bool, as_stored: bool) -> None:
            nonlocal tried
            if time.monotonic() > until:
                return
            data = bytearray(samples[name])
            for mutation in mutations:
                if data:
                    mutation(data)
            broken = with_right_sums(bytes(data)) if right_sums else bytes(data)
            note.write_bytes(broken)
            signal.alarm(EXAMPLE_S)
            check(broken, as_stored)
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
