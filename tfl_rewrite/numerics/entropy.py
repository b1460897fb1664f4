"""Entropy-coded scalar quantization: integers chosen by what they cost in bits besides what they err.

A codec gives frequent integers few bits. So each weight takes, of the integers near it, the one of least
``error + slope * bits``: at high rates the slope at which a uniform quantizer trades error for bits is
``2 ln 2 / 12`` squared steps a bit (Gish and Pierce 1968), and below it the nearest integer is best.
Of all weights under one code, the same step is best for all that meet vectors of the same strength.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.options.frozen import frozen

Float64 = npt.NDArray[np.float64]
Floats = npt.NDArray[Any]

SLOPE = 2 * math.log(2) / 12
"""Squared steps that a bit is worth at high rates."""

_UNSEEN = 0.02
"""How often an integer that was not counted is taken to occur."""

_ROUNDS = 200
_PACE = 0.5


@frozen
class Rate:
    """What integers cost.

    Attributes:
        bits: Of each integer from ``low`` on.
        low: The smallest integer.
        slope: Error that a bit may cost, in the unit of what :meth:`pick` is told.
    """

    bits: Float64
    low: int
    slope: float

    @classmethod
    def of(cls, integers: npt.NDArray[np.floating], low: int, high: int, slope: float) -> Rate:
        """Counts integers that lie within ``low`` and ``high``, of any shape."""
        counts = (
            np.bincount((integers.reshape(-1) - low).astype(np.int64), minlength=high - low + 1) + _UNSEEN
        )
        return cls(-np.log2(counts / counts.sum()), low, slope)

    def pick(self, ideal: Floats, nearest: Floats, weight: Floats) -> Floats:
        """Returns the best of the nearest integers, those one nearer to zero, and zero.

        Args:
            ideal: What is rounded, in steps.
            nearest: The nearest integers.
            weight: What a squared step of error counts.
        """
        best = nearest
        least = weight * np.square(ideal - nearest) + self._bits(nearest)
        for other in (nearest - np.sign(nearest), np.zeros_like(nearest)):
            cost = weight * np.square(ideal - other) + self._bits(other)
            best = np.where(cost < least, other, best)
            least = np.minimum(cost, least)
        return best

    def _bits(self, integers: Floats) -> Float64:
        found: Float64 = self.slope * self.bits[(integers - self.low).astype(np.int64)]
        return found


def entropy(integers: npt.NDArray[np.floating]) -> float:
    """Returns bits an integer under one ideal code for all of them; of any shape, not empty."""
    low = int(integers.min())
    counts = np.bincount((integers.reshape(-1) - low).astype(np.int64))
    share = counts[counts > 0] / integers.size
    return float(-(share * np.log2(share)).sum())


def water_filled(costs: Float64, weights: Float64, allowed: float) -> Float64:
    """Returns squared steps of units so that the bits are least and the noise of every output is allowed.

    A squared step saves ``weight / 2`` times its logarithm, and adds ``cost`` times itself to the noise of
    each output: so noise is in proportion to weights, with a price for each output that is found by moving
    it until no output has more than is allowed.

    Args:
        costs: Noise of each output for a squared step of each unit, ``[units, outputs]``; positive.
        weights: Bits that doubling a step saves in each unit, ``[units]``; positive.
        allowed: Of noise, for every output.
    """
    price = np.ones(costs.shape[1])
    for _ in range(_ROUNDS):
        noise = (weights / (costs @ price)) @ costs
        price *= (noise / noise.max()) ** _PACE
        price = np.maximum(price, price.max() * 1e-12)
    squared = weights / (costs @ price)
    made: Float64 = squared * (allowed / float((squared @ costs).max()))
    return made
