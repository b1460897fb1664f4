"""Whether the integer kernel of an operator works on the grids that its tensors lie on."""

from __future__ import annotations

from collections.abc import Sequence

from tfl_rewrite.integers.groups import Groups
from tfl_rewrite.integers.modes import float_outputs, kernel_of
from tfl_rewrite.kernels.integer import OUTPUT, Limit
from tfl_rewrite.model.ir import Operator


def misfit(operator: Operator, width: int | None, groups: Groups) -> str:
    """Returns why the kernel of an operator would be wrong on its grids; empty where it works.

    Args:
        operator: Of any kind.
        width: Bits of its activations; None where it computes in floats.
        groups: Of its subgraph.
    """
    if width is None:
        return ""
    for limit in kernel_of(operator).limits:
        if not limit.holds(_quotient(operator, limit, groups), width):
            return limit.reason
    return ""


def _quotient(operator: Operator, limit: Limit, groups: Groups) -> float:
    quotient = float(operator.option(limit.option) or 0.0) if limit.option else 1.0
    return quotient * _product(operator, limit.over, groups) / _product(operator, limit.under, groups)


def _product(operator: Operator, positions: Sequence[int], groups: Groups) -> float:
    product = 1.0
    for position in positions:
        if position == OUTPUT:
            made = [groups.made(tensor) for tensor in float_outputs(operator)]
            product *= made[0].scale if made and made[0] is not None else 1.0
        else:
            product *= groups.given(operator, position).scale
    return product
