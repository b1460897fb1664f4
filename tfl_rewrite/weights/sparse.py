"""Constants that store only what is not zero, and the dense ones that they stand for.

The sparse form is that of the tensor algebra compiler (Kjolstad et al., The Tensor Algebra Compiler, OOPSLA
2017): levels in the order of ``traversal_order``, each dense or compressed; with a block map, the last levels
are those within a block (``tflite/kernels/internal/utils/sparsity_format_converter.cc``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.kernels.table import DENSIFY, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Model, Tensor

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
