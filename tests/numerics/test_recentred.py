"""Integers about any zero point within int8 about 0: equal where they fit, errors that cancel elsewhere."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tfl_rewrite.numerics.clipping import recentred


def test_channels_that_fit_are_equal() -> None:
    levels = np.array([[[-127, 127], [0, 5]]], np.int32)
    made, factors = recentred(levels)
    assert made.dtype == np.int8 and made.tolist() == levels.tolist() and factors.tolist() == [1.0]


def test_the_errors_of_a_wide_channel_add_up_to_nearly_nothing() -> None:
    levels = np.random.default_rng(1).integers(-60, 196, (20, 9)).astype(np.int32)
    levels[:, 0] = 195
    made, factors = recentred(levels)
    nearest = np.rint(levels / (195 / 127)) * (195 / 127)
    error = made * factors[:, None] - levels
    assert (factors >= 195 / 127 - 1e-9).all() and np.abs(error).max() < 2 * factors.max()
    assert np.abs(error.sum(axis=1)).mean() < 0.3 * np.abs((nearest - levels).sum(axis=1)).mean()
    assert np.square(error).mean() < 2 * np.square(nearest - levels).mean()


@given(st.integers(0, 255), st.lists(st.integers(0, 255), min_size=1, max_size=12))
def test_nothing_is_off_by_more_than_two_steps(zero: int, stored: list[int]) -> None:
    levels = np.array([stored], np.int32) - zero
    made, factors = recentred(levels)
    assert made.min() >= -127 and made.max() <= 127
    assert np.abs(made * factors[0] - levels).max() <= 2 * factors[0]
    assert 1 <= factors[0] <= 1.08 * 255 / 127
