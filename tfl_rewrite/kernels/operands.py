"""What an operator of a model is given: its operands, and whether they are what its kernel needs."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.kernels.integer import Memory
from tfl_rewrite.kernels.operators import Need, OperatorRow, ProductKind
from tfl_rewrite.kernels.table import DEQUANTIZE, RESHAPE, row_named, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor, schema

# Met by how constants are chosen and rounded: sparse ones and outputs are no candidates, zero points are 0,
# scales are normal numbers, and one axis is settled per constant.
_BY_CONSTRUCTION = (
    Need.NO_SPARSITY,
    Need.NOT_SUBGRAPH_OUTPUT,
    Need.ZERO_POINT_ZERO,
    Need.NORMAL_SCALES,
    Need.SAME_CHANNEL_AXIS,
)

_LAYERS = (ProductKind.CONVOLUTION, ProductKind.DEPTHWISE, ProductKind.TRANSPOSED, ProductKind.DENSE)


def is_blockwise(tensor: Tensor) -> bool:
    """Whether the scales of a tensor are another tensor, one for each block of a row."""
    details = tensor.quantization
    if details is None or details.scales_tensor is None:
        return False
    table = details.rest.get("details")
    return table is None or table.spec.name == "BlockwiseQuantization"


def scales_of(tensor: Tensor) -> list[float]:
    """Returns the scales of a tensor, none where it has none of its own."""
    details = tensor.quantization
    if details is None or not details.scale:
        return []
    raw = bytes(details.scale.raw)
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))


def zero_points_of(tensor: Tensor) -> list[int]:
    """Returns the zero points of a tensor."""
    details = tensor.quantization
    if details is None or not details.zero_point:
        return []
    return [int(value) for value in details.zero_point]


def constant_values(tensor: Tensor, *types: str) -> npt.NDArray[Any] | None:
    """Returns the elements of a constant, flat and not copied; None where they are not in the file as such.

    Args:
        tensor: The constant.
        types: Those that it may have, none of them packed.
    """
    row, blob = dtypes.BY_VALUE.get(tensor.dtype), tensor.buffer.blob
    if row is None or row.name not in types or blob is None:
        return None
    if tensor.is_sparse or tensor.external is not None:
        return None
    return np.frombuffer(blob.view(), row.numpy) if blob.nbytes == row.nbytes(tensor.elements) else None


def stored_constant(tensor: Tensor, graph: Graph) -> Tensor | None:
    """Returns the constant that a tensor is, or that a DEQUANTIZE makes it of; None where it is neither."""
    if graph.is_constant(tensor):
        return tensor
    maker = graph.maker_of(tensor)
    if maker is None or row_of(maker) is not DEQUANTIZE or id(tensor) in graph.given:
        return None
    source = input_of(maker, 0)
    return source if source is not None and graph.is_constant(source) and not source.is_sparse else None


ACTIVATIONS = schema().enums["ActivationFunctionType"].values
"""The numbers of the activations that an operator may do at its end, by the names of their own operators."""
_ACTIVATION_NAMES = {number: name for name, number in ACTIVATIONS.items()}


def fused_activation(operator: Operator) -> OperatorRow | None:
    """Returns the operator whose work another one does at its end; None where it does none."""
    number = operator.option("fused_activation_function") or 0
    return row_named(_ACTIVATION_NAMES.get(number, "")) if number else None


def fused_clamp(operator: Operator) -> tuple[float, float] | None:
    """Returns the range to which an operator cuts what it gives; None where its activation does more."""
    fused = fused_activation(operator)
    return (-math.inf, math.inf) if fused is None else fused.clamp


def operators_of(model: Model) -> Iterator[tuple[SubGraph, Operator, str]]:
    """Yields every operator with its subgraph and its place in the file that was read."""
    for index, subgraph in enumerate(model.subgraphs):
        for position, operator in enumerate(subgraph.operators):
            place = model.place_of(operator, f"subgraphs[{index}].operators[{position}]")
            yield subgraph, operator, place


def input_of(operator: Operator, position: int | None) -> Tensor | None:
    """Returns an input, or None where it is absent."""
    if position is None or position >= len(operator.inputs):
        return None
    return operator.inputs[position]


def weights_of(operator: Operator) -> list[Tensor]:
    """Returns the weights of a hybrid kernel that are present."""
    found = (input_of(operator, position) for position in row_of(operator).weights)
    return [tensor for tensor in found if tensor is not None]


def is_float_layer(operator: Operator) -> bool:
    """Whether an operator multiplies float activations by one weight and adds one bias."""
    row = row_of(operator)
    if row.product not in _LAYERS or not row.biases or not operator.outputs:
        return False
    source, weight, output = input_of(operator, row.activation), input_of(operator, 1), operator.outputs[0]
    if weight is None or operator.option("weights_format"):
        return False
    return _is_float(source) and _is_float(output)


def wrong_operands(operator: Operator) -> str | None:
    """Returns what is wrong with the number or the presence of a builtin operator's operands, or None."""
    row = row_of(operator)
    if not row.inputs:
        return None
    for what, items, allowed in (
        ("input", operator.inputs, row.inputs),
        ("output", operator.outputs, row.outputs),
    ):
        if not allows(allowed, len(items)):
            count = f"{len(items) or 'no'} {what}{'' if len(items) == 1 else 's'}"
            return f"has {count}; its kernel takes {_said(allowed)}"
        absent = [
            position
            for position, tensor in enumerate(items)
            if tensor is None and (what == "output" or position not in row.optional)
        ]
        if absent:
            return f"{what} {absent[0]} is absent (-1); its kernel needs it"
    return None


def allows(numbers: str, count: int) -> bool:
    """Whether a number is among those that a row states, such as ``2``, ``2-3``, ``1+`` or ``5,20,24``."""
    if "," in numbers:
        return str(count) in numbers.split(",")
    if numbers.endswith("+"):
        return count >= int(numbers[:-1])
    low, _, high = numbers.partition("-")
    return int(low) <= count <= int(high or low)


def _said(numbers: str) -> str:
    if "," in numbers:
        return " or ".join(numbers.replace(",", ", ").rsplit(", ", 1))
    return numbers.replace("+", " or more").replace("-", " to ")


def uncomputed_memory(operator: Operator) -> str:
    """Returns what the integer kernel of an operator that keeps a state does not compute, or computes wrong.

    Whatever its numbers are; empty where it computes all, and for other operators.
    """
    kernel = row_of(operator).integer
    memory = None if kernel is None else kernel.memory
    if memory is None or wrong_operands(operator):
        return ""
    name = operator.code.name
    if operator.option("kernel_type"):
        return f"the BASIC kernel of {name} takes no such integers"
    if operator.option("fused_activation_function") != memory.fused:
        return f"the integer kernel of {name} computes another activation function than this one"
    if input_of(operator, memory.state) is None:
        return f"{name} has no state"
    sides = _sides(operator, memory)
    if sides is None:
        return f"the shapes of the constants of {name} do not fit, or its recurrent weights are diagonals"
    sees_cell = any(input_of(operator, gate.cell) is not None for gate in memory.gates)
    if sees_cell and sides["u"] != sides["o"]:
        return f"the integer kernel of {name} takes as many weights of the cell state as it has outputs"
    return ""


def _sides(operator: Operator, memory: Memory) -> dict[str, int] | None:
    """Returns the sides of the constants of an operator that keeps a state; None where they do not agree."""
    activation = input_of(operator, row_of(operator).activation)
    if activation is None or not activation.shape:
        return None
    sides = {"i": activation.shape[-1]}
    for position, letters in memory.shapes.items():
        tensor = input_of(operator, position)
        if tensor is None:
            continue
        if len(tensor.shape or ()) != len(letters):
            return None
        for letter, size in zip(letters, tensor.shape or (), strict=True):
            if sides.setdefault(letter, size) != size or size < 1:
                return None
    rank = operator.option("rank")
    if rank is not None and (rank < 1 or sides.setdefault("u", sides["f"] // rank) * rank != sides["f"]):
        return None
    return sides


def lacks_shape(operator: Operator) -> bool:
    """Whether neither an input nor an option tells a RESHAPE its shape, and one element is not all there is.

    Its kernel takes a vector of int32 as the second input, else ``new_shape``; without either it makes a
    scalar (``tflite/kernels/reshape.cc``).
    """
    if row_of(operator) is not RESHAPE:
        return False
    source, shape = input_of(operator, 0), input_of(operator, 1)
    if shape is not None and shape.dtype_name == "INT32" and len(shape.shape or ()) == 1:
        return False
    if operator.option("new_shape"):
        return False
    known = source is not None and source.shape is not None and -1 not in (source.signature or ())
    return not (known and source is not None and source.elements == 1)


def recorded_shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    """Returns the shape that a file records for a tensor, with one -1 for a length that is not known.

    None where it is not recorded, or more than one length is unknown.
    """
    if tensor is None or tensor.shape is None:
        return None
    shape = tensor.signature if tensor.signature is not None else tensor.shape
    if sum(size == -1 for size in shape) > 1 or any(size < -1 or size == 0 for size in shape):
        return None
    return tuple(shape)


def unmet(need: Need, operator: Operator, can_be_int8: Callable[[Tensor], bool]) -> str | None:
    """Returns why an operator does not meet a need, or None if it does.

    Args:
        need: The condition.
        operator: The operator at hand.
        can_be_int8: Whether a weight of it is going to be int8.
    """
    name = operator.code.name
    if need in _BY_CONSTRUCTION:
        return None
    if need is Need.ALL_OR_NOTHING:
        stays = next((tensor for tensor in weights_of(operator) if not can_be_int8(tensor)), None)
        if stays is None:
            return None
        return f"{name} reads all of its weights as int8 or none, and {stays.name!r} stays"
    if need not in _CHECKS:
        return f"{name} needs: {need.description}"
    reason = _CHECKS[need](operator, row_of(operator))
    return reason.format(name) if reason is not None else None


def _float_input_output(operator: Operator, row: OperatorRow) -> str | None:
    activation = input_of(operator, row.activation)
    if activation is None or not _is_float(activation):
        return "the input of {} is not float32"
    return _float_output(operator, row)


def _float_output(operator: Operator, _row: OperatorRow) -> str | None:
    return None if all(map(_is_float, operator.outputs)) else "an output of {} is not float32"


def _float_bias(operator: Operator, row: OperatorRow) -> str | None:
    bias = input_of(operator, row.biases[0])
    return None if bias is None or _is_float(bias) else "the bias of {} is not float32"


def _right_side_constant(operator: Operator, row: OperatorRow) -> str | None:
    activation = input_of(operator, row.activation)
    constant = activation is None or activation.is_constant
    return "the left side of {} is a constant" if constant else None


def _one_batch_axis(operator: Operator, _row: OperatorRow) -> str | None:
    many = any(_long_batch_axes(tensor) > 1 for tensor in operator.inputs[:2] if tensor is not None)
    return "{} has more than one batch axis" if many else None


def _input_rank_recorded(operator: Operator, row: OperatorRow) -> str | None:
    activation = input_of(operator, row.activation)
    return None if activation is not None and activation.shape else "the input of {} has no shape"


def _lstm_kernel_full(operator: Operator, _row: OperatorRow) -> str | None:
    return "{} uses the BASIC kernel" if operator.option("kernel_type") else None


def _no_diagonal_recurrent(operator: Operator, row: OperatorRow) -> str | None:
    found = [input_of(operator, position) for position in row.recurrent]
    flat = any(tensor is not None and len(tensor.shape or ()) != 2 for tensor in found)
    return "{} has diagonal recurrent weights" if flat else None


def _default_weights_format(operator: Operator, _row: OperatorRow) -> str | None:
    return "{} holds its weights in a shuffled format" if operator.option("weights_format") else None


def _ungrouped(operator: Operator, _row: OperatorRow) -> str | None:
    return "{} is grouped" if grouped(operator) else None


_CHECKS: dict[Need, Callable[[Operator, OperatorRow], str | None]] = {
    Need.FLOAT_INPUT_OUTPUT: _float_input_output,
    Need.FLOAT_OUTPUT: _float_output,
    Need.FLOAT_BIAS: _float_bias,
    Need.RIGHT_SIDE_CONSTANT: _right_side_constant,
    Need.ONE_BATCH_AXIS: _one_batch_axis,
    Need.INPUT_RANK_RECORDED: _input_rank_recorded,
    Need.LSTM_KERNEL_FULL: _lstm_kernel_full,
    Need.NO_DIAGONAL_RECURRENT: _no_diagonal_recurrent,
    Need.DEFAULT_WEIGHTS_FORMAT: _default_weights_format,
    Need.UNGROUPED: _ungrouped,
}
"""What is wrong with an operator, with ``{}`` for its name."""


def same_rank_output(operator: Operator) -> bool:
    """Whether a lookup's output has the shape that its positions and its table give, as far as is known."""
    table, positions, output = operator.inputs[0], input_of(operator, 1), operator.outputs[0]
    if table is None or positions is None or output is None or not output.shape:
        return False
    return len(output.shape) == len(positions.shape or ()) + len(table.shape or ()) - 1


def grouped(operator: Operator) -> bool:
    """Whether a convolution has fewer input channels in its filter than in its input, or may have."""
    activation, weight = input_of(operator, 0), input_of(operator, 1)
    if activation is None or weight is None or not activation.shape or not weight.shape:
        return True
    return activation.shape[-1] != weight.shape[-1]


def _is_float(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dtype == dtypes.FLOAT32.value


def _long_batch_axes(tensor: Tensor) -> int:
    """Counts batch axes longer than 1; an unknown length counts as longer."""
    shape = tensor.signature if tensor.signature else tensor.shape
    return sum(size != 1 for size in (shape or ())[:-2])
