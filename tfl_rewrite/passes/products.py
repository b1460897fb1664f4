"""How an operator of a model multiplies its weight."""

from __future__ import annotations

from tfl_rewrite.model.ir import Operator
from tfl_rewrite.quant.patches import BatchMatmul, Convolution, Dense, Depthwise, Product, Window

_SAME = 0


def product_of(operator: Operator, position: int) -> Product | None:
    """Returns the product of an operator with the weight at an input, or None where it is no such product.

    The activation is input 0.
    """
    name = operator.code.name
    if position != 1 or len(operator.inputs) < 2 or operator.code.custom is not None:
        return None
    activation, weight = operator.inputs[0], operator.inputs[1]
    if activation is None or weight is None or not weight.elements:
        return None
    shape = weight.shape or ()
    rank = len(shape)
    if name == "FULLY_CONNECTED" and rank == 2 and not operator.option("weights_format"):
        return Dense(shape)
    if name == "BATCH_MATMUL" and rank >= 2:
        return BatchMatmul(shape, bool(operator.option("adj_x")), bool(operator.option("adj_y")))
    if name == "CONV_2D" and rank == 4:
        channels = (activation.shape or (0,))[-1]
        if channels < 1 or channels % shape[3]:
            return None
        groups = channels // shape[3]
        return Convolution(shape, groups, _window(operator, shape)) if shape[0] % groups == 0 else None
    if name == "DEPTHWISE_CONV_2D" and rank == 4 and shape[0] == 1:
        channels = (activation.shape or (0,))[-1]
        if channels < 1 or shape[3] % channels:
            return None
        return Depthwise(shape, shape[3] // channels, _window(operator, shape))
    return None


def _window(operator: Operator, shape: tuple[int, ...]) -> Window:
    def pair(height: str, width: str) -> tuple[int, int]:
        return max(1, operator.option(height) or 0), max(1, operator.option(width) or 0)

    return Window(
        (shape[1], shape[2]),
        pair("stride_h", "stride_w"),
        pair("dilation_h_factor", "dilation_w_factor"),
        (operator.option("padding") or 0) == _SAME,
    )
