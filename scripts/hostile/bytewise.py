"""Damage to the bytes of a model, whatever they mean: cuts, words, offsets, and the ZIP at its end."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random

WORDS = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    0x7F,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFC,
    0xFFFFFFFF,
)
STEPS = (-64, -16, -8, -4, -2, -1, 1, 2, 4, 8, 16, 64, 256)
Spans = Sequence[tuple[int, int]]


def mutated_bytes(data: bytes, random: Random, spans: Spans) -> bytes:
    """Returns a damaged copy.

    Args:
        data: A model.
        random: Decides everything.
        spans: What offsets reach in it; most damage goes to the short ones, which are tables and not weights.
    """
    made = bytearray(data)
    if not made:
        return bytes(random.randbytes(random.randrange(64)))
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        random.choices(_KINDS, _WEIGHTS)[0](made, random, spans)
        if not made:
            break
    return bytes(made)


def _position(made: bytearray, random: Random, spans: Spans) -> int:
    where = random.random()
    if spans and where < 0.75:
        start, end = random.choice(spans)
        return min(random.randrange(start, max(start + 1, min(end, start + 256))), len(made) - 1)
    if where < 0.8:
        return random.randrange(min(64, len(made)))
    if where < 0.9:
        return len(made) - 1 - random.randrange(min(512, len(made)))
    return random.randrange(len(made))


def _byte(made: bytearray, random: Random, spans: Spans) -> None:
    made[_position(made, random, spans)] = random.randrange(256)


def _bit(made: bytearray, random: Random, spans: Spans) -> None:
    made[_position(made, random, spans)] ^= 1 << random.randrange(8)


def _word(made: bytearray, random: Random, spans: Spans) -> None:
    """Sets an aligned number of 2, 4 or 8 bytes to a value that overflows somewhere."""
    width = random.choice((2, 4, 4, 4, 8))
    at = _position(made, random, spans) // width * width
    value = random.choice(WORDS)
    if random.random() < 0.3:
        old = int.from_bytes(made[at : at + width], "little")
        value = old + random.choice((*STEPS, len(made), -len(made)))
    raw = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    made[at : at + width] = raw[: len(made) - at]


def _redirect(made: bytearray, random: Random, spans: Spans) -> None:
    """Makes an offset lead to the start of something else that is really there."""
    at = _position(made, random, spans) // 4 * 4
    if spans and at + 4 <= len(made):
        struct.pack_into("<I", made, at, (random.choice(spans)[0] - at) & 0xFFFFFFFF)


def _copy(made: bytearray, random: Random, spans: Spans) -> None:
    """Puts what stands in one place into another."""
    length = random.choice((2, 4, 8, 16, 32))
    source, target = _position(made, random, spans), _position(made, random, spans)
    piece = made[source : source + length]
    made[target : target + len(piece)] = piece


def _cut(made: bytearray, random: Random, spans: Spans) -> None:
    del made[_position(made, random, spans) :]


def _remove(made: bytearray, random: Random, spans: Spans) -> None:
    at = _position(made, random, spans)
    del made[at : at + random.choice((1, 2, 4, 8, 64))]


def _insert(made: bytearray, random: Random, spans: Spans) -> None:
    at = _position(made, random, spans)
    made[at:at] = random.randbytes(random.choice((1, 2, 4, 8, 64)))


def _append(made: bytearray, random: Random, spans: Spans) -> None:
    made += random.choice((bytes(16), b"\xff" * 16, random.randbytes(24)))


def _blank(made: bytearray, random: Random, spans: Spans) -> None:
    at = _position(made, random, spans)
    length = min(random.choice((4, 16, 64, 1024)), len(made) - at)
    made[at : at + length] = random.choice((b"\0", b"\xff")) * length


def _zip(made: bytearray, random: Random, spans: Spans) -> None:
    """Appends a ZIP, or damages the one that is there."""
    end = made.rfind(b"PK\x05\x06")
    if end < 0:
        made += dishonest_zip(random, len(made))
        return
    start = max(0, made.rfind(b"PK\x03\x04", 0, end), end - 400)
    for _ in range(random.randrange(1, 4)):
        at = random.randrange(start, len(made)) if random.random() < 0.4 else end + random.randrange(22)
        width = random.choice((1, 2, 4))
        if at + width <= len(made):
            made[at : at + width] = random.choice(WORDS).to_bytes(8, "little")[:width]


_ROWS: tuple[tuple[Callable[[bytearray, Random, Spans], None], int], ...] = (
    (_byte, 10),
    (_bit, 10),
    (_word, 35),
    (_redirect, 15),
    (_copy, 8),
    (_cut, 4),
    (_remove, 4),
    (_insert, 4),
    (_append, 2),
    (_blank, 3),
    (_zip, 5),
)
_KINDS = [kind for kind, _ in _ROWS]
_WEIGHTS = [weight for _, weight in _ROWS]

MEMBERS = (
    "labels.txt",
    "../../../../tmp/escaped.txt",
    "/tmp/escaped.txt",
    "C:\\escaped.txt",
    "a/../../b",
    "\x1b[31mred\x1b[0m",
    "‮txt.exe",
    "name\nwith lines",
    "n" * 300,
)


def dishonest_zip(random: Random, offset: int) -> bytes:
    """Returns a ZIP whose names lead out, whose members are bombs, or whose records lie.

    Args:
        random: Decides everything.
        offset: Where in the file it will start; offsets count from there, or from the start of the file.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for member in random.sample(MEMBERS, random.randrange(4)):
            bomb = random.random() < 0.3
            row = zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0))
            row.compress_type = zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED
            archive.writestr(row, bytes(1 << 20) if bomb else b"label\n" * random.randrange(20))
        if random.random() < 0.2:
            archive.comment = random.choice((b"PK\x05\x06" + bytes(18), b"x" * 100, b"\x1b[2J"))
    made = bytearray(stream.getvalue())
    end = made.rfind(b"PK\x05\x06")
    if random.random() < 0.5:
        # From the start of the file, as the format wants it.
        position = 0
        while (position := made.find(b"PK\x01\x02", position)) >= 0 and position + 46 <= len(made):
            _add(made, position + 42, offset)
            position += 46
        _add(made, end + 16, offset)
    if random.random() < 0.5:
        at, width = random.choice(((8, 2), (10, 2), (12, 4), (16, 4), (20, 2)))
        made[end + at : end + at + width] = random.choice(WORDS).to_bytes(8, "little")[:width]
    if random.random() < 0.1:
        # A second end record in front of the last one.
        made[end:end] = made[end:]
    return bytes(made)


def _add(made: bytearray, at: int, number: int) -> None:
    value = struct.unpack_from("<I", made, at)[0]
    struct.pack_into("<I", made, at, (value + number) & 0xFFFFFFFF)


def checksum(data: bytes) -> int:
    """Returns a short fingerprint, for names of files."""
    return zlib.crc32(data)
