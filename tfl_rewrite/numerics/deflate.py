"""How many bytes a store or a server makes of some: zlib at level 9.

On rounded floats zlib finds matches everywhere and chooses among thousands, at well under a megabyte a
second. So of large data pieces are compressed, each with what lies before it as far as deflate looks back.
"""

from __future__ import annotations

import zlib

EXACT_NBYTES = 8 << 20
"""What is larger is estimated."""

SAMPLED_NBYTES = 4 << 20
"""Of pieces that a file is estimated from."""

_PIECE = 1 << 16
_WINDOW = 1 << 15
_RAW = -15


def deflated(data: bytes | bytearray | memoryview, *, level: int = 9) -> int:
    """Returns the size to the byte."""
    packer = zlib.compressobj(level)
    total = 0
    view = memoryview(data).cast("B")
    for start in range(0, len(view), 1 << 20):
        total += len(packer.compress(view[start : start + (1 << 20)]))
    return total + len(packer.flush())


def estimated(data: bytes | bytearray | memoryview, nbytes: int = SAMPLED_NBYTES) -> int:
    """Returns about the size.

    Args:
        data: What would be compressed; no more than that is not sampled.
        nbytes: How much of it is compressed, in pieces of 64 KiB that lie evenly.
    """
    view = memoryview(data).cast("B")
    count = max(1, nbytes // _PIECE)
    if len(view) <= count * _PIECE:
        return deflated(view)
    room = len(view) - _PIECE
    starts = [room * number // max(1, count - 1) for number in range(count)]
    made = 0
    for start in starts:
        packer = zlib.compressobj(9, zlib.DEFLATED, _RAW, zdict=bytes(view[max(0, start - _WINDOW) : start]))
        made += len(packer.compress(view[start : start + _PIECE])) + len(packer.flush())
    return round(made * len(view) / (count * _PIECE))


def deflated_or_estimated(data: memoryview) -> int:
    """Returns the deflated size, estimated where there is more than :data:`EXACT_NBYTES`."""
    return deflated(data) if len(data) <= EXACT_NBYTES else estimated(data)
