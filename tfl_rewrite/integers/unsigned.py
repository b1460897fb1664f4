"""Which operators compute in uint8, on which grids, and which of them can compute in int8 instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tfl_rewrite.integers.groups import Grid
from tfl_rewrite.kernels.integer import Caveat, Scales, Target
from tfl_rewrite.kernels.operands import (
    constant_values,
    input_of,
    scales_of,
    wrong_operands,
    zero_points_of,
)
from tfl_rewrite.kernels.table import DEQUANTIZE, QUANTIZE, SHAPE_READERS, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Operator, SubGraph, Tensor
from tfl_rewrite.numerics.symmetric import LARGEST_SCALE, SMALLEST_SCALE

UINT8 = dtypes.BY_NAME["UINT8"].value
SHIFT = 128


def grid_of(tensor: Tensor | None) -> Grid | None:
    """Returns the grid of the int8 twin of a uint8 tensor; None where it is none with one scale."""
    if tensor is None or tensor.dtype != UINT8:
        return None
    scales, zeros = scales_of(tensor), zero_points_of(tensor) or [0]
    if len(scales) != 1 or len(zeros) != 1 or not SMALLEST_SCALE <= scales[0] <= LARGEST_SCALE:
        return None
    return Grid(8, scales[0], zeros[0] - SHIFT) if 0 <= zeros[0] <= 255 else None


def grids_of(tensors: Sequence[Tensor | None]) -> dict[int, Grid]:
    """Returns the grids of those that are uint8, by position."""
    return {at: grid for at, tensor in enumerate(tensors) if (grid := grid_of(tensor)) is not None}


def shared_grid(operator: Operator) -> Grid:
    """Returns the grid of an operator that takes one for all: of its one input, else of its output."""
    inputs, outputs = grids_of(operator.inputs), grids_of(operator.outputs)
    return next(iter(inputs.values() if len(inputs) == 1 else outputs.values()))


def copies_unequally(operator: Operator) -> bool:
    """Whether the uint8 kernel of an operator copies integers although their scales differ."""
    kernel = row_of(operator).integer
    if kernel is None or kernel.scales is not Scales.SAME or Caveat.UNSIGNED_RESCALES in kernel.caveats:
        return False
    inputs, outputs = grids_of(operator.inputs), grids_of(operator.outputs)
    return bool(outputs) and len({*inputs.values(), *outputs.values()}) > 1


def chosen_operators(
    subgraph: SubGraph,
    graph: Graph,
    keeps: Callable[[Operator], bool],
    reasons: dict[int, str],
    target: Target = Target.LITERT,
) -> dict[int, Operator]:
    """Returns the operators that can compute in int8, by id.

    Args:
        subgraph: Of which.
        graph: Of its model.
        keeps: Whether an operator is to stay as it is.
        reasons: Is told why others that compute in uint8 cannot, by id.
    """
    chosen: dict[int, Operator] = {}
    for operator in subgraph.operators:
        if not _computes_unsigned(operator, graph) or row_of(operator) in SHAPE_READERS:
            continue
        why = "kept, as asked" if keeps(operator) else _obstacle(operator, graph, target)
        if why:
            reasons[id(operator)] = why
        else:
            chosen[id(operator)] = operator
    while True:
        # What only moves integers goes with what computes: by itself it would win nothing.
        alone = [key for key, operator in chosen.items() if _is_alone(operator, graph, chosen)]
        if not alone:
            return chosen
        for key in alone:
            del chosen[key]


def _is_alone(operator: Operator, graph: Graph, chosen: dict[int, Operator]) -> bool:
    kernel = row_of(operator).integer
    if kernel is not None and kernel.scales is not Scales.SAME:
        return False
    makers = [graph.maker_of(tensor) for tensor in operator.inputs if tensor is not None]
    near = [maker for maker in makers if maker is not None]
    near += [
        use.operator for tensor in operator.outputs if tensor is not None for use in graph.uses_of(tensor)
    ]
    return not any(id(item) in chosen for item in near)


def _computes_unsigned(operator: Operator, graph: Graph) -> bool:
    """Whether an operator reads or gives uint8 activations."""
    read = [tensor for tensor in operator.inputs if tensor is not None and not graph.is_constant(tensor)]
    return any(grid_of(tensor) is not None for tensor in (*read, *operator.outputs))


def _obstacle(operator: Operator, graph: Graph, target: Target) -> str:
    """Returns why an operator cannot compute in int8; empty where it can."""
    name, row, kernel = operator.code.name, row_of(operator), row_of(operator).integer
    tensors = [tensor for tensor in (*operator.inputs, *operator.outputs) if tensor is not None]
    if any(tensor.is_variable for tensor in tensors):
        return f"{name} keeps a state"
    if row in (QUANTIZE, DEQUANTIZE):
        ends = (input_of(operator, 0), *operator.outputs[:1])
        bad = any(item is not None and item.dtype_name not in ("UINT8", "INT8", "FLOAT32") for item in ends)
        return f"{name} converts from or to another width" if bad else ""
    if operator.code.custom is not None:
        return f"the custom operator {name} need not know int8"
    if kernel is None:
        return f"{name} has no int8 kernel"
    if 8 not in row.widths(target):
        return f"{target.spoken} has no int8 kernel of {name}"
    if Caveat.REFERENCE_WRONG in kernel.caveats:
        return f"the integer kernels of {name} disagree"
    if wrong := wrong_operands(operator):
        return f"{name} {wrong}"
    weights = row.weights if kernel.scales is Scales.WEIGHTS else ()
    for position, tensor in enumerate(operator.inputs):
        if tensor is not None and tensor.dtype == UINT8 and grid_of(tensor) is None:
            return f"input {position} of {name} does not have one scale and zero point"
        if position in weights and (why := _weight_obstacle(operator, position, graph)):
            return f"{why} of {name}"
    if any(item is not None and item.dtype == UINT8 and grid_of(item) is None for item in operator.outputs):
        return f"an output of {name} does not have one scale and zero point"
    if any(item is not None and item.dtype_name in ("FLOAT32", "INT16") for item in operator.outputs):
        return f"{name} gives numbers of another width"
    return ""


def _weight_obstacle(operator: Operator, position: int, graph: Graph) -> str:
    """Returns what is in the way of the weight of an operator, to be followed by its name."""
    row, weight = row_of(operator), input_of(operator, position)
    bias = input_of(operator, row.biases[0])
    if operator.option("weights_format"):
        return "there is a shuffled format in the weights"
    if grid_of(input_of(operator, row.activation)) is None:
        return "there is no uint8 input"
    if weight is None or grid_of(weight) is None or not weight.elements:
        return "there is no uint8 constant for the weight"
    if not graph.is_constant(weight) or constant_values(weight, "UINT8") is None:
        return "there is no uint8 constant for the weight"
    axis = row.output_axis(position, len(weight.shape or ()))
    if axis is None:
        return "there are too few axes in the weight"
    if bias is not None and not _is_plain_bias(bias, (weight.shape or ())[axis], graph):
        return "there is no int32 constant of one value a channel for the bias"
    return ""


def _is_plain_bias(bias: Tensor, channels: int, graph: Graph) -> bool:
    values = constant_values(bias, "INT32") if graph.is_constant(bias) else None
    return values is not None and values.size == channels and not any(zero_points_of(bias))
