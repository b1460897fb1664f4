"""How an operator of a model multiplies its weight."""

from __future__ import annotations

from tfl_rewrite.model.ir import Operator, Tensor
from tfl_rewrite.numerics.products import BatchMatmul, Convolution, Dense, Depthwise, Product, Window

_SAME = 0

# Operators that sum products over all of a weight's axes but one: input positions, and that axis.
_SUMS: dict[str, tuple[tuple[int, ...], int]] = {
    "CONV_2D": ((1,), 0),
    "DEPTHWISE_CONV_2D": ((1,), 3),
    "TRANSPOSE_CONV": ((1,), 0),
    "CONV_3D": ((1,), 4),
    "FULLY_CONNECTED": ((1,), 0),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (tuple(range(1, 9)), 0),
    "LSTM": (tuple(range(1, 9)), 0),
    "UNIDIRECTIONAL_SEQUENCE_RNN": ((1, 2), 0),
    "RNN": ((1, 2), 0),
    "BIDIRECTIONAL_SEQUENCE_LSTM": ((*range(1, 9), *range(18, 26)), 0),
    "SVDF": ((1, 2), 0),
}

# Weights of the input, and of what the operator gave out a step before (unidirectional_sequence_lstm.cc,
# lstm.cc, unidirectional_sequence_rnn.cc, basic_rnn.cc).
_RECURRENT = {
    "UNIDIRECTIONAL_SEQUENCE_LSTM": ((1, 2, 3, 4), (5, 6, 7, 8)),
    "LSTM": ((1, 2, 3, 4), (5, 6, 7, 8)),
    "UNIDIRECTIONAL_SEQUENCE_RNN": ((1,), (2,)),
    "RNN": ((1,), (2,)),
}


def output_axis(operator: str, position: int, rank: int) -> int | None:
    """Returns the axis of a weight over which its operator does not sum; None where it is no such weight.

    Args:
        operator: Its name.
        position: Of the input that the weight is.
        rank: Of the weight.
    """
    row = _SUMS.get(operator)
    if row is None or position not in row[0] or not row[1] < rank or rank < 2:
        return None
    return row[1]


def sums(operator: str) -> bool:
    """Whether an operator sums products of a weight."""
    return operator in _SUMS


def activation_of(operator: Operator, position: int) -> Tensor | None:
    """Returns what the weight at an input is multiplied with.

    For weights of the step before that is what the operator gives out: all steps of it, of which one is met
    no more.
    """
    if position in _RECURRENT.get(operator.code.name, ((), ()))[1]:
        return operator.outputs[0] if operator.outputs else None
    if operator.code.name == "TRANSPOSE_CONV":
        # Its first input is the shape of the output (transpose_conv.cc).
        return operator.inputs[2] if len(operator.inputs) > 2 else None
    return operator.inputs[0] if operator.inputs else None


def product_of(operator: Operator, position: int) -> Product | None:
    """Returns the product of an operator with the weight at an input, or None where it is no such product."""
    name = operator.code.name
    if not 0 < position < len(operator.inputs) or operator.code.custom is not None:
        return None
    activation, weight = activation_of(operator, position), operator.inputs[position]
    if activation is None or weight is None or not weight.elements:
        return None
    shape = weight.shape or ()
    rank = len(shape)
    if name in _RECURRENT:
        known = position in (*_RECURRENT[name][0], *_RECURRENT[name][1])
        return Dense(shape) if known and rank == 2 else None
    if position != 1:
        return None
    if name == "FULLY_CONNECTED" and rank == 2 and not operator.option("weights_format"):
        return Dense(shape)
    if name == "TRANSPOSE_CONV" and rank == 4:
        # Every tap of every output meets each pixel; which taps of others it is added to is not looked at.
        return Dense(shape)
    if name == "BATCH_MATMUL" and rank >= 2:
        return BatchMatmul(shape, bool(operator.option("adj_x")), bool(operator.option("adj_y")))
    if name == "CONV_2D" and rank == 4:
        channels = _channels(activation, shape[3])
        if channels < 1 or channels % shape[3]:
            return None
        groups = channels // shape[3]
        return Convolution(shape, groups, _window(operator, shape)) if shape[0] % groups == 0 else None
    if name == "DEPTHWISE_CONV_2D" and rank == 4 and shape[0] == 1:
        channels = _channels(activation, shape[3] // max(1, operator.option("depth_multiplier") or 1))
        if channels < 1 or shape[3] % channels:
            return None
        return Depthwise(shape, shape[3] // channels, _window(operator, shape))
    return None


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
