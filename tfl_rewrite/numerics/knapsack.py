"""Chooses one option for each unit: the least cost whose noises add up to no more than is allowed.

Rounding noises of different constants are nearly independent, so the noise that each puts on an output adds
up. What is left is a knapsack with one bound for each output. Its Lagrangian is solved by bisection on the
price of noise (Everett 1963, https://doi.org/10.1287/opre.11.3.399), outputs weighted so that the tightest
one counts; then the slack that the bisection leaves is used up by single steps.

No price gives what lies between two choices of a unit that holds most of the bytes. With few units all that
may be cheaper than that is gone through, unit by unit; of partial choices whose noises are nearly the same
the cheapest goes on.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

_WEIGHINGS = 8
_BISECTIONS = 40
_FEW = 16
"""Units, of which partial choices are gone through."""
_CELLS, _MOST = 64, 4096
"""Noises of partial choices are the same to so many parts of what is allowed; so many choices go on."""


def solve(costs: Float64, noises: Float64, allowed: float) -> list[int]:
    """Returns the index of an option for each unit; 0 for all where nothing keeps the bound.

    Args:
        costs: ``[units, options]``, infinite where there is no option.
        noises: ``[units, options, outputs]``, relative to the signal.
        allowed: Largest sum of noises for every output.
    """
    if not len(costs):
        return []
    weight = np.ones(noises.shape[2])
    best: npt.NDArray[np.intp] | None = None
    best_cost = math.inf
    # Few choices are met again and again while prices come closer.
    keeps: dict[bytes, bool] = {}
    for _ in range(_WEIGHINGS if weight.size > 1 else 1):
        low, high = -60.0, 120.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            picked = _picked(costs, noises, weight * math.exp(middle))
            key = picked.tobytes()
            if key not in keeps:
                keeps[key] = bool(total_of(noises, picked).max(initial=0.0) <= allowed)
            if keeps[key]:
                high = middle
            else:
                low = middle
        picked = _picked(costs, noises, weight * math.exp(high))
        total = total_of(noises, picked)
        if total.max(initial=0.0) <= allowed:
            picked = _filled(costs, noises, picked, allowed)
            cost = float(costs[np.arange(len(costs)), picked].sum())
            if cost < best_cost:
                best, best_cost = picked, cost
        if total.max(initial=0.0) <= 0:
            break
        # What the worst output suffers counts more next time.
        weight *= np.maximum(total / total.max(), 1e-3) ** 0.5
    if best is None:
        return [0] * len(costs)
    if len(costs) <= _FEW:
        best = _cheaper(costs, noises, allowed, best_cost, best)
    return [int(index) for index in best]


def _cheaper(
    costs: Float64, noises: Float64, allowed: float, cost: float, picked: npt.NDArray[np.intp]
) -> npt.NDArray[np.intp]:
    """Returns a choice that costs less than one that is known, or that one."""
    spent, noise, made = np.zeros(1), np.zeros((1, noises.shape[2])), np.zeros((1, 0), np.intp)
    # What the units that follow cost at least.
    rest = np.append(np.cumsum(costs.min(axis=1)[::-1])[::-1], 0.0)[1:]
    for unit, (prices, own) in enumerate(zip(costs, noises, strict=True)):
        sums, total = (spent[:, None] + prices).reshape(-1), (noise[:, None] + own).reshape(-1, own.shape[1])
        may = np.flatnonzero((total.max(axis=1) <= allowed) & (sums + rest[unit] < cost))
        may = may[np.argsort(sums[may], kind="stable")]
        cells = np.floor(total[may] * (_CELLS / max(allowed, 1e-300)))
        may = may[np.sort(np.unique(cells, axis=0, return_index=True)[1])[:_MOST]]
        if not len(may):
            return picked
        made = np.column_stack([made[may // len(prices)], may % len(prices)])
        spent, noise = sums[may], total[may]
    found: npt.NDArray[np.intp] = made[0]
    return found


def _picked(costs: Float64, noises: Float64, price: Float64) -> npt.NDArray[np.intp]:
    found: npt.NDArray[np.intp] = (costs + noises @ price).argmin(axis=1)
    return found


def total_of(noises: Float64, picked: npt.NDArray[np.intp]) -> Float64:
    """Returns the sum of noises of each output."""
    total: Float64 = noises[np.arange(len(noises)), picked].sum(axis=0)
    return total


def _filled(
    costs: Float64, noises: Float64, picked: npt.NDArray[np.intp], allowed: float
) -> npt.NDArray[np.intp]:
    """Takes cheaper options while they fit, the one that saves most for the room it takes first."""
    chosen: npt.NDArray[np.intp] = picked.copy()
    rows = np.arange(len(costs))
    while True:
        now = noises[rows, chosen][:, None, :]
        saved = costs[rows, chosen][:, None] - costs
        fits = (total_of(noises, chosen) - now + noises).max(axis=2) <= allowed
        added = np.maximum((noises - now).max(axis=2), 1e-30)
        value = np.where(fits & (saved > 0), saved / added, -np.inf)
        unit, index = np.unravel_index(int(np.argmax(value)), value.shape)
        if not np.isfinite(value[unit, index]):
            return chosen
        chosen[unit] = index
