"""The knapsack over arrays; what a search makes of it is tried there."""

from __future__ import annotations

import numpy as np

from tfl_rewrite.numerics import knapsack

COSTS = np.array([[5.0, 0.0], [1.0, 0.0], [np.inf, 0.0]])
NOISES = np.array([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.5, 0.5]]])


def test_every_output_keeps_the_bound_at_the_least_cost() -> None:
    assert knapsack.solve(COSTS, NOISES, 1.5) == [1, 1, 1]
    assert knapsack.solve(COSTS, NOISES, 1.2) == [0, 0, 1], "of both outputs one is over"
    assert knapsack.solve(COSTS[:0], NOISES[:0], 1.0) == []


def test_noises_of_what_was_picked_are_summed() -> None:
    assert knapsack.total_of(NOISES, np.array([1, 0, 1])).tolist() == [1.5, 0.5]
