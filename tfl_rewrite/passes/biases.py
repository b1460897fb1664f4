"""Biases that take back what rounding a weight does to the mean of its products."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Operator, SubGraph, Tensor
from tfl_rewrite.passes.edits import Editor

_BIAS = 2
_TAKES_BIAS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")

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
    if operator.code.name not in _TAKES_BIAS or operator.code.custom is not None:
        return False
    bias = operator.inputs[_BIAS] if len(operator.inputs) > _BIAS else None
    if bias is None:
        if operator.code.name != "FULLY_CONNECTED":
            return False
        return 4 * outputs + ADDED_NBYTES <= ADDED_SHARE * weight_nbytes
    return bias.elements == outputs and _stored(subgraph, bias) is not None


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
        expands = maker is not None and maker.code.name == "DEQUANTIZE" and maker.inputs
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
    tensors = [tensor for subgraph in model.subgraphs for tensor in subgraph.tensors]
    if sum(tensor.buffer is stored.buffer for tensor in tensors) > 1:
        return False
    if any(entry.buffer is stored.buffer for entry in model.metadata):
        return False
    if any(buffer is stored.buffer for buffer in model.metadata_buffers):
        return False
    exposed = [*(t for s in model.subgraphs for t in [*s.inputs, *s.outputs])]
    if any(tensor is bias or tensor is stored for tensor in exposed):
        return False
    readers = sum(
        tensor is bias or tensor is stored for _, other in model.operators() for tensor in other.inputs
    )
    return readers == (1 if stored is bias else 2)
