"""Whether the integer kernel of an operator works on the grids that its tensors lie on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfl_rewrite.integers.convert import LARGEST_BIAS, LEAST_MULTIPLIER, LEAST_STEP
from tfl_rewrite.integers.groups import LEAST_SCALE, Groups
from tfl_rewrite.integers.modes import float_inputs, float_outputs, kernel_of
from tfl_rewrite.kernels.integer import CLAMPED, FUSED_BOUNDS, OUTPUT, Limit, Scales
from tfl_rewrite.kernels.operands import constant_values, input_of
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.ir import Operator

LARGEST_SUM = 2.0**30
"""In steps of the output: what is more overflows int32 before it is cut off."""

LARGEST_MULTIPLIER = 2.0**7
"""XNNPACK refuses the whole file from 256 on; half of that leaves room for scales that rounding changes."""

LARGEST_SCALE = 2.0**100
"""Of weights, made coarser for their bias; a float32 holds 2^28 times as much."""


def misfit(operator: Operator, width: int | None, groups: Groups) -> str:
    """Returns why the kernel of an operator would be wrong on its grids; empty where it works.

    Args:
        operator: Of any kind.
        width: Bits of its activations; None where it computes in floats.
        groups: Of its subgraph.
    """
    if width is None:
        return ""
    kernel, fused = kernel_of(operator), operator.option("fused_activation_function")
    limits: tuple[Limit, ...] = (*kernel.limits, *(CLAMPED if fused in FUSED_BOUNDS else ()))
    for limit in limits:
        if not limit.holds(_quotient(operator, limit, groups), width):
            return limit.reason
    if kernel.scales is Scales.WEIGHTS and _overflows(operator, groups):
        return "what it sums is too many steps of its output for its integer kernel"
    return ""


def _overflows(operator: Operator, groups: Groups) -> bool:
    """Whether sums, before an activation function cuts them off, or multipliers are too large."""
    row = row_of(operator)
    weight, bias = input_of(operator, row.weights[0]), input_of(operator, row.biases[0])
    assert weight is not None and row.activation is not None
    shape = weight.shape or ()
    axis = row.output_axis(row.weights[0], len(shape))
    values = constant_values(weight, "FLOAT32")
    made = groups.made(next(float_outputs(operator)))
    assert axis is not None and values is not None and made is not None
    given = groups.given(operator, row.activation)
    sizes = np.abs(values.reshape(shape))
    over = tuple(at for at in range(len(shape)) if at != axis)
    sums = sizes.sum(axis=over, dtype=np.float64) * max(map(abs, given.range))
    floats = None if bias is None else constant_values(bias, "FLOAT32")
    coarsest = LEAST_MULTIPLIER * made.scale
    if floats is not None:
        sizes_of_bias = np.abs(floats.astype(np.float64))
        sums = sums + sizes_of_bias
        coarsest = max(coarsest, float(sizes_of_bias.max()) / LARGEST_BIAS[made.width])
    scale = max(float(sizes.max()) / 127, LEAST_SCALE)
    multiplier = max(scale * given.scale, LEAST_STEP) / made.scale
    fits = float(sums.max()) / made.scale <= LARGEST_SUM and multiplier <= LARGEST_MULTIPLIER
    return not (fits and coarsest / given.scale <= LARGEST_SCALE)


def _quotient(operator: Operator, limit: Limit, groups: Groups) -> float:
    quotient = float(operator.option(limit.option) or 0.0) if limit.option else 1.0
    return quotient * _product(operator, limit.over, groups) / _product(operator, limit.under, groups)


def _product(operator: Operator, positions: Sequence[int], groups: Groups) -> float:
    read, product = dict(float_inputs(operator)), 1.0
    for position in positions:
        if position == OUTPUT:
            made = [groups.made(tensor) for tensor in float_outputs(operator)]
            product *= made[0].scale if made and made[0] is not None else 1.0
        elif position in read:
            product *= groups.given(operator, position).scale
    return product
