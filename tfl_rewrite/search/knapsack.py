"""Chooses one option for each unit: the least cost whose noises add up to no more than is allowed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfl_rewrite.numerics import knapsack
from tfl_rewrite.search.units import Float64, Unit


def solve(units: Sequence[Unit], allowed: float) -> list[int]:
    """Returns the index of an option for each unit.

    Args:
        units: All of their options have a noise.
        allowed: Largest sum of noises, relative to the signal, for every output.
    """
    return knapsack.solve(*_table(units), allowed) if units else []


def expected(units: Sequence[Unit], picked: Sequence[int]) -> Float64:
    """Returns the sum of noises of each output."""
    return knapsack.total_of(_table(units)[1], np.array(picked, np.intp))


def _table(units: Sequence[Unit]) -> tuple[Float64, Float64]:
    """Returns costs ``[units, options]``, infinite where there is no option, and noises ``[.., outputs]``."""
    width = max(len(unit.options) for unit in units)
    first = units[0].options[0].noise
    assert first is not None
    costs, noises = np.full((len(units), width), np.inf), np.zeros((len(units), width, first.size))
    for row, unit in enumerate(units):
        for column, option in enumerate(unit.options):
            assert option.noise is not None
            costs[row, column], noises[row, column] = option.cost, option.noise
    return costs, noises
