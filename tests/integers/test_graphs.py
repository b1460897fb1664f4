"""Graphs of any operators, sizes and sharing: what becomes integers is sound, and right on every resolver.

Of 2,000 and more graphs that were tried once, a few stay here: give ``ran`` other seeds for others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.measure import needs_new
from tfl_rewrite.kernels.table import ROWS

from .graphs import Choices, Grown, Seeded, grow, widths
from .trial import ran, tried

Item = TypeVar("Item")


class Drawn:
    """Choices of Hypothesis, which are made again from the start for each growth."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = list(numbers)
        self._at = 0

    def number(self, least: int, most: int) -> int:
        made = self._numbers[self._at % len(self._numbers)] if self._numbers else 0
        self._at += 1
        return least + made % (most - least + 1)

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.number(0, len(items) - 1)]


def any_range(choices: Choices) -> tuple[float, float]:
    """Of any size, on both sides of 0, on one of them, at a point, or of no numbers."""
    size = 10.0 ** choices.number(-30, 30)
    kinds = ((-1, 1), (-1, 0.5), (0, 1), (-1, 0), (0.5, 1), (-1, -0.9), (0, 0), (1, 1), (np.nan, np.nan))
    low, high = choices.pick(kinds)
    return low * size, high * size


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2**16), min_size=8, max_size=120))
def test_whatever_the_ranges_what_becomes_integers_is_sound(numbers: list[int]) -> None:
    def build() -> Grown:
        choices = Drawn(numbers)
        return grow(choices, choices.number(1, 10))

    grown, choices = build(), Drawn(numbers[::-1])
    graph = grown.net.graph
    ranges = {item.name: any_range(choices) for item in graph.tensors if item.dtype_name == "FLOAT32"}
    ranges |= {
        item.name: (float(item.values.min()), float(item.values.max()))
        for item in graph.tensors
        if item.is_constant and item.dtype_name == "FLOAT32"
    }
    trial = tried("drawn", build, widths(choices, graph.operators), ranges)
    assert trial.problems == []


@needs_new
@pytest.mark.slow
def test_what_becomes_integers_is_right_on_every_resolver(tmp_path: Path) -> None:
    found = ran(range(7000, 7064), tmp_path)
    assert [fault for one in found for fault in one.faults()] == []
    assert sum(bool(one.trial.plan.modes.widths) for one in found) > 50


def test_graphs_grow_of_every_operator_with_an_integer_kernel() -> None:
    """Cells that keep a state have tests of their own."""
    grown = set()
    for choices in map(Seeded, range(300)):
        grown |= {operator.code.name for operator in grow(choices, choices.number(1, 10)).net.graph.operators}
    wanted = {name for name, row in ROWS.items() if row.integer is not None and row.integer.memory is None}
    assert len(wanted) > 70 and wanted <= grown
