"""Rounding for given moments: against the published algorithm, exhaustive search, and its promises."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tfl_rewrite.numerics import clipping
from tfl_rewrite.numerics.gptq import (
    GptqEffort,
    Ties,
    feedback,
    nearest,
    pruned,
    quantize,
    restore,
)
from tfl_rewrite.numerics.metric import Metric, cholesky
from tfl_rewrite.numerics.symmetric import Levels

Array = np.ndarray[Any, Any]
INT4 = Levels(-8, 7)


def moments_of(random: np.random.Generator, groups: int, length: int) -> Array:
    """Correlated: what neighbouring taps of an activation look like."""
    vectors = random.standard_normal((groups, 3 * length, length)) + random.standard_normal(
        (groups, 3 * length, 1)
    )
    return vectors.swapaxes(1, 2) @ vectors / (3 * length) + 1e-3 * np.eye(length)


def cost(weight: Array, values: Array, moments: Array) -> Array:
    off = weight - values
    return np.einsum("grk,gkl,grl->gr", off, moments, off)


def published(weight: Array, scale: Array, moments: Array, order: Array, levels: Levels) -> Array:
    """GPTQ as in the paper's algorithm 1, row by row, with the inverse's Cholesky factor and no blocks."""
    inverse = np.linalg.inv(moments[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T
    result = np.empty_like(weight)
    for row in range(len(weight)):
        left = weight[row, order].copy()
        for column in range(len(order)):
            integer = np.clip(np.rint(left[column] / scale[row]), levels.low, levels.high)
            result[row, order[column]] = integer
            off = (left[column] - integer * scale[row]) / upper[column, column]
            left[column + 1 :] -= off * upper[column, column + 1 :]
    return result


def test_feedback_is_that_of_the_paper() -> None:
    random = np.random.default_rng(1)
    # Longer than a block of columns, and not a multiple of it.
    weight = random.standard_normal((1, 5, 150))
    moments = moments_of(random, 1, 150)
    scale = np.abs(weight).max(axis=2) / 7
    metric = Metric.of(moments)
    ours = feedback(weight, scale[:, :, None], metric, INT4)
    theirs = published(weight[0], scale[0], moments[0], metric.order[0, ::-1], INT4)
    # A tie may fall to either side, and all after it differs: nearly all rows must be equal.
    assert (ours[0] == theirs).all(axis=1).sum() >= 4


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 20),
    st.sampled_from([Levels(-2, 1), Levels(-8, 7), Levels(-127, 127)]),
)
# One row in each group, as in depthwise filters.
@example(3, 3, 1, 5, Levels(-127, 127))
@settings(max_examples=40, deadline=None)
def test_never_worse_than_nearest(seed: int, groups: int, rows: int, length: int, levels: Levels) -> None:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((groups, rows, length)).astype(np.float32)
    moments = moments_of(random, groups, length)
    flat = weight.reshape(groups * rows, length).astype(np.float64)
    scale = clipping.covering(flat, levels).astype(np.float32).reshape(groups, rows, 1).astype(np.float64)
    ties = Ties.of(np.arange(groups * rows).reshape(groups, rows, 1).repeat(length, axis=2))
    done = quantize(weight, Metric.of(moments), scale, levels, ties)
    plain = nearest(weight.astype(np.float64), scale, levels) * scale
    ways = (plain, done.values(), np.zeros(weight.shape))
    before, after, signal = (cost(weight, values, moments).sum() for values in ways)
    # Last bits of float32 are no error, either.
    assert after <= before * (1 + 1e-5) + 1e-13 * signal
    assert done.integers.min() >= levels.low and done.integers.max() <= levels.high
    assert (done.scale == done.scale.astype(np.float32)).all()


@pytest.mark.parametrize("length", [5, 300, 333])
def test_factors_are_those_of_numpy(length: int) -> None:
    moments = moments_of(np.random.default_rng(7), 2, length).astype(np.float32)
    found = cholesky(moments.copy())
    np.testing.assert_allclose(found, np.linalg.cholesky(moments.astype(np.float64)), atol=1e-4)
    with pytest.raises(np.linalg.LinAlgError):
        cholesky(moments - 2 * np.float32(moments[0, 0, 0]) * np.eye(length, dtype=np.float32))


def test_moments_that_are_no_such_are_raised() -> None:
    random = np.random.default_rng(8)
    weight = random.standard_normal((2, 3, 6))
    odd = random.standard_normal((2, 6, 6))
    metric = Metric.of(odd + odd.swapaxes(1, 2))
    assert np.linalg.eigvalsh(metric.moments.astype(np.float64)).min() > 0
    scale = np.abs(weight).max(axis=2, keepdims=True) / 7
    ties = Ties.of(np.arange(6).reshape(2, 3, 1).repeat(6, axis=2))
    done = quantize(weight, metric, scale, INT4, ties)
    plain = nearest(weight, scale, INT4) * scale
    after, before = (cost(weight, values, metric.moments).sum() for values in (done.values(), plain))
    assert 0 <= after <= before
    assert np.linalg.eigvalsh(Metric.of(np.zeros((1, 4, 4))).moments).min() > 0


def test_no_single_integer_could_be_better() -> None:
    random = np.random.default_rng(3)
    weight, moments = random.standard_normal((1, 3, 40)), moments_of(random, 1, 40)
    scale = np.abs(weight).max(axis=2, keepdims=True) / 7
    ties = Ties.of(np.arange(3).reshape(1, 3, 1).repeat(40, axis=2))
    done = quantize(weight, Metric.of(moments), scale, INT4, ties, effort=GptqEffort(rounds=6, sweeps=8))
    least = cost(weight, done.values(), moments)
    for column, step in itertools.product(range(40), (-1, 1)):
        moved = done.integers.astype(np.int64)
        moved[:, :, column] = np.clip(moved[:, :, column] + step, *INT4)
        assert (cost(weight, moved * done.scale, moments) >= least * (1 - 1e-6)).all()


def test_comes_near_the_best_of_all_integers() -> None:
    levels, step = Levels(-2, 1), 0.75
    every = np.array(list(itertools.product(range(-2, 2), repeat=5)), np.float64)
    plain = ours = least = 0.0
    for seed in range(30):
        random = np.random.default_rng(seed)
        weight, moments = random.standard_normal((1, 1, 5)), moments_of(random, 1, 5)
        ties = Ties.of(np.zeros((1, 1, 5), np.int64))
        scale = np.full((1, 1, 1), step)
        done = quantize(weight, Metric.of(moments), scale, levels, ties, effort=GptqEffort(rounds=0))
        off = weight[0, 0] - every * step
        least += float(np.einsum("ik,kl,il->i", off, moments[0], off).min())
        nothing = nearest(weight, scale, levels) * scale
        plain += cost(weight, nothing, moments).sum()
        ours += cost(weight, done.values(), moments).sum()
    assert least <= ours * (1 + 1e-6) and ours <= least + 0.5 * (plain - least)


@pytest.mark.parametrize(
    ("labels", "blocks", "fitted"),
    [
        (np.arange(6).reshape(2, 3, 1).repeat(8, axis=2), 1, True),
        (np.zeros((2, 3, 8), np.int64), 1, True),
        (np.arange(24).reshape(2, 3, 4).repeat(2, axis=2), 4, True),
        # One scale an input channel: it changes along every row.
        (np.arange(8).reshape(1, 1, 8).repeat(2, axis=0).repeat(3, axis=1), 8, False),
        # Pieces of 3 and 5.
        (np.array([0, 0, 0, 1, 1, 1, 1, 1]).reshape(1, 1, 8).repeat(2, axis=0).repeat(3, axis=1), 8, False),
    ],
)
def test_ties_follow_the_labels(labels: Array, blocks: int, fitted: bool) -> None:
    ties = Ties.of(labels)
    assert ties.scale.shape[2] == blocks and ties.fitted is fitted
    assert (ties.scale.repeat(8 // blocks, axis=2) == labels).all()
    random = np.random.default_rng(5)
    weight = random.standard_normal(labels.shape)
    scale = (0.1 + random.random(labels.max() + 1)).astype(np.float32).astype(np.float64)
    moments = moments_of(random, 2, 8)
    done = quantize(weight, Metric.of(moments), scale[ties.scale], INT4, ties.dense())
    wide = scale[labels]
    plain = nearest(weight, wide, INT4) * wide
    assert cost(weight, done.values(), moments).sum() <= cost(weight, plain, moments).sum() * (1 + 1e-6)
    # One label, one scale.
    for label in np.unique(labels):
        assert len(np.unique(done.scale[ties.scale == label])) == 1
    if not fitted:
        assert (done.scale == scale[ties.scale]).all()


def test_scales_of_blocks_have_eleven_bits() -> None:
    random = np.random.default_rng(6)
    labels = np.arange(12).reshape(1, 3, 4).repeat(4, axis=2)
    weight = random.standard_normal(labels.shape)
    moments = moments_of(random, 1, 16)
    ties = Ties.of(labels, digits=11)
    done = quantize(weight, Metric.of(moments), np.full((1, 3, 4), 0.3), INT4, ties)
    fraction, _ = np.frexp(done.scale)
    assert (fraction * 2**11 == np.rint(fraction * 2**11)).all()
    plain = nearest(weight, np.full(weight.shape, 0.3), INT4) * 0.3
    assert cost(weight, done.values(), moments).sum() < cost(weight, plain, moments).sum()


def test_restoring_gives_half_of_the_lost_strength_back():
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(1, 6, 32))
    vectors = rng.normal(size=(400, 32)) + 0.5
    metric = Metric.of((vectors.T @ vectors / 400)[None])
    ties = Ties.of(np.broadcast_to(np.arange(6)[None, :, None], weight.shape))
    levels = Levels(-4, 3)
    done = quantize(weight, metric, np.abs(weight).max(axis=2, keepdims=True) / 4, levels, ties)

    def lacking():
        seen = weight @ metric.moments
        return np.log((seen * weight).sum(axis=2) / (seen * done.values()).sum(axis=2))

    before, integers = lacking(), done.integers.copy()
    assert (before > 0.005).all()
    restore(done, weight, metric.moments, ties)
    np.testing.assert_allclose(lacking(), before / 2, rtol=1e-4)
    np.testing.assert_array_equal(done.integers, integers)
    np.testing.assert_array_equal(done.scale, done.scale.astype(np.float32))


def test_zeros_that_were_put_there_stay() -> None:
    random = np.random.default_rng(5)
    moments = moments_of(random, 1, 70)
    weight = random.standard_normal((1, 6, 70))
    assert pruned(weight) is None
    weight[random.random(weight.shape) < 0.4] = 0.0
    zero = pruned(weight)
    assert zero is not None
    scale = np.abs(weight).max(axis=2, keepdims=True) / 7
    ties = Ties.of(np.arange(6).reshape(1, 6, 1).repeat(70, axis=2))
    free = quantize(weight, Metric.of(moments), scale, INT4, ties)
    held = quantize(weight, Metric.of(moments), scale, INT4, ties, zero=zero)
    assert free.integers[zero].any() and not held.integers[zero].any()
    plain = nearest(weight, scale, INT4) * scale
    assert cost(weight, held.values(), moments).sum() <= cost(weight, plain, moments).sum()
