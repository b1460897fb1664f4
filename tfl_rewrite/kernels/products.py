"""How an operator of a model multiplies its weight, and where its products go."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tfl_rewrite.kernels.operands import constant_values, input_of, uncomputed_memory, wrong_operands
from tfl_rewrite.kernels.operators import ProductKind, Steep
from tfl_rewrite.kernels.table import ASSIGN_VARIABLE, DEQUANTIZE, READ_VARIABLE, row_of
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.numerics.products import (
    BatchMatmul,
    Cell,
    Convolution,
    Dense,
    Depthwise,
    Filtered,
    Gate,
    Product,
    States,
    Window,
)
from tfl_rewrite.numerics.symmetric import Float32

SAME = 0
"""The option ``padding`` of a layer that pads so that strides alone divide its size."""


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
        (operator.option("padding") or 0) == SAME,
    )


def states_of(operator: Operator) -> States | None:
    """Returns what follows the state that an operator computes in; None where it has none, or no plain one.

    Float32 constants are needed, and what the integer kernel computes.
    """
    kernel = row_of(operator).integer
    memory = None if kernel is None else kernel.memory
    if memory is None or wrong_operands(operator) or uncomputed_memory(operator):
        return None
    held: dict[int, Float32] = {}
    for position in (*memory.weights, *memory.sums):
        tensor = input_of(operator, position)
        values = None if tensor is None else constant_values(tensor, "FLOAT32")
        if tensor is not None and values is None:
            return None
        if tensor is not None and values is not None:
            held[position] = values.reshape(tensor.shape or ())
    if not memory.gates:
        return Filtered(held[1])
    gates = [
        Gate(held[at.inputs], held[at.outputs], held[at.bias], held.get(at.cell or 0), held.get(at.norm))
        if at.inputs in held
        else None
        for at in memory.gates
    ]
    clips = float(operator.option("cell_clip") or 0.0), float(operator.option("proj_clip") or 0.0)
    first = operator.option("time_major") is not False
    return Cell(gates, held.get(16), held.get(17), clips, first)


def before_steep(model: Model) -> set[int]:
    """Returns the ids of the weighted operators whose result reaches a steep one as it is.

    That is (:class:`Steep`), without another weighted operator between. Bodies
    that operators call are taken to pass all of their inputs on to all outputs, and a variable what is
    assigned to any.
    """
    graph = Graph.of(model)
    callers: dict[int, list[Operator]] = {}
    within: dict[int, SubGraph] = {}
    stored: list[Tensor] = []
    for _, operator in model.operators():
        for inner in operator.subgraphs():
            callers.setdefault(id(inner), []).append(operator)
        if row_of(operator) is ASSIGN_VARIABLE:
            stored += _present(operator.inputs)
    for subgraph in model.subgraphs:
        within.update((id(tensor), subgraph) for tensor in subgraph.tensors)
    waiting = [tensor for _, operator in model.operators() for tensor in _steep_inputs(operator, graph)]
    seen = {id(tensor) for tensor in waiting}
    found: set[int] = set()
    while waiting:
        tensor = waiting.pop()
        maker = graph.maker_of(tensor)
        if maker is not None and _is_weighted(maker, graph):
            found.add(id(maker))
            continue
        behind: list[Tensor] = []
        if maker is None:
            home = within.get(id(tensor))
            if home is not None and any(item is tensor for item in home.inputs):
                behind = [item for caller in callers.get(id(home), []) for item in _present(caller.inputs)]
        else:
            behind = list(_present(maker.inputs))
            behind += [item for inner in maker.subgraphs() for item in inner.outputs]
            behind += stored if row_of(maker) is READ_VARIABLE else []
        waiting += [item for item in behind if id(item) not in seen]
        seen.update(map(id, behind))
    return found


def _steep_inputs(operator: Operator, graph: Graph) -> Iterator[Tensor]:
    """Yields the inputs of an operator that it is steep in."""
    steep = row_of(operator).steep
    second = operator.inputs[1] if len(operator.inputs) > 1 else None
    constant = second is not None and graph.maker_of(second) is None and second.is_constant
    if steep is Steep.DIVISION and constant:
        # By a constant: a straight line.
        return
    if steep is Steep.POWER and second is not None and _least(second) >= 1:
        return
    if steep is not None:
        yield from _present(operator.inputs[: 1 if steep is Steep.ALWAYS else 2])


def _least(exponents: Tensor) -> float:
    """Returns the least of some constant float32 exponents; -inf where they are not known."""
    values = constant_values(exponents, "FLOAT32")
    return -np.inf if values is None or not values.size else float(values.min())


def _is_weighted(operator: Operator, graph: Graph) -> bool:
    """Whether an operator multiplies by constant weights and sums up."""
    row = row_of(operator)
    if row.product is not ProductKind.MATMUL:
        return bool(row.summed)
    return any(
        tensor.is_constant or ((maker := graph.maker_of(tensor)) is not None and row_of(maker) is DEQUANTIZE)
        for tensor in _present(operator.inputs)
        if tensor is not activation_of(operator, 1)
    )


def _present(tensors: list[Tensor | None]) -> Iterator[Tensor]:
    return (tensor for tensor in tensors if tensor is not None)
