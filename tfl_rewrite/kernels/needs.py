"""Evaluates the conditions of :mod:`tfl_rewrite.kernels.hybrid` on an operator of a model."""

from __future__ import annotations

from collections.abc import Callable

from tfl_rewrite.kernels import hybrid
from tfl_rewrite.kernels.hybrid import HybridRow, Need
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Operator, Tensor

# Met by how constants are chosen and rounded: sparse ones and outputs are no candidates, zero points are 0,
# scales are normal numbers, and one axis is settled per constant.
_BY_CONSTRUCTION = (
    Need.NO_SPARSITY,
    Need.NOT_SUBGRAPH_OUTPUT,
    Need.ZERO_POINT_ZERO,
    Need.NORMAL_SCALES,
    Need.SAME_CHANNEL_AXIS,
)
_RECURRENT_WEIGHTS = (5, 6, 7, 8)


def unmet(
    need: Need, operator: Operator, row: HybridRow, can_be_int8: Callable[[Tensor], bool]
) -> str | None:
    """Returns why an operator does not meet a need, or None if it does.

    Args:
        need: The condition.
        operator: The operator at hand.
        row: Its hybrid kernel.
        can_be_int8: Whether a weight of it is going to be int8.
    """
    name = operator.code.name
    weights = weights_of(operator, row)
    activation = _input(operator, row.activation)
    if need in _BY_CONSTRUCTION:
        return None
    if need is Need.FLOAT_INPUT_OUTPUT:
        if activation is None or not _is_float(activation):
            return f"the input of {name} is not float32"
        return None if all(map(_is_float, operator.outputs)) else f"an output of {name} is not float32"
    if need is Need.FLOAT_OUTPUT:
        return None if all(map(_is_float, operator.outputs)) else f"an output of {name} is not float32"
    if need is Need.FLOAT_BIAS:
        bias = _input(operator, 2)
        return None if bias is None or _is_float(bias) else f"the bias of {name} is not float32"
    if need is Need.ALL_OR_NOTHING:
        stays = next((tensor for tensor in weights if not can_be_int8(tensor)), None)
        if stays is None:
            return None
        return f"{name} reads all of its weights as int8 or none, and {stays.name!r} stays"
    if need is Need.RIGHT_SIDE_CONSTANT:
        constant = activation is None or activation.is_constant
        return f"the left side of {name} is a constant" if constant else None
    if need is Need.ONE_BATCH_AXIS:
        many = any(_long_batch_axes(tensor) > 1 for tensor in operator.inputs[:2] if tensor is not None)
        return f"{name} has more than one batch axis" if many else None
    if need is Need.INPUT_RANK_RECORDED:
        return None if activation is not None and activation.shape else f"the input of {name} has no shape"
    if need is Need.LSTM_KERNEL_FULL:
        return f"{name} uses the BASIC kernel" if operator.option("kernel_type") else None
    if need is Need.NO_DIAGONAL_RECURRENT:
        found = [_input(operator, position) for position in _RECURRENT_WEIGHTS]
        flat = any(tensor is not None and len(tensor.shape or ()) != 2 for tensor in found)
        return f"{name} has diagonal recurrent weights" if flat else None
    if need is Need.DEFAULT_WEIGHTS_FORMAT:
        return f"{name} holds its weights in a shuffled format" if operator.option("weights_format") else None
    if need is Need.UNGROUPED:
        return f"{name} is grouped" if grouped(operator) else None
    return f"{name} needs: {need.description}"


def same_rank_output(operator: Operator) -> bool:
    """Whether a lookup's output has the shape that its positions and its table give, as far as is known."""
    table, positions, output = operator.inputs[0], _input(operator, 1), operator.outputs[0]
    if table is None or positions is None or output is None or not output.shape:
        return False
    return len(output.shape) == len(positions.shape or ()) + len(table.shape or ()) - 1


def grouped(operator: Operator) -> bool:
    """Whether a convolution has fewer input channels in its filter than in its input, or may have."""
    activation, weight = _input(operator, 0), _input(operator, 1)
    if activation is None or weight is None or not activation.shape or not weight.shape:
        return True
    return activation.shape[-1] != weight.shape[-1]


def _input(operator: Operator, position: int | None) -> Tensor | None:
    if position is None or position >= len(operator.inputs):
        return None
    return operator.inputs[position]


def _is_float(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dtype == dtypes.FLOAT32.value


def _long_batch_axes(tensor: Tensor) -> int:
    """Counts batch axes longer than 1; an unknown length counts as longer."""
    shape = tensor.signature if tensor.signature else tensor.shape
    return sum(size != 1 for size in (shape or ())[:-2])


def weights_of(operator: Operator, row: hybrid.HybridRow) -> list[Tensor]:
    """Returns the weight inputs of an operator that are present."""
    return [
        tensor
        for position in row.inputs
        if position < len(operator.inputs) and (tensor := operator.inputs[position]) is not None
    ]
