"""What is left of float weights when integers and scales are known, and the floats that come of both again.

The integers and their scales, which the base has, predict a float: ``code * scale``, rounded to float32.
Between a float and what is predicted for it lie few other floats, so their number says which one it is. Bits
of a float are taken as an integer in whose order floats lie (negative ones count down from -1), and the
difference, modulo 2^32, is folded so that small ones of either sign are small numbers: 0, -1, 1, -2 become 0,
1, 2, 3.

The larger a code, the closer floats lie to each other beside the step of the code, and the fewer bits are
left. So the differences of a row are sorted by the magnitude of their code, in order where it is equal, and
stored byte by byte: first the highest bytes of all, the lowest last. Deflate makes those small that are no
noise.

A float16 number is the upper half of 32 bits, and differences are those of upper halves. It is predicted from
the bits of a float32 number with the exponent corrected and the rest rounded; subnormal ones count as zero.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.shards.manifest import Manifest, WeightRow

_PIECE = 1 << 20

# Parts that hold all bytes as they are need no arrays.
if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Codes = npt.NDArray[np.int8]
    Scales = npt.NDArray[np.float32]


def encode(floats: memoryview, codes: Codes, scales: Scales, width: int) -> bytes:
    """Returns what is left of floats, as many bytes as they have.

    Args:
        floats: Little-endian float32 or float16.
        codes: ``[elements]``.
        scales: ``[elements]``, that of each code.
        width: Bytes of a float.
    """
    import numpy as np

    shift = 32 - 8 * width
    bits = np.frombuffer(floats, f"<i{width}").astype(np.int32) << shift
    left = (_ordered(bits) >> shift) - (_ordered(_predicted(codes, scales, width)) >> shift)
    # Differences are numbers of as many bytes; what is over goes.
    left = (left << shift) >> shift
    folded = (left << 1) ^ (left >> 31)
    planes = folded[_order(codes)].astype("<u4", copy=False).view(np.uint8).reshape(-1, 4)
    return bytes(planes[:, width - 1 :: -1].T.tobytes())


def decode(left: bytes | bytearray, codes: Codes, scales: Scales, width: int) -> bytes:
    """Returns the floats of which :func:`encode` left this."""
    import numpy as np

    shift = 32 - 8 * width
    planes = np.zeros((len(codes), 4), np.uint8)
    planes[:, width - 1 :: -1] = np.frombuffer(left, np.uint8).reshape(width, -1).T
    folded = np.empty(len(codes), "<u4")
    folded[_order(codes)] = planes.view("<u4")[:, 0]
    difference = (folded >> 1).view(np.int32) ^ -(folded & 1).astype(np.int32)
    order = (_ordered(_predicted(codes, scales, width)) >> shift) + difference
    return bytes((_ordered(order << shift) >> shift).astype(f"<i{width}").tobytes())


_LEAST_HALF = 0x38000000
"""Bits of 2^-15 as float32: those of float16 begin at another exponent, 112 less."""
_INFINITE_HALF = 0x7C00


def _predicted(codes: Codes, scales: Scales, width: int) -> npt.NDArray[np.int32]:
    """Returns the bits of products; those of float16 in the upper half."""
    import numpy as np

    with np.errstate(all="ignore"):
        bits = (codes.astype(np.float32) * scales).view(np.int32)
    if width == 4:
        return bits
    half = np.clip(((bits & 0x7FFFFFFF) - _LEAST_HALF + 0x1000) >> 13, 0, _INFINITE_HALF)
    made: npt.NDArray[np.int32] = (bits & np.int32(-0x80000000)) | (half << 16)
    return made


def _ordered(bits: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Turns bits of floats into integers in their order, and back."""
    made: npt.NDArray[np.int32] = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return made


def _order(codes: Codes) -> npt.NDArray[np.intp]:
    import numpy as np

    return np.argsort(np.abs(codes.astype(np.int16)).astype(np.uint8), kind="stable")


def codes_and_scales(row: WeightRow, base: memoryview) -> tuple[Codes, Scales]:
    """Reads what a row is predicted from, ``[elements]`` each; the codes are a view."""
    import numpy as np

    codes = np.frombuffer(base, np.int8, row.elements, row.codes)
    scales = np.frombuffer(base, "<f4", row.channels, row.scales)
    numbers = (np.arange(row.first, row.first + row.elements) // row.inner) % row.channels
    return codes, scales[numbers].astype(np.float32, copy=False)


class Residual:
    """Makes a model of its base and of what is left.

    Args:
        manifest: Checked; it has a base.
        base: All bytes of that, which were found right.
    """

    def __init__(self, manifest: Manifest, base: memoryview) -> None:
        self._base = base
        self._copies = manifest.copies()
        self._groups = sorted(manifest.weights().items())
        self._starts = [start for start, _ in self._groups]

    def copy_to(self, sink: Sink) -> Iterator[int]:
        """Writes what the base has as it is, piece by piece; yields how many bytes each has."""
        for offset, nbytes, position in self._copies:
            for start in range(0, nbytes, _PIECE):
                length = min(_PIECE, nbytes - start)
                sink.write_at(self._base[offset + start : offset + start + length], position + start)
                yield length

    def over(self, sink: Sink) -> Sink:
        """Returns a sink for what parts hold, each written to by one thread, and each byte once."""
        return _Decoder(self, sink)

    def group_at(self, position: int) -> list[tuple[int, WeightRow]]:
        """Returns the rows that share their bytes, where ``position`` is in the place of the first."""
        index = bisect.bisect_right(self._starts, position) - 1
        if index < 0:
            return []
        start, rows = self._groups[index]
        return rows if position < start + rows[0][1].nbytes else []

    def floats(self, row: WeightRow, left: bytes | bytearray) -> bytes:
        """Returns the floats of a row."""
        return decode(left, *codes_and_scales(row, self._base), row.width)


class _Decoder:
    """A sink that puts floats in the place of what is left of them.

    What is left of a row comes in order, and rows of one part come one after the other: one is held at most.
    """

    def __init__(self, residual: Residual, sink: Sink) -> None:
        self._residual = residual
        self._sink = sink
        self._held = bytearray()

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Writes bytes that are no weights; holds others until their row is complete."""
        rows = self._residual.group_at(offset)
        if not rows:
            self._sink.write_at(data, offset)
            return
        self._held += data
        if len(self._held) == rows[0][1].nbytes:
            for position, row in rows:
                self._sink.write_at(self._residual.floats(row, self._held), position)
            self._held = bytearray()
