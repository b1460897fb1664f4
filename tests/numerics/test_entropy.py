"""Integers by error and bits, steps by water-filling, Shannon's limit: against searches and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from tfl_rewrite.numerics.entropy import Rate, entropy, water_filled
from tfl_rewrite.numerics.gptq import feedback
from tfl_rewrite.numerics.metric import Metric
from tfl_rewrite.numerics.symmetric import Levels


def test_entropy_is_that_of_an_ideal_code() -> None:
    assert entropy(np.array([-3.0, 0.0, 1.0, 7.0])) == pytest.approx(2.0)
    assert entropy(np.array([5.0, 5.0])) == 0.0
    assert entropy(np.array([0.0, 0.0, 0.0, 1.0])) == pytest.approx(0.8112781)


def test_the_cheapest_of_the_near_integers_is_picked() -> None:
    random = np.random.default_rng(0)
    ideal = random.laplace(size=500) * 3
    nearest = np.clip(np.rint(ideal), -8, 7)
    rate = Rate.of(nearest, -8, 7, 0.3)
    weight = random.uniform(0.1, 2.0, ideal.size)
    made = rate.pick(ideal, nearest, weight)

    def cost(integers: np.ndarray) -> np.ndarray:
        return weight * (ideal - integers) ** 2 + 0.3 * rate.bits[(integers + 8).astype(int)]

    others = np.stack([nearest, nearest - np.sign(nearest), np.zeros_like(nearest)])
    assert np.allclose(cost(made), np.min([cost(other) for other in others], axis=0))
    assert (made != nearest).any()
    assert np.array_equal(Rate.of(nearest, -8, 7, 0.0).pick(ideal, nearest, weight), nearest)


def test_bits_are_won_for_little_error() -> None:
    """At the same error of the products, integers that are chosen by bits take fewer of them."""
    random = np.random.default_rng(1)
    weight = random.laplace(size=(1, 64, 48))
    vectors = random.standard_normal((1, 400, 48)) + random.standard_normal((1, 400, 1))
    metric = Metric.of(vectors.swapaxes(1, 2) @ vectors / 400)
    levels, strength = Levels(-127, 127), float(np.square(np.einsum("gii->gi", metric.factor)).mean())

    def made(step: float, slope: float) -> tuple[float, float]:
        rate = Rate.of(np.rint(weight / step), *levels, slope * strength * step**2)
        integers = feedback(weight, np.full((1, 1, 1), step), metric, levels, None, rate)
        off = weight - integers * step
        return entropy(integers), float(np.einsum("grk,gkl,grl->", off, metric.moments, off))

    plain, error = made(1.0, 0.0)
    step = min(np.linspace(0.6, 1.0, 41), key=lambda step: abs(made(float(step), 0.1)[1] - error))
    bits, off = made(float(step), 0.1)
    assert off < 1.02 * error
    assert bits < 0.99 * plain, (bits, plain, step, off, error)


def test_one_output_shares_its_noise_by_weights() -> None:
    weights = np.array([1.0, 5.0, 2.0])
    costs = np.array([[3.0], [0.1], [7.0]])
    squared = water_filled(costs, weights, 0.01)
    assert squared * costs[:, 0] == pytest.approx(0.01 * weights / weights.sum())


def test_water_filling_saves_most_bits_within_every_bound() -> None:
    random = np.random.default_rng(2)
    weights, costs = random.uniform(1, 5, 4), random.uniform(0.01, 1, (4, 3))
    squared = water_filled(costs, weights, 1.0)
    assert (squared @ costs).max() == pytest.approx(1.0)
    best = float(weights @ np.log(squared))
    for _ in range(3000):
        other = squared * np.exp(0.3 * random.standard_normal(4))
        other /= (other @ costs).max()
        assert float(weights @ np.log(other)) < best + 1e-3
