"""Types that constants are stored in: their bits, levels and bytes."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import NamedTuple


class Dtype(str, enum.Enum):
    """What the elements of a constant become."""

    INT8 = "int8"
    INT6 = "int6"
    INT4 = "int4"
    INT2 = "int2"
    FLOAT16 = "float16"
    FLOAT32 = "float32"

    @property
    def bits(self) -> int:
        """Bits of an element."""
        return _BITS[self]

    @property
    def parts(self) -> tuple[Dtype, ...]:
        """The types that it is stored as: itself, or for ``int6`` an int4 and an int2 that add up."""
        return (Dtype.INT4, Dtype.INT2) if self is Dtype.INT6 else (self,)

    @property
    def tensor_type(self) -> str:
        """Its name in ``TensorType``; of the first part."""
        return self.parts[0].value.upper()

    @property
    def is_integer(self) -> bool:
        """Whether it needs scales."""
        return self.value.startswith("int")


_BITS = {
    Dtype.INT8: 8,
    Dtype.INT6: 6,
    Dtype.INT4: 4,
    Dtype.INT2: 2,
    Dtype.FLOAT16: 16,
    Dtype.FLOAT32: 32,
}


class Levels(NamedTuple):
    """The smallest and the largest integer that may be stored."""

    low: int
    high: int

    @classmethod
    def narrow(cls, bits: int) -> Levels:
        """As many below zero as above: what every kernel reads."""
        high = 2 ** (bits - 1) - 1
        return cls(-high, high)

    @classmethod
    def full(cls, bits: int) -> Levels:
        """All that the bits can hold: what DEQUANTIZE and lookups read."""
        return cls(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    @classmethod
    def of(cls, dtype: Dtype) -> Levels:
        """All that a type can hold, or the sum of its parts."""
        low, high = 0, 0
        for part in dtype.parts:
            bits = part.bits
            own = cls.full(bits)
            # Each part counts in steps that the next one divides.
            low, high = low * 2**bits + own.low, high * 2**bits + own.high
        return cls(low, high)


SCALE_NBYTES = 12
"""A float32 scale and an int64 zero point; the runtime refuses fewer zero points than scales."""


def scales_nbytes(count: int, parts: int = 1) -> int:
    """Returns the bytes of the scales of one tensor, without their zero points.

    Args:
        count: How many scales.
        parts: How many integer tensors carry them.
    """
    return 4 * count * parts


def zero_points_nbytes(count: int, sharing: int = 1) -> int:
    """Returns the bytes of one tensor's zero points: all are 0, and the file holds equal vectors once.

    Args:
        count: How many scales.
        sharing: Among how many constants with as many scales they are divided.
    """
    return -(-8 * count // max(1, sharing))


def packed_nbytes(elements: int, bits: int) -> int:
    """Returns the bytes of densely packed elements."""
    return (elements * bits + 7) // 8


def block_scales_nbytes(blocks: int) -> int:
    """Returns the bytes of the scales of so many blocks: a float16 each, and one float32 for them all."""
    return 2 * blocks + SCALE_NBYTES


def block_length(shape: Sequence[int], block: int) -> int | None:
    """Returns how long blocks of a constant are, given how long they are wanted; None if it does not fit.

    Blocks lie in row-major order. A row is what follows the first axis (all, where there is but one). The
    longest length up to ``block`` is taken that divides the row, so that no block holds weights of two
    outputs; where rows have no divisor of half the length or more, the longest that divides the whole. What
    is then shorter than a quarter of what was asked for would cost more for scales than it is worth.
    """
    elements = math.prod(shape)
    if not elements:
        return None
    row = math.prod(shape[1:]) if len(shape) > 1 else elements
    found = _divisor(row, block)
    if 2 * found < block:
        found = max(found, _divisor(elements, block))
    return found if 4 * found >= block else None


def _divisor(number: int, most: int) -> int:
    return max(size for size in range(1, most + 1) if number % size == 0)
