"""Integers of six bits as an int4 and an int2 that add up.

The runtime has no type between int4 and int8, and 12 dB lie between each of them and the six bits half way:
``q = 4 a + b`` with ``a`` from -8 to 7 and ``b`` from -2 to 1, so ``q`` from -34 to 29.
"""

from __future__ import annotations

import numpy as np

from tfl_rewrite.numerics.symmetric import Float32, Int8

STEP = 4
"""Steps of the second part in a step of the first."""


def parts(integers: Int8) -> tuple[Int8, Int8]:
    """Splits integers from -34 to 29."""
    low = ((integers + np.int8(2)) & np.int8(3)) - np.int8(2)
    high = (integers - low) >> np.int8(2)
    return high.astype(np.int8), low.astype(np.int8)


def scales(scale: Float32) -> tuple[Float32, Float32]:
    """Returns the scales of both parts; the first is the second times a power of two, which is exact."""
    return np.asarray(scale * np.float32(STEP), np.float32), scale
