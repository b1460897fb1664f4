"""The knapsack against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tfl_rewrite.numerics import knapsack
from tfl_rewrite.numerics.knapsack import Float64, solve

Instance = tuple[Float64, Float64]


def instance(seed: int, outputs: int) -> Instance:
    """Six units with four options, of which smaller ones are mostly noisier, as in life."""
    random = np.random.default_rng(seed)
    costs, noises = np.zeros((6, 4)), np.zeros((6, 4, outputs))
    for unit in range(6):
        costs[unit] = float(random.integers(100, 10_000)) * np.array([1, 0.5, 0.25, 0.13])
        gain = 10.0 ** random.uniform(-3, 1, outputs)
        for option, noise in enumerate((1e-6, 1e-4, 1e-2), start=1):
            noises[unit, option] = gain * noise * 10.0 ** random.uniform(-0.5, 0.5, outputs)
    return costs, noises


def of(*units: tuple[tuple[float, ...], ...]) -> Instance:
    """Options of each unit: the cost, and a noise of each output."""
    rows = np.array(units)
    return rows[..., 0], rows[..., 1:]


def cost_of(costs: Float64, picked: list[int]) -> float:
    return float(costs[range(len(picked)), picked].sum())


def best_cost(costs: Float64, noises: Float64, allowed: float) -> float:
    every = np.array(list(itertools.product(range(costs.shape[1]), repeat=len(costs))))
    units = np.arange(len(costs))
    keeps = noises[units, every].sum(axis=1).max(axis=1) <= allowed
    return float(costs[units, every].sum(axis=1)[keeps].min())


@pytest.mark.parametrize("outputs", [1, 2])
def test_nearly_as_good_as_trying_everything(outputs: int) -> None:
    ratios = []
    for seed in range(8):
        costs, noises = instance(seed, outputs)
        for allowed in (1e-5, 1e-3, 1e-2):
            picked = solve(costs, noises, allowed)
            assert knapsack.total_of(noises, np.array(picked)).max() <= allowed
            ratios.append(cost_of(costs, picked) / best_cost(costs, noises, allowed))
    assert min(ratios) >= 1.0 - 1e-12
    assert float(np.mean(ratios)) < 1.002 and max(ratios) < 1.02


def test_what_no_price_gives_is_found_among_few_units() -> None:
    """The small unit spares more for its noise, the large one more in all; both are too much."""
    large, small = ((100.0, 0.0), (60.0, 0.9)), ((30.0, 0.0), (7.0, 0.5))
    assert solve(*of(large, small), 1.0) == [1, 0]


def test_no_noise_at_all_is_what_is_kept() -> None:
    assert solve(*of(((5.0, 0.0), (1.0, 0.5)), ((5.0, 0.0), (1.0, 0.0))), 0.0) == [0, 1]


def test_every_output_keeps_the_bound_at_the_least_cost() -> None:
    costs, noises = of(
        ((5.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
        ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0)),
        ((np.inf, 0.0, 0.0), (0.0, 0.5, 0.5)),
    )
    assert solve(costs, noises, 1.5) == [1, 1, 1]
    assert solve(costs, noises, 1.2) == [0, 0, 1], "of both outputs one is over"


def test_noises_of_what_was_picked_are_summed() -> None:
    _, noises = of(
        ((0, 0.0, 0.0), (0, 1.0, 0.0)), ((0, 0.0, 0.0), (0, 0.0, 1.0)), ((0, 0.0, 0.0), (0, 0.5, 0.5))
    )
    assert knapsack.total_of(noises, np.array([1, 0, 1])).tolist() == [1.5, 0.5]


def test_room_that_one_price_leaves_is_used() -> None:
    """Equal units change sides together at one price; what fits besides is taken one by one."""
    equal = of(*[((100.0, 0.0), (50.0, 1.0))] * 6)
    assert sorted(solve(*equal, 4.5)) == sorted(solve(*equal, 4.0)) == [0, 0, 1, 1, 1, 1]
    # No price makes the middle option the cheapest (its cost lies above the line of the others).
    assert solve(*of(((100.0, 0.0), (60.0, 1.0), (10.0, 2.0))), 1.5) == [1]


def test_room_goes_to_what_saves_most_for_it() -> None:
    """Both fit alone and not together; the larger saving costs less noise for each byte."""
    costs, noises = of(
        ((100.0, 0.0), (40.0, 3.0), (0.0, 10.0)),
        ((100.0, 0.0), (70.0, 3.0), (0.0, 10.0)),
    )
    assert solve(costs, noises, 4.0) == [1, 0]
    assert solve(costs[::-1], noises[::-1], 4.0) == [0, 1]


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_a_price_finds_what_single_steps_do_not(scale: float) -> None:
    """The third one saves most for the output that it fills most, and is in the way of both others."""
    costs, noises = of(
        ((0.10, 0.0, 0.0), (0.0, 1.0, 0.0)),
        ((0.10, 0.0, 0.0), (0.0, 0.0, 1.0)),
        ((0.09, 0.0, 0.0), (0.0, 0.6, 0.6)),
    )
    # They fill both outputs to the brim.
    assert solve(costs, noises * scale, scale) == [1, 1, 0]


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_prices_reach_from_tiny_to_huge_noises(scale: float) -> None:
    """The same at any scale of noises, as at any of costs."""
    costs, noises = instance(3, 1)
    picked = solve(costs, noises, 1e-3)
    assert 0 < sum(picked) < 18
    assert solve(costs, noises * scale, 1e-3 * scale) == picked
    assert solve(costs / scale, noises, 1e-3) == picked


@pytest.mark.parametrize(("seed", "allowed"), [(16, 3e-5), (46, 1e-3)])
def test_the_output_that_suffers_most_counts_more(seed: int, allowed: float) -> None:
    """With one price for both outputs, what is found costs 22 and 10 % more."""
    costs, noises = instance(seed, 2)
    found = cost_of(costs, solve(costs, noises, allowed))
    assert found == pytest.approx(best_cost(costs, noises, allowed), rel=1e-9)


def test_an_option_that_takes_the_place_of_another_needs_the_difference() -> None:
    """The third one lies above the line from the second to the last: no price picks it; it fits exactly."""
    one = of(((100.0, 0.0), (60.0, 1.0), (59.5, 1.5), (10.0, 3.5)))
    assert solve(*one, 1.5) == [2]
    assert solve(*one, 1.4) == [1]


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_what_an_option_adds_counts_and_not_what_it_has(scale: float) -> None:
    """One unit is at 5.0 already: from there to 6.0 costs less noise than from none to 2.0."""
    costs, noises = of(
        ((100.0, 0.0), (99.0, 2.0), (np.inf, 0.0), (0.0, 20.0)),
        ((100.0, 0.0), (50.0, 5.0), (49.0, 6.0), (1.0, 10.0)),
    )
    assert solve(costs, noises * scale, 7.5 * scale) == [0, 2]
    assert solve(costs, noises * scale, 8.0 * scale) == [1, 2]


def test_nothing_is_allowed() -> None:
    for outputs in (1, 2):
        # Nor is anything divided by what nobody suffers.
        with np.errstate(all="raise"):
            assert solve(*instance(0, outputs), 0.0) == [0] * 6
        # What cannot be kept even by keeping all is left to whoever asked.
        assert solve(*instance(0, outputs), -1.0) == [0] * 6


def test_everything_is_allowed() -> None:
    assert solve(*instance(0, 2), 1e9) == [3] * 6


def test_no_units() -> None:
    costs, noises = instance(0, 1)
    assert solve(costs[:0], noises[:0], 1.0) == []
