"""Biases that take back what rounding a weight does to the mean of its products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.kernels.operators import ProductKind, Steep
from tfl_rewrite.kernels.products import activation_of
from tfl_rewrite.kernels.table import ASSIGN_VARIABLE, DEQUANTIZE, READ_VARIABLE, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor

_BIAS = 2

ADDED_SHARE = 0.02
"""A bias is added where it takes no more than this share of the weight's new bytes."""

ADDED_NBYTES = 128
"""Of the tensor and the buffer of an added bias."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What is to be added to the bias of an operator: ``[outputs]``."""

    subgraph: SubGraph
    operator: Operator
    change: npt.NDArray[np.float64]


def takes_bias(subgraph: SubGraph, operator: Operator, *, weight_nbytes: int, outputs: int) -> bool:
    """Whether an operator has a constant float bias of its own, or may be given one.

    Args:
        subgraph: Where it lies.
        operator: It.
        weight_nbytes: What its weight takes when rounded.
        outputs: Length of the bias.
    """
    row = row_of(operator)
    if not row.is_layer:
        return False
    bias = operator.inputs[_BIAS] if len(operator.inputs) > _BIAS else None
    if bias is None:
        if row.product is not ProductKind.DENSE:
            return False
        return 4 * outputs + ADDED_NBYTES <= ADDED_SHARE * weight_nbytes
    return bias.elements == outputs and _stored(subgraph, bias) is not None


def before_steep(model: Model) -> set[int]:
    """Returns the ids of the weighted operators whose result reaches a steep one as it is.

    That is (:class:`~tfl_rewrite.kernels.operators.Steep`), without another weighted operator between. Bodies
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
    blob = exponents.buffer.blob
    if exponents.dtype != dtypes.FLOAT32.value or blob is None or not blob.nbytes:
        return -np.inf
    return float(np.frombuffer(blob.view(), np.float32).min())


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


def correct(editor: Editor, item: Correction) -> None:
    """Adds to a bias; other operators that read the same constant keep the old one."""
    subgraph, operator = item.subgraph, item.operator
    bias = operator.inputs[_BIAS] if len(operator.inputs) > _BIAS else None
    if bias is None:
        weight = operator.inputs[1]
        name = f"{weight.name if weight is not None else operator.code.name}_bias"
        data = item.change.astype("<f4").tobytes()
        shape = (len(item.change),)
        added = Tensor(name, shape, dtypes.FLOAT32.value, editor.add_buffer(data))
        operator.inputs[_BIAS:] = [editor.add_tensor(subgraph, added)]
        return
    stored = _stored(subgraph, bias)
    assert stored is not None and stored.buffer.blob is not None
    dtype = dtypes.BY_VALUE[stored.dtype].numpy
    old = np.frombuffer(stored.buffer.blob.view(), dtype).astype(np.float64)
    new = old + item.change.reshape(old.shape)
    if not np.isfinite(new.astype(dtype)).all():
        return
    if _alone(editor, stored, bias, operator):
        stored.buffer.blob = OwnedBlob(new.astype(dtype).tobytes())
        return
    data = new.astype("<f4").tobytes()
    copy = Tensor(f"{bias.name}_own", bias.shape, dtypes.FLOAT32.value, editor.add_buffer(data))
    operator.inputs[_BIAS] = editor.add_tensor(subgraph, copy)


def _stored(subgraph: SubGraph, bias: Tensor) -> Tensor | None:
    """Returns the float constant that a bias is, or is expanded from; None where it is neither."""
    found: Tensor | None = bias
    if not bias.is_constant:
        maker = next((item for item in subgraph.operators if any(o is bias for o in item.outputs)), None)
        expands = maker is not None and row_of(maker) is DEQUANTIZE and maker.inputs
        found = maker.inputs[0] if maker is not None and expands else None
    if found is None or not found.is_constant or found.is_sparse or found.external is not None:
        return None
    row = dtypes.BY_VALUE.get(found.dtype)
    if row is None or row.name not in ("FLOAT32", "FLOAT16") or found.buffer.blob is None:
        return None
    return found if found.buffer.nbytes == row.nbytes(found.elements) else None


def _alone(editor: Editor, stored: Tensor, bias: Tensor, operator: Operator) -> bool:
    """Whether the constant serves as the bias of this operator and as nothing else."""
    model = editor.model
    if len(model.holders()[id(stored.buffer)]) > 1:
        return False
    if id(stored.buffer) in model.pinned:
        return False
    exposed = [*(t for s in model.subgraphs for t in [*s.inputs, *s.outputs])]
    if any(tensor is bias or tensor is stored for tensor in exposed):
        return False
    readers = sum(
        tensor is bias or tensor is stored for _, other in model.operators() for tensor in other.inputs
    )
    return readers == (1 if stored is bias else 2)
