"""Scales of least squared error against a search that tries everything, and against covering scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfl_rewrite.numerics import clipping, symmetric
from tfl_rewrite.numerics.clipping import covering, recentred
from tfl_rewrite.numerics.symmetric import Levels

Array = np.ndarray[Any, Any]

levels_of = st.sampled_from([Levels(-1, 1), Levels(-2, 1), Levels(-7, 7), Levels(-8, 7), Levels(-127, 127)])


def least(values: Array, levels: Levels, weights: Array) -> float:
    """The least error of one row over every set of integers that some scale leads to."""
    positions = {0.0}
    for value in values:
        end = -levels.low if value < 0 else levels.high
        positions |= {abs(float(value)) / (step - 0.5) for step in range(1, end + 1)}
    edges = sorted(positions - {0.0})
    found = float((weights * values**2).sum())
    for low, high in zip([0.0, *edges], [*edges, 2 * max(edges, default=1.0)], strict=True):
        integers = np.clip(np.rint(values / ((low + high) / 2)), levels.low, levels.high)
        norm = float((weights * integers**2).sum())
        if norm > 0:
            scale = float((weights * integers * values).sum()) / norm
            found = min(found, float((weights * (values - scale * integers) ** 2).sum()))
    return found


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), levels_of, st.booleans())
@settings(max_examples=60, deadline=None)
def test_exact_search_finds_the_least_error(seed: int, count: int, levels: Levels, weighted: bool) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_normal((1, count)) * random.choice([1.0, 5.0], (1, count))
    weights = random.random((1, count)) + 0.01 if weighted else np.ones((1, count))
    scale = clipping.exact(values, levels, weights if weighted else None)
    error = clipping.error(values, scale, levels, weights)
    assert error[0] <= least(values[0], levels, weights[0]) * (1 + 1e-9) + 1e-12


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 90), levels_of, st.booleans())
@settings(max_examples=60, deadline=None)
def test_best_is_never_worse_than_covering(
    seed: int, rows: int, columns: int, levels: Levels, weighted: bool
) -> None:
    random = np.random.default_rng(seed)
    values = (random.standard_t(2, (rows, columns)) * 10.0 ** random.integers(-20, 20)).astype(np.float32)
    weights = random.random((rows, columns)) if weighted else None
    wide = values.astype(np.float64)
    scale = clipping.best(values, levels, weights)
    ours = clipping.error(wide, scale.astype(np.float64), levels, weights)
    theirs = clipping.error(wide, clipping.covering(wide, levels), levels, weights)
    # The scale is a float32 number; that of the other is not. It moves each value by up to 2^-24 of itself,
    # and the error by no more than that beside it (Cauchy and Schwarz).
    power = (wide**2 * (1 if weights is None else weights)).sum(axis=1)
    rounded = 2.0**-23 * np.sqrt(theirs * power) + 1e-11 * power
    assert (ours <= theirs * (1 + 1e-4) + rounded).all()


def test_heavy_tails_are_cut_at_eight_bits_too() -> None:
    wide = np.random.default_rng(0).laplace(size=(2, 1 << 17))
    levels = Levels.narrow(8)
    ours = clipping.error(wide, clipping.best(wide, levels).astype(np.float64), levels)
    assert (ours < 0.95 * clipping.error(wide, clipping.covering(wide, levels), levels)).all()


@pytest.mark.parametrize("levels", [Levels(-1, 1), Levels(-8, 7), Levels(-127, 127)])
def test_extreme_rows_get_scales_that_the_runtime_takes(levels: Levels) -> None:
    tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    rows = np.array([[0, 0, 0], [tiny, 0, -tiny], [huge, -huge, huge], [1, huge, tiny]], np.float32)
    scale = clipping.best(rows, levels)
    assert scale[0] == 1
    assert np.isfinite(scale).all() and (scale >= symmetric.SMALLEST_SCALE).all()
    assert np.isfinite(scale * np.float32(max(-levels.low, levels.high))).all()


@pytest.mark.parametrize("exponent", [-30, -12, 0, 12, 30])
def test_rows_that_need_no_search_get_the_scale_that_it_would_give(
    exponent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(4).standard_normal((300, 257)).astype(np.float32)
    # From plain to outlying, over the limit between them.
    rows[:, 0] = np.linspace(3.0, 8.0, len(rows))
    rows[7] = 0
    rows *= np.float32(10.0**exponent)
    levels = Levels.narrow(8)
    made, searched = clipping.best(rows, levels), []
    largest, energy = (
        np.abs(rows).max(axis=1).astype(np.float64),
        np.square(rows.astype(np.float64)).sum(axis=1),
    )
    told = clipping.best(rows, levels, largest=largest, energy=energy)
    monkeypatch.setattr(clipping, "_outlying", lambda energy, *_rest: np.ones(len(energy), np.bool_))
    monkeypatch.setattr(clipping, "covering", lambda *given: searched.append(1) or covering(*given))
    assert made.tobytes() == told.tobytes() == clipping.best(rows, levels).tobytes() and searched
    covered = symmetric.scales(np.abs(rows).max(axis=1), levels.high)
    assert 0 < np.isclose(made, covered, rtol=1e-6, atol=0).sum() < len(rows)


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
@settings(deadline=None)
def test_nothing_is_off_by_more_than_two_steps(zero: int, stored: list[int]) -> None:
    levels = np.array([stored], np.int32) - zero
    made, factors = recentred(levels)
    assert made.min() >= -127 and made.max() <= 127
    assert np.abs(made * factors[0] - levels).max() <= 2 * factors[0]
    assert 1 <= factors[0] <= 1.08 * 255 / 127
