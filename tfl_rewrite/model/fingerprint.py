"""A hash of what a model computes: its graph, its constants and its options, whatever else its file holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from tfl_rewrite.flatbuf.record import Record, ScalarVector
from tfl_rewrite.model.blob import MemorySink
from tfl_rewrite.model.ir import Model, Operator, SubGraph, Tensor
from tfl_rewrite.model.likeness import digest

_MARK = "surrogatepass"

_OWN = ("custom_options", "mutating_variable_inputs")
"""Fields of an operator that are neither operands nor builtin options, which are typed."""


def fingerprint(model: Model) -> str:
    """Returns a hash of the graph and its constants (SHA-256, hex).

    Equal for two files that differ in metadata, in the order of buffers, in versions of operators or in what
    they are called; tensors and operators are at the same places in both, under the same names.

    Args:
        model: Not changed. All constants are read once.
    """
    places: dict[int, int] = {}
    for subgraph in model.subgraphs:
        places.update((id(tensor), at) for at, tensor in enumerate(subgraph.tensors))
    places.update((id(subgraph), at) for at, subgraph in enumerate(model.subgraphs))
    content: dict[int, str] = {}
    made = hashlib.sha256()
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            made.update(repr(_tensor(tensor, content)).encode("utf-8", _MARK))
        for operator in subgraph.operators:
            made.update(repr(_operator(operator, places)).encode("utf-8", _MARK))
        ends = [[places[id(item)] for item in side] for side in (subgraph.inputs, subgraph.outputs)]
        made.update(repr(ends).encode("ascii"))
    for signature in model.signatures:
        named = [
            [(record.get("name"), places.get(id(tensor))) for record, tensor in side]
            for side in (signature.inputs, signature.outputs)
        ]
        facts = signature.key, places.get(id(signature.subgraph)), named
        made.update(repr(facts).encode("utf-8", _MARK))
    return made.hexdigest()


def _tensor(tensor: Tensor, content: dict[int, str]) -> tuple[Any, ...]:
    blob, details = tensor.buffer.blob, tensor.quantization
    if blob is not None and id(tensor.buffer) not in content:
        content[id(tensor.buffer)] = digest(blob).hex()
    scales = None if details is None else (_told(details.scale, {}), _told(details.zero_point, {}))
    dimension = None if details is None else details.dimension
    held = content.get(id(tensor.buffer))
    facts = (
        tensor.name,
        tensor.dtype,
        tensor.shape,
        tensor.is_variable,
        _told(tensor.rest.get("sparsity"), {}),
    )
    return (*facts, scales, dimension, held)


def _operator(operator: Operator, places: Mapping[int, int]) -> tuple[Any, ...]:
    operands = [
        [None if tensor is None else places.get(id(tensor)) for tensor in side]
        for side in (operator.inputs, operator.outputs, operator.intermediates)
    ]
    custom = None if operator.large_custom is None else digest(operator.large_custom).hex()
    own = [operator.rest.get(name) for name in _OWN]
    told = [_told(item, places) for item in (operator.options, operator.options2, *own)]
    return operator.code.name, operands, told, custom


def _told(value: Any, places: Mapping[int, int]) -> object:
    """Returns a value of a record as something whose text says all of it."""
    if isinstance(value, Record):
        rows = sorted(value.values.items())
        return value.spec.name, [(name, _told(item, places)) for name, item in rows]
    if isinstance(value, ScalarVector):
        return value.scalar.name, bytes(value.raw)
    if isinstance(value, list):
        return [_told(item, places) for item in value]
    if isinstance(value, SubGraph):
        return "subgraph", places.get(id(value))
    if value is None or isinstance(value, (str, int, float)):
        return value
    sink = MemorySink(value.nbytes)
    value.write_to(sink, 0)
    return hashlib.sha256(sink.data).hexdigest()
