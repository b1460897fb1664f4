"""What must hold of a model.

:func:`broken` is about structure: what a pass must never leave behind. :func:`problems` is about what the
runtime will refuse to load in a file that somebody else made; ``check`` prints it.
"""

from __future__ import annotations

from collections.abc import Iterator

from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, Operator, Quantization, SubGraph, Tensor
from tfl_rewrite.options.frozen import frozen


@frozen
class Problem:
    """Something that the runtime refuses, or computes wrongly."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def broken(model: Model) -> list[Problem]:
    """Returns the broken rules of structure: what refers to what, and in which order it is computed."""
    buffers = {id(item) for item in model.adopt()}
    codes = {id(item) for item in model.operator_codes}
    subgraphs = {id(item) for item in model.subgraphs}
    found = []
    for index, subgraph in enumerate(model.subgraphs):
        where = model.place_of(subgraph, f"subgraphs[{index}]")
        tensors = {id(item) for item in subgraph.tensors}
        if len(tensors) != len(subgraph.tensors):
            found.append(Problem(where, "a tensor is listed twice"))
        for tensor in [*subgraph.inputs, *subgraph.outputs]:
            if id(tensor) not in tensors:
                found.append(Problem(where, f"input or output {tensor.name!r} is not a tensor of it"))
        for tensor in subgraph.tensors:
            if model.buffers and id(tensor.buffer) not in buffers:
                found.append(Problem(where, f"the buffer of {tensor.name!r} is not part of the model"))
        for position, operator in enumerate(subgraph.operators):
            place = model.place_of(operator, f"{where}.operators[{position}]")
            place = f"{place} {operator.code.name}"
            if id(operator.code) not in codes:
                found.append(Problem(place, "its operator code is not part of the model"))
            for item in [*operator.inputs, *operator.outputs, *operator.intermediates]:
                if item is not None and id(item) not in tensors:
                    found.append(Problem(place, f"{item.name!r} is not a tensor of its subgraph"))
            if any(id(item) not in subgraphs for item in operator.subgraphs()):
                found.append(Problem(place, "runs a subgraph that is not part of the model"))
        found += [Problem(where, text) for text in out_of_order(subgraph)]
    for signature in model.signatures:
        tensors = {id(item) for item in signature.subgraph.tensors}
        if any(id(tensor) not in tensors for _, tensor in [*signature.inputs, *signature.outputs]):
            found.append(
                Problem(f"signature {signature.key!r}", "an argument is not a tensor of its subgraph")
            )
    return found


def read_early(subgraph: SubGraph) -> list[tuple[int, Operator, Tensor]]:
    """Returns each operator that reads what it or a later one makes, its position, and what it reads."""
    made_at = {
        id(tensor): position
        for position, operator in enumerate(subgraph.operators)
        for tensor in operator.outputs
        if tensor is not None
    }
    return [
        (position, operator, tensor)
        for position, operator in enumerate(subgraph.operators)
        for tensor in operator.inputs
        if tensor is not None and made_at.get(id(tensor), -1) >= position and not tensor.is_variable
    ]


def out_of_order(subgraph: SubGraph) -> list[str]:
    """Returns one line for each operator that reads what a later one makes."""
    return [
        f"operators[{position}] {operator.code.name} reads {tensor.name!r}, which is made later"
        for position, operator, tensor in read_early(subgraph)
    ]


def problems(model: Model) -> list[Problem]:
    """Returns what the runtime refuses when it loads the model.

    Sources: ``InterpreterBuilder`` and ``Subgraph::SetTensorParametersReadOnly`` (``tflite/core``).
    """
    found = broken(model)
    if not model.buffers and "buffers" not in model.rest:
        found.append(Problem("buffers", "there are none; even a model without constants has an empty one"))
    if model.buffers and model.buffers[0].nbytes:
        found.append(Problem("buffers[0]", f"holds {model.buffers[0].nbytes} bytes; it must be empty"))
    for index, subgraph in enumerate(model.subgraphs):
        for position, tensor in enumerate(subgraph.tensors):
            where = model.place_of(tensor, f"subgraphs[{index}].tensors[{position}]")
            found += [Problem(where, what) for what in _tensor(tensor)]
            if model.buffers and tensor.buffer is not model.buffers[0] and _is_empty_constant(tensor):
                found.append(
                    Problem(where, "has an empty vector of constant bytes, which is none and too few")
                )
        for position, operator in enumerate(subgraph.operators):
            where = model.place_of(operator, f"subgraphs[{index}].operators[{position}]")
            found += [Problem(where, what) for what in _operator(operator)]
    found += [
        Problem(f"signature_defs[{index}]", "has no key")
        for index, signature in enumerate(model.signatures)
        if signature.key is None
    ]
    keys = [signature.key for signature in model.signatures]
    if len(set(keys)) != len(keys):
        found.append(Problem("signature_defs", "two signatures have the same key"))
    return found


def _tensor(tensor: Tensor) -> Iterator[str]:
    row = dtypes.BY_VALUE.get(tensor.dtype)
    if row is None:
        yield f"has the unknown type {tensor.dtype}"
        return
    if tensor.is_variable and tensor.buffer.nbytes:
        yield "is a variable, yet has constant bytes"
    if tensor.buffer.nbytes and row.bits and not tensor.is_sparse and tensor.external is None:
        need = row.nbytes(tensor.elements)
        if tensor.buffer.nbytes != need:
            shape = list(tensor.shape or ())
            yield f"buffer holds {tensor.buffer.nbytes} bytes, but {row.name} {shape} takes {need}"
    if tensor.shape is not None and any(size < 0 for size in tensor.shape):
        yield f"shape {list(tensor.shape)} has a negative dimension"
    if tensor.quantization is not None and tensor.quantization.scale:
        yield from _quantization(tensor, tensor.quantization)


def _is_empty_constant(tensor: Tensor) -> bool:
    """Whether the runtime takes a tensor for a constant, and misses all of its bytes.

    A vector that is there but empty is not an absent one, nor are no bytes at some file offset
    (``InterpreterBuilder::ParseTensors``).
    """
    buffer = tensor.buffer
    data = buffer.rest.get("data")
    is_empty = data is not None and not len(data) and (buffer.outside or buffer.blob is None)
    if not is_empty and not (buffer.outside and not buffer.nbytes):
        return False
    row = dtypes.BY_VALUE.get(tensor.dtype)
    needs = row is not None and row.bits > 0 and row.nbytes(tensor.elements) > 0 and not tensor.is_sparse
    return needs or tensor.is_variable


def _quantization(tensor: Tensor, details: Quantization) -> Iterator[str]:
    scales = len(details.scale or ())
    zero_points = len(details.zero_point or ())
    if scales != zero_points:
        yield f"has {scales} scales but {zero_points} zero points"
    if scales > 1:
        rank, dimension = len(tensor.shape or ()), details.dimension
        if not 0 <= dimension < rank:
            yield f"quantized_dimension {dimension} is out of range for {rank} dimensions"
        elif tensor.shape is not None and tensor.shape[dimension] != scales:
            yield f"has {scales} scales for a dimension of {tensor.shape[dimension]}"
    elif not 0 <= details.dimension < max(1, len(tensor.shape or ())):
        yield f"quantized_dimension {details.dimension} is out of range"


def _operator(operator: Operator) -> Iterator[str]:
    if operator.code.custom is not None or operator.code.builtin != 32:
        return
    yield "is a custom operator without a name"
