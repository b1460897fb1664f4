"""Constants that store only what is not zero, and the dense ones that they stand for.

The sparse form is that of the tensor algebra compiler (Kjolstad et al., The Tensor Algebra Compiler, OOPSLA
2017): levels in the order of ``traversal_order``, each dense or compressed; with a block map, the last levels
are those within a block (``tflite/kernels/internal/utils/sparsity_format_converter.cc``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.flatbuf.record import INT32, UINT8, UINT16, Record, ScalarVector
from tfl_rewrite.kernels.table import DENSIFY, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, SubGraph, Tensor, new_record, schema

LARGEST_NBYTES = 1 << 30
"""Of a dense constant; a small file may claim more."""

_SPARSE_CSR = 1

Coordinates = npt.NDArray[np.int64]


def make_dense(model: Model) -> int:
    """Stores sparse constants dense and drops the DENSIFY operators over them.

    Args:
        model: Changed in place. What is not sound, or is an output, stays.

    Returns:
        How many there were.
    """
    graph, editor, count = Graph.of(model), Editor(model), 0
    for subgraph in model.subgraphs:
        for tensor in list(subgraph.tensors):
            if not tensor.is_sparse or not graph.is_constant(tensor) or id(tensor) in graph.exposed:
                continue
            readers = [use.operator for use in graph.uses_of(tensor)]
            expanding = [reader for reader in readers if row_of(reader) is DENSIFY]
            made = [reader.outputs[0] for reader in expanding]
            if any(item is None or id(item) in graph.exposed or item.dtype != tensor.dtype for item in made):
                continue
            values = dense(tensor)
            if values is None:
                continue
            compressed, tensor.buffer = tensor.buffer, editor.constant(values.tobytes())
            editor.release(compressed)
            tensor.rest = tensor.rest.replace(sparsity=None)
            for reader, output in zip(expanding, made, strict=True):
                assert output is not None
                for use in graph.uses_of(output):
                    use.operator.inputs[use.position] = tensor
                editor.remove_operator(subgraph, reader, output)
            count += 1
    if count:
        editor.removed()
        editor.finish()
    return count


def dense(tensor: Tensor) -> npt.NDArray[Any] | None:
    """Returns what a sparse constant stands for, in its shape; None where its form is not sound."""
    form, shape = tensor.rest.get("sparsity"), tensor.shape or ()
    kind, blob = dtypes.BY_VALUE.get(tensor.dtype), tensor.buffer.blob
    if form is None or kind is None or not kind.numpy or kind.bits % 8 or blob is None:
        return None
    if not shape or min(shape) < 1 or math.prod(shape) * kind.bits // 8 > LARGEST_NBYTES:
        return None
    order, blocks = (list(form.get(name) or ()) for name in ("traversal_order", "block_map"))
    levels = list(form.get("dim_metadata") or ())
    rank = len(shape)
    if sorted(order) != list(range(rank + len(blocks))) or len(levels) != len(order):
        return None
    if not all(0 <= axis < rank for axis in blocks):
        return None
    data = blob.view()
    if len(data) % (kind.bits // 8):
        return None
    values = np.frombuffer(data, kind.numpy)
    # No level has more entries than there are values, or segments that count them.
    most = max(values.size, *(len(_vector(level, "array_segments")) for level in levels))
    inner = [level for level, axis in zip(levels, order, strict=True) if axis >= rank]
    if any(level.get("format") == _SPARSE_CSR for level in inner):
        return None
    found = _coordinates(levels, most)
    if found is None or values.size != found.shape[1]:
        return None
    index = np.zeros((rank, found.shape[1]), np.int64)
    for level, axis in sorted(enumerate(order), key=lambda item: item[1]):
        if axis < rank:
            index[axis] += found[level]
        else:
            # Whole blocks were counted so far.
            inner = blocks[axis - rank]
            index[inner] = index[inner] * int(levels[level].get("dense_size") or 0) + found[level]
    if (index < 0).any() or (index >= np.array(shape)[:, None]).any():
        return None
    made = np.zeros(shape, kind.numpy)
    made[tuple(index)] = values
    return made


def _coordinates(levels: Sequence[Record], most: int) -> Coordinates | None:
    """Returns ``[levels, stored]``: where each stored value lies, level by level."""
    found = np.zeros((0, 1), np.int64)
    for level in levels:
        count = found.shape[1]
        if level.get("format") == _SPARSE_CSR:
            segments, indices = _vector(level, "array_segments"), _vector(level, "array_indices")
            if len(segments) != count + 1 or segments[0] != 0 or segments[-1] != len(indices):
                return None
            lengths = np.diff(segments)
            if (lengths < 0).any() or len(indices) > most:
                return None
            found = np.vstack([np.repeat(found, lengths, axis=1), indices])
            continue
        size = int(level.get("dense_size") or 0)
        if size < 1 or count * size > most:
            return None
        found = np.vstack([np.repeat(found, size, axis=1), np.tile(np.arange(size), count)])
    return found


def _vector(level: Record, name: str) -> Coordinates:
    held = level.get(name)
    return np.array([] if held is None else list(held.get("values") or ()), np.int64)


@dataclass(frozen=True, slots=True)
class SparseForm:
    """A constant that stores only what is not zero, or whole blocks of it.

    Attributes:
        details: How what is stored lies in the constant.
        data: What is stored.
    """

    details: Record
    data: bytes

    @property
    def nbytes(self) -> int:
        """Of the data and of what says where they lie."""
        levels = self.details.get("dim_metadata") or ()
        vectors = [level.get(name) for level in levels for name in ("array_segments", "array_indices")]
        return len(self.data) + sum(int(item.get("values").nbytes) for item in vectors if item is not None)


def sparse_form(values: npt.NDArray[Any], block: int = 1) -> SparseForm:
    """Returns the sparse form of a constant: its last axis is compressed.

    Args:
        values: In the shape of the constant, of one axis or more.
        block: So many neighbours along the last axis are stored where any of them is not zero; the axis is a
            whole number of blocks.
    """
    *outer, length = values.shape
    rows = np.ascontiguousarray(values).reshape(-1, length // block, block)
    stored = rows.any(axis=2)
    segments = np.concatenate([[0], np.cumsum(stored.sum(axis=1))])
    levels = [new_record("DimensionMetadata").replace(dense_size=size) for size in outer]
    indices = np.nonzero(stored)[1]
    compressed = new_record("DimensionMetadata").replace(format=_SPARSE_CSR)
    for name, numbers in (("array_segments", segments), ("array_indices", indices)):
        kind, vector = _packed(numbers)
        compressed = compressed.replace(**{f"{name}_type": kind, name: vector})
    levels.append(compressed)
    order, blocks = list(range(len(levels))), []
    if block > 1:
        levels.append(new_record("DimensionMetadata").replace(dense_size=block))
        order.append(len(order))
        blocks.append(len(outer))
    details = new_record("SparsityParameters").replace(
        traversal_order=ScalarVector.of(INT32, order),
        block_map=ScalarVector.of(INT32, blocks) if blocks else None,
        dim_metadata=levels,
    )
    return SparseForm(details, rows[stored].tobytes())


def _packed(numbers: npt.NDArray[np.integer]) -> tuple[int, Record]:
    """Returns a vector in the narrowest type that takes its numbers, and its member of the union."""
    most = int(numbers.max(initial=0))
    name = "Uint8Vector" if most < 1 << 8 else "Uint16Vector" if most < 1 << 16 else "Int32Vector"
    spec = new_record(name)
    width = {"Uint8Vector": UINT8, "Uint16Vector": UINT16, "Int32Vector": INT32}[name]
    number = schema().enums["SparseIndexVector"].values[name]
    return number, spec.replace(values=ScalarVector.of(width, numbers.tolist()))


OVERHEAD_NBYTES = 400
"""Of the operator, the tensor and the tables of a sparse constant, with room: RNet's took about 200 each."""


def make_sparse(editor: Editor, subgraph: SubGraph, tensor: Tensor, made: SparseForm) -> None:
    """Stores a constant sparse, and puts the DENSIFY before its readers that makes it dense again.

    Args:
        editor: Of the model; :meth:`Editor.finish` is left to the caller.
        subgraph: Of the tensor.
        tensor: The constant; keeps its name, and is computed from now on.
        made: What it stores.
    """
    compressed = editor.add_like(subgraph, tensor, tensor.dtype_name, suffix="sparse")
    compressed.signature = None
    compressed.rest = compressed.rest.replace(sparsity=made.details)
    compressed.buffer = editor.add_buffer(made.data)
    emptied, tensor.buffer = tensor.buffer, editor.sentinel()
    editor.release(emptied)
    operator = editor.plain(DENSIFY, 1, [compressed], tensor)
    subgraph.operators.insert(editor.first_reader(subgraph, tensor), operator)
