"""Where a size goes when tensors are given other shapes: axes as products of factors, merged and split.

An axis of 400 places may be 20 rows of 20 columns, laid out one behind the other. When the 20 become 10, only
who knows of both can say that the 400 become 100, and what a later RESHAPE to ``[20, 20]`` is to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Factor = tuple[int, int]
"""A size before and after."""
Axis = tuple[Factor, ...]
"""An axis as what was merged into it, outermost first."""
Shape = tuple[int, ...]


def axes_between(before: Shape, after: Shape, known: Iterable[Axis] = ()) -> tuple[Axis, ...]:
    """Returns the axes of a tensor that has these shapes.

    Args:
        before: The old shape.
        after: The new one, of the same rank.
        known: Axes of what it was computed from: one of the same sizes tells what it consists of.
    """
    made = {(old_size(axis), new_size(axis)): axis for axis in known if len(axis) > 1}
    return tuple(made.get(pair, (pair,)) for pair in zip(before, after, strict=True))


def old_size(axis: Axis) -> int:
    """The size of an axis before."""
    return math.prod(old for old, _ in axis)


def new_size(axis: Axis) -> int:
    """The size of an axis after."""
    return math.prod(new for _, new in axis)


def changes(axis: Axis) -> bool:
    """Whether any part of an axis has another size."""
    return any(old != new for old, new in axis)


def regrouped(axes: Sequence[Axis], sizes: Sequence[int]) -> tuple[Axis, ...] | None:
    """Distributes what axes consist of over other axes, in the same row-major order.

    A changed axis of one place goes to the axis of one place that stands where it stood; where there is none,
    into the axis behind it, whose outermost part it is then.

    Args:
        axes: Of the tensor that is reshaped.
        sizes: Of the axes of the result, before the change.

    Returns:
        The axes of the result; None where a part that changes would be divided, so that nothing tells how.
    """
    factors = [factor for axis in axes for factor in axis]
    made: list[list[Factor]] = [[] for _ in sizes]
    place = 0
    while place < len(sizes):
        slots = _run(sizes, place)
        ones = _leading_ones(factors)
        del factors[: len(ones)]
        place += len(slots)
        rest = _seated(ones, [made[slot] for slot in slots])
        if place == len(sizes):
            factors[:0] = rest
            break
        stop = _fill(made, sizes, place, factors)
        if stop is None:
            return None
        made[place][:0] = rest
        place = stop
    if math.prod(old for old, _ in factors) != 1:
        return None
    left = [factor for factor in factors if factor != (1, 1)]
    if left and not made:
        return None
    if left:
        made[-1] += left
    return tuple(tuple(axis) or ((1, 1),) for axis in made)


def _run(sizes: Sequence[int], start: int) -> range:
    stop = start
    while stop < len(sizes) and sizes[stop] == 1:
        stop += 1
    return range(start, stop)


def _leading_ones(factors: Sequence[Factor]) -> list[Factor]:
    found = []
    for factor in factors:
        if factor[0] != 1:
            break
        found.append(factor)
    return found


def _seated(ones: list[Factor], slots: list[list[Factor]]) -> list[Factor]:
    """Gives factors of one place to axes of one place; returns those that change and find none."""
    if len(ones) != len(slots):
        ones = [factor for factor in ones if factor != (1, 1)]
    for slot, factor in zip(slots, ones, strict=False):
        slot.append(factor)
    return [factor for factor in ones[len(slots) :] if factor != (1, 1)]


def _fill(made: list[list[Factor]], sizes: Sequence[int], place: int, factors: list[Factor]) -> int | None:
    """Takes factors until an axis is full; where they do not end with it, several axes at once.

    Returns:
        The axis to go on with; None where there are too few factors, or one that changes is divided.
    """
    needed, taken = sizes[place], list[Factor]()
    while needed > 1:
        if not factors:
            return None
        old, new = factors[0]
        if old == 0:
            return None
        if needed % old == 0:
            taken.append(factors.pop(0))
            needed //= old
        elif old == new and old % needed == 0:
            taken.append((needed, needed))
            factors[0] = (old // needed, old // needed)
            needed = 1
        else:
            factors[:0] = taken
            return _fill_several(made, sizes, place, factors)
    made[place] += taken
    return place + 1


def _fill_several(
    made: list[list[Factor]], sizes: Sequence[int], place: int, factors: list[Factor]
) -> int | None:
    """Takes factors and axes until both come to the same size; nothing in them may change."""
    stop, needed, held = place + 1, sizes[place], 1
    taken = list[Factor]()
    while needed != held:
        if held < needed:
            if not factors:
                return None
            taken.append(factors.pop(0))
            held *= taken[-1][0]
        elif stop < len(sizes):
            needed *= sizes[stop]
            stop += 1
        else:
            return None
    if any(old != new for old, new in taken):
        return None
    for at in range(place, stop):
        made[at].append((sizes[at], sizes[at]))
    return stop
