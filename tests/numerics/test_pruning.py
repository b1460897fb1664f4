"""Which weights go, and what the others become: against least squares, the closed form, and chance."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from tfl_rewrite.numerics.moments import Moments
from tfl_rewrite.numerics.products import Dense
from tfl_rewrite.numerics.pruning import Trial, costs, damped, divided, kept, lost, prune, refit, tried

Array = np.ndarray[Any, Any]


def moments_of(random: np.random.Generator, groups: int, length: int) -> Array:
    """Correlated: what neighbouring taps of an activation look like."""
    common = random.standard_normal((groups, 3 * length, 1))
    vectors = random.standard_normal((groups, 3 * length, length)) + common
    return damped(vectors.swapaxes(1, 2) @ vectors / (3 * length))


def test_what_stays_is_the_least_squares_solution() -> None:
    random = np.random.default_rng(1)
    moments = moments_of(random, 2, 12)
    weight = random.standard_normal((2, 3, 12))
    stays = random.random(weight.shape) < 0.6
    made = refit(weight, np.where(stays, weight, 0.0), stays, moments)
    assert not made[~stays].any()
    for group, row in np.ndindex(2, 3):
        free = np.flatnonzero(stays[group, row])
        inner = moments[group][np.ix_(free, free)]
        wanted = np.linalg.solve(inner, moments[group][free] @ weight[group, row])
        assert made[group, row, free] == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_the_first_to_go_is_the_one_that_the_others_replace_best() -> None:
    random = np.random.default_rng(2)
    moments = moments_of(random, 1, 8)
    weight = random.standard_normal((1, 1, 8))
    made = prune(weight, moments, 1 / 8, partial(kept, block=1))
    errors = []
    for at in range(8):
        stays = np.ones((1, 1, 8), bool)
        stays[0, 0, at] = False
        errors.append(lost(weight, refit(weight, np.where(stays, weight, 0.0), stays, moments), moments)[1])
    assert np.flatnonzero(made[0, 0] == 0).tolist() == [int(np.argmin(errors))]
    assert lost(weight, made, moments)[1] == pytest.approx(min(errors), rel=1e-6)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_products_keep_more_than_by_size_alone(share: float) -> None:
    random = np.random.default_rng(3)
    moments = moments_of(random, 2, 40)
    weight = random.standard_normal((2, 16, 40))
    made = prune(weight, moments, share, partial(kept, block=1))
    smallest = weight * kept(np.square(weight), share)
    assert np.mean(made == 0) == pytest.approx(share, abs=1e-3)
    assert lost(weight, made, moments)[1] < 0.6 * lost(weight, smallest, moments)[1]


def test_blocks_go_together_and_a_rest_is_one() -> None:
    costs = np.arange(20.0).reshape(2, 10)
    stays = kept(costs, 0.5, 4)
    # Sums of the blocks: 6, 22, 17 and 46, 62, 37.
    assert stays.tolist() == [[False] * 10, [True] * 10]
    assert kept(costs, 1 / 6, 4).tolist()[0] == [False] * 4 + [True] * 6
    assert kept(costs, 0.0).all() and not kept(costs, 1.0).any()


def test_moments_of_few_samples_can_be_inverted() -> None:
    vector = np.ones((1, 6, 1))
    assert np.linalg.eigvalsh(damped(vector @ vector.swapaxes(1, 2))).min() > 0
    assert (damped(np.zeros((1, 3, 3))) == 0.01 * np.eye(3)).all()


def test_one_limit_divides_a_share() -> None:
    random = np.random.default_rng(4)
    cheap, dear = np.exp(random.standard_normal(3000)) * 1e-6, np.exp(random.standard_normal(40)) * 1e-3
    shares = divided([cheap, dear, np.zeros(60)], 0.5)
    assert (shares[0] * 3000 + shares[1] * 40 + shares[2] * 60) / 3100 == pytest.approx(0.5, abs=1e-3)
    assert shares[1] < 0.01 and shares[2] == pytest.approx(0.98) and 0.45 < shares[0] < 0.52
    limit = np.quantile(cheap, shares[0])
    assert np.mean(dear < limit) == pytest.approx(shares[1], abs=0.02)


def test_a_second_run_asks_for_the_same() -> None:
    """Zeros cost nothing, whatever the others cost by then."""
    random = np.random.default_rng(5)
    first, second = random.random(500), random.random(300)
    first[:200], second[:50] = 0.0, 0.0
    assert divided([first, second], 250 / 800) == pytest.approx([0.4, 1 / 6])


def test_costs_are_shares_of_what_is_given() -> None:
    random = np.random.default_rng(6)
    moments = moments_of(random, 1, 10)
    weight = random.standard_normal((1, 3, 10))
    assert costs(7 * weight, moments) == pytest.approx(costs(weight, moments))
    stays = np.ones(weight.shape, bool)
    stays[0, 1, 4] = False
    made = refit(weight, np.where(stays, weight, 0.0), stays, moments)
    whole, off = lost(weight, made, moments)
    assert costs(weight, moments)[0, 1, 4] == pytest.approx(off / whole, rel=1e-3)


def moments_seen(vectors: Array) -> Moments:
    """Of vectors ``[samples, count, length]``, sample by sample."""
    moments = Moments(Dense((12, vectors.shape[2])))
    for sample in vectors.astype(np.float32):
        moments.add(sample, np.random.default_rng(0))
    return moments


def test_what_few_vectors_promise_is_doubted() -> None:
    random = np.random.default_rng(5)
    weight, common = random.standard_normal((1, 12, 60)), 2 * random.standard_normal(60)
    few, many = (
        tried(weight, moments_seen(common + random.standard_normal((6, count, 60))), 0.7)
        for count in (1, 200)
    )
    assert many.pays and many.fitted < 0.5 * many.by_size and many.doubt == 1.0
    assert few.doubt > 1.3
    assert Trial(by_size=1.0, fitted=2.0, expected=0.1).doubt == 10.0
    assert not Trial(by_size=1.0, fitted=2.0, expected=0.1).pays and Trial(0.0, 0.0, 0.0).doubt == 1.0
