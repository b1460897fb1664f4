"""Chooses one option for each unit: the least cost whose noises add up to no more than is allowed.

Rounding noises of different constants are nearly independent, so the noise that each puts on an output adds
up. What is left is a knapsack with one bound for each output. Its Lagrangian is solved by bisection on the
price of noise (Everett 1963, https://doi.org/10.1287/opre.11.3.399), outputs weighted so that the tightest
one counts; then the slack that the bisection leaves is used up by single steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tfl_rewrite.shrinking.units import Float64, Option, Unit

_WEIGHINGS = 8
_BISECTIONS = 40


def solve(units: Sequence[Unit], allowed: float) -> list[int]:
    """Returns the index of an option for each unit.

    Args:
        units: All of their options have a noise.
        allowed: Largest sum of noises, relative to the signal, for every output.
    """
    if not units:
        return []
    costs = [np.array([option.cost for option in unit.options]) for unit in units]
    noises = [np.stack([_noise(option) for option in unit.options]) for unit in units]
    outputs = noises[0].shape[1]
    weight = np.ones(outputs)
    best: list[int] | None = None
    best_cost = math.inf
    for _ in range(_WEIGHINGS if outputs > 1 else 1):
        low, high = -60.0, 120.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            picked = _picked(costs, noises, weight * math.exp(middle))
            if _total(noises, picked).max(initial=0.0) > allowed:
                low = middle
            else:
                high = middle
        picked = _picked(costs, noises, weight * math.exp(high))
        total = _total(noises, picked)
        if total.max(initial=0.0) <= allowed:
            picked = _filled(costs, noises, picked, allowed)
            cost = sum(float(row[index]) for row, index in zip(costs, picked, strict=True))
            if cost < best_cost:
                best, best_cost = picked, cost
        if total.max(initial=0.0) <= 0:
            break
        # What the worst output suffers counts more next time.
        weight *= np.maximum(total / total.max(), 1e-3) ** 0.5
    return best if best is not None else [0] * len(units)


def expected(units: Sequence[Unit], picked: Sequence[int]) -> Float64:
    """Returns the sum of noises of each output."""
    return _total([np.stack([_noise(option) for option in unit.options]) for unit in units], picked)


def _noise(option: Option) -> Float64:
    assert option.noise is not None
    return option.noise


def _picked(costs: Sequence[Float64], noises: Sequence[Float64], price: Float64) -> list[int]:
    return [int(np.argmin(cost + noise @ price)) for cost, noise in zip(costs, noises, strict=True)]


def _total(noises: Sequence[Float64], picked: Sequence[int]) -> Float64:
    total = np.zeros(noises[0].shape[1])
    for noise, index in zip(noises, picked, strict=True):
        total += noise[index]
    return total


def _filled(
    costs: Sequence[Float64], noises: Sequence[Float64], picked: Sequence[int], allowed: float
) -> list[int]:
    """Takes cheaper options while they fit, the one that saves most for the room it takes first."""
    chosen = list(picked)
    total = _total(noises, chosen)
    while True:
        best: tuple[float, int, int] | None = None
        for unit, (cost, noise) in enumerate(zip(costs, noises, strict=True)):
            now = chosen[unit]
            for index in range(len(cost)):
                saved = float(cost[now] - cost[index])
                if saved <= 0:
                    continue
                after = total - noise[now] + noise[index]
                if after.max(initial=0.0) > allowed:
                    continue
                added = max(float((noise[index] - noise[now]).max(initial=0.0)), 1e-30)
                value = saved / added
                if best is None or value > best[0]:
                    best = value, unit, index
        if best is None:
            return chosen
        _, unit, index = best
        total = total - noises[unit][chosen[unit]] + noises[unit][index]
        chosen[unit] = index
