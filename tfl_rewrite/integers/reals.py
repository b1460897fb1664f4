"""What integers stand for: which tensors do, the values of constants, and which operators may have floats."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.kernels.integer import Scales
from tfl_rewrite.kernels.operands import constant_values, input_of, scales_of, wrong_operands, zero_points_of
from tfl_rewrite.kernels.table import DEQUANTIZE, FLOAT_CUSTOM, QUANTIZE, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Operator, Tensor

INTEGERS = ("INT8", "UINT8", "INT16")
"""Types of activations that stand for real values where they have a scale."""

_NARROW = (*INTEGERS, "INT4", "INT2", "UINT4")
_CONSTANTS = (*_NARROW, "INT32", "INT64")
"""Types of constants that do."""

FLOAT = dtypes.FLOAT32.value
_MOST = float(np.finfo(np.float32).max)


def is_quantized(tensor: Tensor | None, graph: Graph) -> bool:
    """Whether the integers of an activation stand for real values, on one scale."""
    if tensor is None or graph.is_constant(tensor):
        return False
    maker = graph.maker_of(tensor)
    wide = tensor.dtype_name == "INT32" and maker is not None and row_of(maker) is QUANTIZE
    if tensor.dtype_name not in INTEGERS and not wide:
        return False
    scales = scales_of(tensor)
    return len(scales) == 1 and 0 < scales[0] < math.inf and len(zero_points_of(tensor)) <= 1


def computes_integers(operator: Operator, graph: Graph) -> bool:
    """Whether an operator reads or gives integers that stand for real values, weights apart."""
    return any(is_quantized(tensor, graph) for tensor in (*operator.inputs, *operator.outputs))


def float_obstacle(operator: Operator, graph: Graph) -> str:
    """Returns why an operator cannot compute in floats; empty where it can."""
    name, row = operator.code.name, row_of(operator)
    if operator.code.custom is not None and name not in FLOAT_CUSTOM:
        return f"the custom operator {name} need not know floats"
    converts = row in (QUANTIZE, DEQUANTIZE)
    if row.integer is None and not converts and name not in FLOAT_CUSTOM:
        return f"{name} works on the integers themselves, or on a state of integers"
    if wrong := wrong_operands(operator):
        return f"{name} {wrong}"
    memory = None if row.integer is None else row.integer.memory
    if memory is not None and len(operator.intermediates) != memory.intermediates:
        return f"{name} has another integer form, with {len(operator.intermediates)} intermediate tensors"
    if operator.option("weights_format"):
        return f"there is a shuffled format in the weights of {name}"
    operands = [tensor for tensor in (*operator.inputs, *operator.outputs) if tensor is not None]
    if converts and any(not is_quantized(item, graph) and item.dtype != FLOAT for item in operands):
        return f"{name} converts numbers that do not stand for real ones"
    biases = [item for at in row.biases if (item := input_of(operator, at)) is not None]
    weighted = row.integer is not None and row.integer.scales is Scales.WEIGHTS
    for tensor in operands:
        plain = weighted and any(tensor is item for item in biases)
        why = _bias_obstacle(operator, tensor, graph) if plain else _operand_obstacle(operator, tensor, graph)
        if why:
            return f"{tensor.name!r}, which {name} reads or gives, {why}"
    return ""


def _bias_obstacle(operator: Operator, bias: Tensor, graph: Graph) -> str:
    """As for other operands; what the file says of the scale of a bias does not count, as in the kernel."""
    weight = input_of(operator, row_of(operator).weights[0])
    channels = 1 if weight is None else len(scales_of(weight))
    if not graph.is_constant(bias) or constant_values(bias, "INT32", "INT64") is None:
        return "is no constant that is read as one"
    if channels not in {1, bias.elements} - {0}:
        return "has not one value a channel"
    source = input_of(operator, row_of(operator).activation)
    step = max(map(abs, scales_of(weight)), default=0.0) if weight is not None else 0.0
    step *= max(map(abs, scales_of(source)), default=0.0) if source is not None else 0.0
    largest = step * float(np.abs(bias.values.astype(np.float64)).max(initial=0.0))
    return (
        "" if largest <= float(np.finfo(np.float32).max) else "stands for numbers that float32 does not hold"
    )


def _operand_obstacle(operator: Operator, tensor: Tensor, graph: Graph) -> str:
    if tensor.is_variable:
        users = [use.operator for use in graph.uses_of(tensor)]
        kernel = row_of(operator).integer
        keeps = kernel is not None and kernel.memory is not None
        lone = keeps and users == [operator] and not tensor.buffer.nbytes
        return "" if lone and is_quantized(tensor, graph) else "is a state"
    if graph.is_constant(tensor) and is_stored(tensor):
        return "" if real_values(tensor) is not None else "is stored in a form that is not read"
    if tensor.dtype_name in INTEGERS and not is_quantized(tensor, graph):
        return "has not one scale and zero point"
    return ""


def is_stored(tensor: Tensor, *, wide: bool = True) -> bool:
    """Whether the integers of a constant stand for real values; those of shapes and axes never do."""
    kinds = _CONSTANTS if wide else _NARROW
    return tensor.dtype_name in kinds and bool(scales_of(tensor))


def real_values(tensor: Tensor) -> npt.NDArray[np.float32] | None:
    """Returns what a constant means, in its shape; None where that cannot be read, or is not finite."""
    shape, details = tensor.shape or (), tensor.quantization
    scale, zeros = np.array(scales_of(tensor), np.float32), zero_points_of(tensor) or [0]
    try:
        levels = tensor.values
    except UnsupportedError:
        return None
    if details is None or not scale.size or len(zeros) not in (1, scale.size):
        return None
    zero: npt.NDArray[np.int64] = np.resize(np.array(zeros, np.int64), scale.size)
    along = [1] * len(shape)
    if scale.size > 1:
        if not 0 <= details.dimension < len(shape) or shape[details.dimension] != scale.size:
            return None
        along[details.dimension] = -1
    with np.errstate(over="ignore", invalid="ignore"):
        real = (levels.astype(np.int64) - zero.reshape(along)).astype(np.float32) * scale.reshape(along)
    return np.asarray(real, np.float32) if np.isfinite(real).all() else None
