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
from tfl_rewrite.flatbuf.record import INT32, UINT8, UINT16, Record, ScalarVector, Sink
from tfl_rewrite.kernels.table import DENSIFY, row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Buffer, Model, Operator, SubGraph, Tensor, new_record, schema
from tfl_rewrite.options.frozen import frozen

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
    numbers = None if held is None else held.get("values")
    if numbers is None:
        return np.zeros(0, np.int64)
    found: Coordinates = np.frombuffer(numbers.raw, f"<{numbers.scalar.code}").astype(np.int64)
    return found


def indices_nbytes(details: Record) -> int:
    """Returns the bytes of what says where the values of a sparse constant lie."""
    levels = details.get("dim_metadata") or ()
    vectors = [level.get(name) for level in levels for name in ("array_segments", "array_indices")]
    held = [None if item is None else item.get("values") for item in vectors]
    return sum(int(item.nbytes) for item in held if item is not None)


class DenseBlob:
    """The bytes of the dense constant that a sparse one stands for, made when they are looked at.

    Args:
        tensor: The sparse constant, of a sound form; what becomes of it later does not matter.
    """

    __slots__ = ("_data", "_tensor", "identity", "nbytes")

    def __init__(self, tensor: Tensor) -> None:
        blob = tensor.buffer.blob
        assert blob is not None
        self._tensor = Tensor(tensor.name, tensor.shape, tensor.dtype, Buffer(blob), rest=tensor.rest)
        self._data: memoryview | None = None
        self.nbytes = dtypes.BY_VALUE[tensor.dtype].nbytes(tensor.elements)
        self.identity: object = ("dense", blob.identity, tensor.shape)

    def view(self) -> memoryview:
        """Makes them, unless they are there."""
        data = self._data
        if data is None:
            values = dense(self._tensor)
            assert values is not None
            data = self._data = values.reshape(-1).data.cast("B")
        return data

    def write_to(self, sink: Sink, offset: int) -> None:
        """Writes them."""
        sink.write_at(self.view(), offset)
        self.release()

    def release(self, start: int = 0, nbytes: int | None = None) -> None:
        """Forgets them; they can be made again."""
        self._data = None


def is_sound(tensor: Tensor) -> bool:
    """Whether a sparse constant stands for a dense one that a buffer of its own holds."""
    return dense(tensor) is not None


def densify_of(tensor: Tensor, graph: Graph) -> Operator | None:
    """Returns the DENSIFY that alone reads a sparse constant; None where it cannot be done without."""
    readers = graph.uses_of(tensor)
    if len(readers) != 1 or row_of(readers[0].operator) is not DENSIFY:
        return None
    made = readers[0].operator.outputs[0] if readers[0].operator.outputs else None
    alike = made is not None and (made.dtype, made.shape) == (tensor.dtype, tensor.shape)
    if made is None or not alike or id(made) in graph.exposed or id(tensor) in graph.exposed:
        return None
    return readers[0].operator


def leave_out(editor: Editor, subgraph: SubGraph, tensor: Tensor, densify: Operator) -> Tensor:
    """Makes a constant of what a DENSIFY gives: it takes over the buffer, which holds dense bytes by then.

    Args:
        editor: Of the model; :meth:`Editor.finish` is left to the caller.
        subgraph: Of the tensors.
        tensor: The sparse constant, which goes.
        densify: Its only reader; goes.

    Returns:
        The constant.
    """
    made = densify.outputs[0]
    assert made is not None
    made.buffer, made.quantization = tensor.buffer, tensor.quantization
    editor.remove_operator(subgraph, densify, tensor)
    editor.removed()
    return made


@frozen(eq=False)
class SparseForm:
    """Where the values lie of a constant that stores only what is not zero, or whole blocks of it.

    Attributes:
        details: How what is stored lies in the constant.
        where: Positions of the stored values in the dense constant, in their order.
        width: Bytes of a value.
    """

    details: Record
    where: Coordinates
    width: int

    @property
    def data_nbytes(self) -> int:
        """Of the values."""
        return int(self.where.size) * self.width

    @property
    def nbytes(self) -> int:
        """Of the values and of what says where they lie."""
        return self.data_nbytes + indices_nbytes(self.details)

    def data(self, values: npt.NDArray[Any]) -> bytes:
        """Returns what is stored of a dense constant."""
        return values.reshape(-1)[self.where].tobytes()


def compressed_axis(stored: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Returns the axis along which a sparse constant says in the fewest bytes where its values lie.

    What is said of a row is where it begins, of each value its place in the row: a byte in rows of up to 256.

    Args:
        stored: Where the constant holds values, in its shape.

    Returns:
        The axis, and the bytes.
    """
    count = int(np.count_nonzero(stored))

    def nbytes(axis: int) -> int:
        length = int(stored.shape[axis])
        return count * _width(length - 1) + (int(stored.size) // length + 1) * _width(count)

    # The last one of equals, whose rows are in one piece.
    best = min(range(stored.ndim - 1, -1, -1), key=nbytes)
    return best, nbytes(best)


def sparse_form(values: npt.NDArray[Any], block: int = 1) -> SparseForm:
    """Returns the sparse form of a constant: one of its axes is compressed, for blocks the last one.

    Args:
        values: In the shape of the constant, of one axis or more, none of which is empty.
        block: So many neighbours along the last axis are stored where any of them is not zero; the axis is a
            whole number of blocks.
    """
    rank = values.ndim
    stored = values != 0
    axis = rank - 1 if block > 1 else compressed_axis(stored)[0]
    order = [*(each for each in range(rank) if each != axis), axis]
    rows = np.ascontiguousarray(stored.transpose(order)).reshape(-1, values.shape[axis] // block, block)
    held = rows.any(axis=2)
    segments = np.concatenate([[0], np.cumsum(held.sum(axis=1))])
    levels = [new_record("DimensionMetadata").replace(dense_size=values.shape[each]) for each in order[:-1]]
    compressed = new_record("DimensionMetadata").replace(format=_SPARSE_CSR)
    for name, numbers in (("array_segments", segments), ("array_indices", np.nonzero(held)[1])):
        kind, vector = _packed(numbers)
        compressed = compressed.replace(**{f"{name}_type": kind, name: vector})
    levels.append(compressed)
    blocks = []
    if block > 1:
        levels.append(new_record("DimensionMetadata").replace(dense_size=block))
        order.append(rank)
        blocks.append(axis)
    details = new_record("SparsityParameters").replace(
        traversal_order=ScalarVector.of(INT32, order),
        block_map=ScalarVector.of(INT32, blocks) if blocks else None,
        dim_metadata=levels,
    )
    flat = np.arange(values.size).reshape(values.shape).transpose(order[:rank]).reshape(rows.shape)
    return SparseForm(details, flat[held].reshape(-1), values.itemsize)


def _width(most: int) -> int:
    """Returns the bytes of the narrowest numbers that a sparse constant may have up to one."""
    return 1 if most < 1 << 8 else 2 if most < 1 << 16 else 4


_VECTORS = {1: ("Uint8Vector", UINT8), 2: ("Uint16Vector", UINT16), 4: ("Int32Vector", INT32)}


def _packed(numbers: npt.NDArray[np.integer]) -> tuple[int, Record]:
    """Returns a vector in the narrowest type that takes its numbers, and its member of the union."""
    name, kind = _VECTORS[_width(int(numbers.max(initial=0)))]
    number = schema().enums["SparseIndexVector"].values[name]
    raw = numbers.astype(f"<{kind.code}").tobytes()
    return number, new_record(name).replace(values=ScalarVector(kind, raw))


OVERHEAD_NBYTES = 400
"""Of the operator, the tensor and the tables of a sparse constant, with room: RNet's took about 200 each."""


def make_sparse(editor: Editor, subgraph: SubGraph, tensor: Tensor, form: SparseForm, buffer: Buffer) -> None:
    """Stores a constant sparse, and puts the DENSIFY before its readers that makes it dense again.

    Args:
        editor: Of the model; :meth:`Editor.finish` is left to the caller.
        subgraph: Of the tensor.
        tensor: The constant; keeps its name, and is computed from now on.
        form: Where its values lie.
        buffer: Holds what is stored.
    """
    compressed = editor.add_like(subgraph, tensor, tensor.dtype_name, tensor.quantization, suffix="sparse")
    compressed.signature = None
    compressed.rest = compressed.rest.replace(sparsity=form.details)
    compressed.buffer = buffer
    tensor.buffer = editor.sentinel()
    operator = editor.plain(DENSIFY, 1, [compressed], tensor)
    subgraph.operators.insert(editor.first_reader(subgraph, tensor), operator)
