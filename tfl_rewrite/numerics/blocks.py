"""Scales of blocks as a float16 each, and one float32 that they are multiples of.

The file stores ``factor`` as the scale of the integer tensor and the quotients beside it; DEQUANTIZE gives
``integer * factor`` and MUL multiplies by the quotient. The factor is a power of two and both other numbers
have 11 bits at most, so that the product is exact, and any range of 2^29 fits without an underflow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tfl_rewrite.numerics.symmetric import SMALLEST_SCALE, Float32

_TOP = 14  # The largest quotient lies in [2^14, 2^15): far from what float16 cannot hold.
_HALF_NORMAL = np.float32(np.finfo(np.float16).tiny)
_LARGEST_POWER = 127

SMALLEST_DIRECT = float(_HALF_NORMAL)
"""The least scale that a kernel reads as float16."""


@dataclass(frozen=True, slots=True)
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
    most = float(scale.max())
    power = int(np.floor(np.log2(most))) - _TOP
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
