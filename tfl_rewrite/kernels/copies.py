"""Which operators give out what they are given, number by number, and when: a rule an operator.

A rule is a column of the operator's row (:attr:`tfl_rewrite.kernels.operators.OperatorRow.copies`). It looks
at shapes and constants; whether input and output are of one type, with one scale, is for the caller to see.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tfl_rewrite.kernels.shapes import Given, UnknownShapeError, slice_steps, stated
from tfl_rewrite.options.frozen import frozen


@frozen
class Copy:
    """What an operator copies.

    Attributes:
        position: Of the input that it gives out, all of it and in its order.
        reshapes: Whether the output may have another shape than the input.
    """

    position: int = 0
    reshapes: bool = False


CopyRule = Callable[[Given], Copy | None]


def copy_of(rule: CopyRule | None, given: Given) -> Copy | None:
    """Returns what an operator copies; None where it computes, or nobody knows."""
    if rule is None:
        return None
    try:
        return rule(given)
    except (UnknownShapeError, IndexError, ValueError, ZeroDivisionError, OverflowError):
        return None


def always(_given: Given) -> Copy:
    """Where the types are one."""
    return Copy()


def in_order(_given: Given) -> Copy:
    """The same numbers, in another shape."""
    return Copy(reshapes=True)


def slice_(given: Given) -> Copy | None:
    """From the first to the last of every axis."""
    starts, sizes = given.integers(1), given.integers(2)
    if any(starts) or len(starts) != len(sizes):
        return None
    if all(size == -1 for size in sizes):
        return Copy()
    dims = zip(given.shape(), sizes, strict=True)
    return Copy() if all(size in (-1, dim) for dim, size in dims) else None


def strided_slice(given: Given) -> Copy | None:
    """From the first to the last of every axis, but for axes of one element that come or go."""
    shape = given.shape()
    reshapes = False
    for step in slice_steps(given):
        if step is None:
            reshapes = True
            continue
        dim = shape[step.axis]
        if step.shrinks:
            if dim != 1 or step.begin not in (0, -1):
                return None
            reshapes = True
            continue
        first = step.begin in (None, 0) or (dim is not None and (step.begin or 0) <= -dim)
        last = step.end is None or (dim is not None and step.end >= dim)
        if step.stride != 1 or not first or not last:
            return None
    return Copy(reshapes=reshapes)


def only_input(given: Given) -> Copy | None:
    """There is nothing to join it with."""
    alone = len(given.operator.inputs) == 1 and not given.operator.option("fused_activation_function")
    return Copy() if alone else None


def only_part(position: int) -> CopyRule:
    """What is at a position is parted into one."""

    def rule(given: Given) -> Copy | None:
        return Copy(position) if len(given.operator.outputs) == 1 else None

    return rule


def pack(given: Given) -> Copy | None:
    """One alone gets one more axis."""
    return Copy(reshapes=True) if len(given.operator.inputs) == 1 else None


def unpack(given: Given) -> Copy | None:
    """One alone loses an axis."""
    return Copy(reshapes=True) if len(given.operator.outputs) == 1 else None


def pad(given: Given) -> Copy | None:
    """By nothing."""
    return None if any(given.integers(1)) else Copy()


def tile(given: Given) -> Copy | None:
    """Once along each axis."""
    return Copy() if all(count == 1 for count in given.integers(1)) else None


def broadcast_to(given: Given) -> Copy | None:
    """To the shape that it has."""
    (target,) = stated(1)(given)
    return Copy() if target is not None and None not in target and target == given.shape() else None


def transpose(given: Given) -> Copy | None:
    """Axes of more than one element stay in their order."""
    order = given.integers(1)
    rank = len(order)
    if sorted(axis % rank for axis in order) != list(range(rank)):
        return None
    order = [axis % rank for axis in order]
    if order == list(range(rank)):
        return Copy()
    shape = given.shape()
    long = [axis for axis in order if shape[axis] != 1]
    return Copy(reshapes=True) if long == sorted(long) else None


def resize(given: Given) -> Copy | None:
    """To the height and width that it has: every output is at a place of an input, whatever the centers."""
    _, height, width, _ = given.shape()
    return Copy() if given.integers(1) == [height, width] else None


def neutral(number: float, *, left: bool = False) -> CopyRule:
    """The other operand is a constant that changes nothing, and does not make the output larger.

    Args:
        number: The constant; of floats with its sign, since ``-0.0 + 0.0`` is ``0.0``.
        left: Whether the constant may be the first operand, too.
    """

    def rule(given: Given) -> Copy | None:
        if given.operator.option("fused_activation_function"):
            return None
        for position, other in ((0, 1), (1, 0)) if left else ((0, 1),):
            values = given.constant(other)
            if values is None or not values.size or values.dtype.kind not in "fi":
                continue
            tensor = given.operator.inputs[other]
            if tensor is None or (tensor.quantization is not None and tensor.quantization.is_quantized):
                continue
            wanted = np.asarray(number, values.dtype)
            equal = values == wanted
            if values.dtype.kind == "f":
                equal &= np.signbit(values) == np.signbit(wanted)
            if equal.all() and _fits(given, position, values.shape):
                return Copy(position)
        return None

    return rule


def _fits(given: Given, position: int, shape: tuple[int, ...]) -> bool:
    """Whether a constant broadcasts to an input without making it larger."""
    if all(dim == 1 for dim in shape):
        return not shape or len(shape) <= len(given.shape(position))
    mine = given.shape(position)
    if len(shape) > len(mine):
        return False
    return all(dim in (1, own) for dim, own in zip(shape, mine[len(mine) - len(shape) :], strict=True))
