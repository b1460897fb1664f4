"""How an operator of a model multiplies its weight."""

from __future__ import annotations

from collections.abc import Callable

from tfl_rewrite.kernels.operands import input_of
from tfl_rewrite.kernels.operators import ProductKind
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.ir import Operator, Tensor
from tfl_rewrite.numerics.products import BatchMatmul, Convolution, Dense, Depthwise, Product, Window

_SAME = 0


def activation_of(operator: Operator, position: int) -> Tensor | None:
    """Returns what the weight at an input is multiplied with.

    For weights of the step before that is what the operator gives out: all steps of it, of which one is met
    no more.
    """
    row = row_of(operator)
    if position in row.recurrent:
        return operator.outputs[0] if operator.outputs else None
    return input_of(operator, row.activation or 0)


def product_of(operator: Operator, position: int) -> Product | None:
    """Returns the product of an operator with the weight at an input, or None where it is no such product."""
    row = row_of(operator)
    if row.product is None or not 0 < position < len(operator.inputs):
        return None
    activation, weight = activation_of(operator, position), operator.inputs[position]
    if activation is None or weight is None or not weight.elements:
        return None
    shape = weight.shape or ()
    if row.product is ProductKind.RECURRENT:
        return Dense(shape) if position in row.summed and len(shape) == 2 else None
    make = _MAKERS[row.product]
    return make(operator, activation, shape) if position == 1 else None


def _dense(operator: Operator, _activation: Tensor, shape: tuple[int, ...]) -> Product | None:
    return Dense(shape) if len(shape) == 2 and not operator.option("weights_format") else None


def _transposed(_operator: Operator, _activation: Tensor, shape: tuple[int, ...]) -> Product | None:
    # Every tap of every output meets each pixel; which taps of others it is added to is not looked at.
    return Dense(shape) if len(shape) == 4 else None


def _matmul(operator: Operator, _activation: Tensor, shape: tuple[int, ...]) -> Product | None:
    if len(shape) < 2:
        return None
    return BatchMatmul(shape, bool(operator.option("adj_x")), bool(operator.option("adj_y")))


def _convolution(operator: Operator, activation: Tensor, shape: tuple[int, ...]) -> Product | None:
    channels = _channels(activation, shape[3]) if len(shape) == 4 else 0
    if channels < 1 or channels % shape[3]:
        return None
    groups = channels // shape[3]
    return Convolution(shape, groups, _window(operator, shape)) if shape[0] % groups == 0 else None


def _depthwise(operator: Operator, activation: Tensor, shape: tuple[int, ...]) -> Product | None:
    if len(shape) != 4 or shape[0] != 1:
        return None
    channels = _channels(activation, shape[3] // max(1, operator.option("depth_multiplier") or 1))
    if channels < 1 or shape[3] % channels:
        return None
    return Depthwise(shape, shape[3] // channels, _window(operator, shape))


_MAKERS: dict[ProductKind, Callable[[Operator, Tensor, tuple[int, ...]], Product | None]] = {
    ProductKind.DENSE: _dense,
    ProductKind.CONVOLUTION: _convolution,
    ProductKind.DEPTHWISE: _depthwise,
    ProductKind.TRANSPOSED: _transposed,
    ProductKind.MATMUL: _matmul,
}


def _channels(activation: Tensor, usual: int) -> int:
    """Returns how many channels an activation has; ``usual`` where the file does not say its shape.

    Behind a custom operator it often does not. Should it have others, its vectors will not fit the weight.
    """
    return activation.shape[-1] if activation.shape else usual


def _window(operator: Operator, shape: tuple[int, ...]) -> Window:
    def pair(height: str, width: str) -> tuple[int, int]:
        return max(1, operator.option(height) or 0), max(1, operator.option(width) or 0)

    return Window(
        (shape[1], shape[2]),
        pair("stride_h", "stride_w"),
        pair("dilation_h_factor", "dilation_w_factor"),
        (operator.option("padding") or 0) == _SAME,
    )
