"""Scales of blocks: exact products, no underflow, whatever their range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfl_rewrite.numerics import symmetric
from tfl_rewrite.numerics.blocks import direct, factored

TINY = float(np.finfo(np.float16).tiny)


@given(st.lists(st.floats(-28, 0, width=32), min_size=1, max_size=40), st.floats(-80, 100))
@settings(deadline=None)
def test_nearest_and_normal(powers: list[float], offset: float) -> None:
    scale = np.exp2(np.array(powers) + offset).astype(np.float32)
    made = factored(scale)
    assert np.log2(made.factor) == np.rint(np.log2(made.factor))
    assert (made.quotients >= TINY).all() and np.isfinite(made.quotients).all()
    np.testing.assert_allclose(made.effective, scale, rtol=2.0**-11)
    # What the runtime multiplies, for every level: no bit is rounded away.
    levels = np.arange(-128, 128, dtype=np.float32)[:, None]
    products = (levels * np.float32(made.factor)) * made.quotients.astype(np.float32)
    exact = levels.astype(np.float64) * made.factor * made.quotients.astype(np.float64)
    assert np.array_equal(products.astype(np.float64), exact)


@pytest.mark.parametrize("largest", [1.0, 0.99998, 1.99999, 2.0, 1.5])
def test_the_scales_of_a_file_have_its_factor(largest: float) -> None:
    made = factored(np.array([largest, 0.3], np.float32))
    again = factored(made.effective)
    assert again.factor == made.factor and np.array_equal(again.quotients, made.quotients)


def test_blocks_of_zeros_do_not_set_the_range() -> None:
    largest = np.array([0.0, 1e-20, 3e-20], np.float32)
    scale = symmetric.scales(largest, 7)
    assert scale[0] == 1
    made = factored(scale, largest == 0)
    np.testing.assert_allclose(made.effective[1:], scale[1:], rtol=2.0**-11)
    assert made.effective[0] > 0


def test_smallest_and_largest() -> None:
    for value in (symmetric.SMALLEST_SCALE, float(np.finfo(np.float32).max) / 256):
        made = factored(np.array([value], np.float32))
        assert made.effective[0] == pytest.approx(value, rel=2.0**-11)


def test_direct_scales_underflow() -> None:
    fits = direct(np.array([TINY, 1.0], np.float32))
    assert fits is not None and fits.factor == 1.0 and fits.effective.tolist() == [TINY, 1.0]
    assert direct(np.array([TINY / 2, 1.0], np.float32)) is None
    assert direct(np.array([1e6], np.float32)) is None
    zeros = direct(np.array([1.0, 1e-3], np.float32), np.array([True, False]))
    assert zeros is not None and zeros.effective[0] == zeros.effective[1]
