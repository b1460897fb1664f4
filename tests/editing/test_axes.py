"""Axes as products: merged, split, and refused where a part that changes would be divided."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfl_rewrite.editing.axes import Axis, axes_between, changes, new_size, old_size, regrouped


def sizes(axes: tuple[Axis, ...] | None) -> list[int] | None:
    return None if axes is None else [new_size(axis) for axis in axes]


@pytest.mark.parametrize(
    ("before", "after", "into", "wanted"),
    [
        ((1, 24, 24, 16), (4, 24, 24, 16), (1, 576, 16), [4, 576, 16]),
        ((1, 16, 16, 2), (4, 16, 16, 2), (1, 512, 1), [4, 512, 1]),
        ((1, 20, 20, 24), (1, 10, 10, 24), (1, 1600, 6), [1, 400, 6]),
        ((1, 1, 1, 1001), (4, 1, 1, 1001), (1, 1001), [4, 1001]),
        ((1, 1917, 4), (3, 1917, 4), (1917, 4), [5751, 4]),
        ((1, 1, 8), (1, 5, 8), (1, 1, 8), [1, 5, 8]),
        ((1, 6, 4), (2, 6, 4), (1, 4, 6), [2, 4, 6]),
        ((4, 6), (4, 3), (6, 4), None),
        ((1, 400), (1, 100), (1, 20, 20), None),
        ((1,), (3,), (), None),
        ((2, 0), (2, 0), (0,), None),
        ((6,), (6,), (5,), None),
    ],
)
def test_a_size_goes_where_its_places_go(
    before: tuple[int, ...], after: tuple[int, ...], into: tuple[int, ...], wanted: list[int] | None
) -> None:
    assert sizes(regrouped(axes_between(before, after), into)) == wanted


def test_what_was_merged_is_split_again_where_it_was() -> None:
    axes = axes_between((1, 20, 20, 8), (1, 10, 5, 8))
    merged = regrouped(axes, (1, 400, 8))
    assert sizes(merged) == [1, 50, 8]
    assert merged is not None
    # Behind another operator only the sizes are known; what it read tells what they consist of.
    behind = axes_between((1, 400, 3), (1, 50, 3), merged)
    assert sizes(regrouped(behind, (1, 20, 20, 3))) == [1, 10, 5, 3]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(2, 5), st.data())
def test_a_batch_in_front_stays_in_front(shape: list[int], batch: int, data: st.DataObject) -> None:
    """Whatever a shape is cut into, the samples of a batch stay the outermost part."""
    elements = math.prod(shape)
    divisors = [size for size in range(1, elements + 1) if elements % size == 0]
    first = data.draw(st.sampled_from(divisors))
    axes = axes_between((1, *shape), (batch, *shape))
    made = regrouped(axes, (1, first, elements // first))
    assert made is not None
    assert [old_size(axis) for axis in made] == [1, first, elements // first]
    assert sizes(made) == [batch, first, elements // first]
    assert changes(made[0]) and not changes(made[1])
