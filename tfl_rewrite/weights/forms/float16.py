"""Float constants as float16: clamped to its finite range, with a count of what did not fit.

A value beyond 65504 would become infinite, and one below 2^-25 becomes zero; both are counted. What lies
between 2^-25 and 2^-14 is kept as a subnormal of fewer bits, which DEQUANTIZE reads (measured).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import Blob, ComputedBlob
from tfl_rewrite.numerics.symmetric import BLOCK_ELEMENTS, Error

LARGEST = float(np.finfo(np.float16).max)
SMALLEST_NORMAL = float(np.finfo(np.float16).tiny)

Float16 = npt.NDArray[np.float16]


@dataclass(slots=True)
class HalfError(Error):
    """What was lost by float16.

    Attributes:
        clamped: Elements beyond 65504, which became 65504.
        flushed: Elements that became zero.
        subnormal: Elements that lost bits because they are below 2^-14.
    """

    clamped: int = 0
    flushed: int = 0
    subnormal: int = 0


def to_half(values: npt.NDArray[Any], emit: Callable[[int, Float16], None]) -> HalfError:
    """Rounds to float16, block by block.

    Args:
        values: Flat finite float32 constants; not copied.
        emit: Called with the position of a block's first element and its values, in order.
    """
    error = HalfError()
    for start in range(0, values.size, BLOCK_ELEMENTS):
        block = np.asarray(values[start : start + BLOCK_ELEMENTS], np.float32)
        size = np.abs(block)
        # Rounding takes all below half a step beyond the largest to the largest; clipping does the rest.
        half = np.clip(block, -LARGEST, LARGEST).astype(np.float16)
        error.clamped += int(np.count_nonzero(size > LARGEST))
        zero = half == 0
        error.flushed += int(np.count_nonzero(zero & (size > 0)))
        error.subnormal += int(np.count_nonzero((size < SMALLEST_NORMAL) & ~zero & (half != block)))
        wide = block.astype(np.float64)
        error.signal += float(np.dot(wide, wide))
        wide -= half
        error.noise += float(np.dot(wide, wide))
        emit(start, half)
    return error


class Float16Cast:
    """Makes the float16 values of one float32 constant, and remembers what did not fit.

    Args:
        source: The constant.
    """

    def __init__(self, source: Blob) -> None:
        self._source = source
        self._error: HalfError | None = None

    def write_to(self, sink: Sink, offset: int) -> None:
        """Writes the values, block by block."""
        self._run(lambda start, block: sink.write_at(block.data, offset + 2 * start))

    def error(self) -> HalfError:
        """Returns what was lost; rounds now if nothing was written yet."""
        if self._error is None:
            self._run(lambda _start, _block: None)
        assert self._error is not None
        return self._error

    def blob(self) -> ComputedBlob:
        """Returns the values as bytes that are made while they are written."""
        return ComputedBlob(self._source.nbytes // 2, self.write_to)

    def _run(self, emit: Callable[[int, Float16], None]) -> None:
        values = np.frombuffer(self._source.view(), dtypes.FLOAT32.numpy)
        self._error = to_half(values, emit)
        del values
        self._source.release()
