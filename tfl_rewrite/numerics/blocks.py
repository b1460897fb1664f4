"""Scales of blocks as a file holds them, and how long blocks may be.

The file stores ``factor`` as the scale of the integer tensor and the quotients beside it; DEQUANTIZE gives
``integer * factor`` and MUL multiplies by the quotient. The factor is a power of two and both other numbers
have 11 bits at most, so that the product is exact, and any range of 2^29 fits without an underflow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tfl_rewrite.numerics.symmetric import SMALLEST_SCALE, Float32
from tfl_rewrite.options.frozen import frozen

_TOP = 14  # The largest quotient lies in [2^14, 2^15): far from what float16 cannot hold.
_HALF_NORMAL = np.float32(np.finfo(np.float16).tiny)
_LARGEST_POWER = 127

FITTING = 0
"""As the elements of a block: a length for each constant, by error and bytes; any that divides a row."""

_LENGTHS = 16, 32, 64, 128, 256
"""Of blocks, at most, that are weighed where no length is asked for; and whole rows."""

SMALLEST_DIRECT = float(_HALF_NORMAL)
"""The least scale that a kernel reads as float16."""


@frozen
class BlockScales:
    """The scales of all blocks of a constant.

    Attributes:
        factor: A power of two.
        quotients: Float16 ``[blocks]``, all normal numbers.
        effective: Float32 ``[blocks]``: what they multiply to, exactly.
    """

    factor: float
    quotients: npt.NDArray[np.float16]
    effective: Float32


def factored(scale: Float32, zero: npt.NDArray[np.bool_] | None = None) -> BlockScales:
    """Returns the nearest scales that can be stored with a common factor.

    Args:
        scale: Float32 ``[blocks]``, positive and finite. Those below 2^-28 of the largest become that.
        zero: Bool ``[blocks]``: which hold zeros only, so that their scale does not matter.
    """
    scale = _without(scale, zero)
    # As float16 rounds it: what the scales of a file say gives the same factor again.
    fraction, exponent = np.frexp(float(scale.max()))
    power = int(exponent) - (0 if np.float16(fraction) == 1 else 1) - _TOP
    smallest = int(np.log2(SMALLEST_SCALE))
    factor = 2.0 ** min(max(power, smallest), _LARGEST_POWER)
    return _stored(scale, factor)


def direct(scale: Float32, zero: npt.NDArray[np.bool_] | None = None) -> BlockScales | None:
    """Returns scales for a kernel that reads float16 scales without a factor; None where some underflow.

    XNNPACK refuses scales that are zero, subnormal or infinite (``CheckFp16Scale``).

    Args:
        scale: Float32 ``[blocks]``, positive and finite.
        zero: Bool ``[blocks]``: which hold zeros only, so that their scale does not matter.
    """
    scale = _without(scale, zero)
    if float(scale.min()) < _HALF_NORMAL or float(scale.max()) > float(np.finfo(np.float16).max):
        return None
    return _stored(scale, 1.0)


def _without(scale: Float32, zero: npt.NDArray[np.bool_] | None) -> Float32:
    if zero is None or not zero.any() or zero.all():
        return scale
    made: Float32 = np.where(zero, scale[~zero].max(), scale)
    return made


def _stored(scale: Float32, factor: float) -> BlockScales:
    quotients = np.maximum(scale / np.float32(factor), _HALF_NORMAL).astype(np.float16)
    effective: Float32 = quotients.astype(np.float32) * np.float32(factor)
    return BlockScales(factor, quotients, effective)


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


def block_lengths(shape: Sequence[int], block: int) -> list[int]:
    """Returns the lengths of blocks to choose from: what fits one that is asked for, if it does.

    For :data:`FITTING` those that are worth weighing: divisors of a row, and the row itself.
    """
    if block != FITTING:
        length = block_length(shape, block)
        return [] if length is None else [length]
    row = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    found = dict.fromkeys(_divisor(row, min(most, row)) for most in (*_LENGTHS, row) if row)
    return [length for length in found if length >= min(_LENGTHS)]


def _divisor(number: int, most: int) -> int:
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)
