"""Where the bytes of a file are, and how the values of a constant differ: what a comparison counts."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any

import numpy as np

from tfl_rewrite.files.source import Source, origin_of
from tfl_rewrite.flatbuf.record import Record, ScalarVector
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import Blob
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.model.likeness import pieces, same_bytes

NAMES = "names of tensors"
QUANTIZATION = "scales and zero points"
RANGES = "min and max"
TENSORS = "tables of tensors"
OPERATORS = "tables of operators"
CUSTOM = "custom options"
SPARSITY = "sparsity"
OTHER = "other tables"
UNEXPLAINED = "unexplained bytes"
PADDING = "padding"

# Tables that are neither inherit from the table that refers to them, such as the options of operators.
_KINDS = {
    "Tensor": TENSORS,
    "QuantizationParameters": QUANTIZATION,
    "SparsityParameters": SPARSITY,
    "Operator": OPERATORS,
    "OperatorCode": OPERATORS,
    "Buffer": OTHER,
    "Metadata": OTHER,
    "SignatureDef": OTHER,
    "SubGraph": OTHER,
}
_FIELDS = {
    ("Tensor", "name"): NAMES,
    ("QuantizationParameters", "min"): RANGES,
    ("QuantizationParameters", "max"): RANGES,
    ("Operator", "custom_options"): CUSTOM,
    ("SubGraph", "tensors"): TENSORS,
    ("SubGraph", "operators"): OPERATORS,
}


def byte_accounts(model: Model) -> dict[str, int]:
    """Says where all bytes of the file are that a model was loaded from.

    Whatever several places of the file share counts once, for the first of them.

    Returns:
        Bytes by kind; they add up to the size of the file.
    """
    origin = origin_of(model)
    assert origin is not None
    column: Counter[str] = Counter()
    seen: set[object] = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            blob = tensor.buffer.blob
            if blob is not None and blob.nbytes and blob.identity not in seen:
                seen.add(blob.identity)
                column[f"{tensor.dtype_name} constants"] += blob.nbytes
    for buffer in model.buffers:
        if buffer.blob is not None and buffer.nbytes and buffer.blob.identity not in seen:
            seen.add(buffer.blob.identity)
            column["metadata and unused buffers"] += buffer.nbytes
    for operator in (operator for graph in model.subgraphs for operator in graph.operators):
        if operator.large_custom is not None and operator.large_custom.identity not in seen:
            seen.add(operator.large_custom.identity)
            column[CUSTOM] += operator.large_custom.nbytes
    column["ZIP"] = origin.tail.nbytes if origin.tail else 0
    column[UNEXPLAINED] = sum(stop - start for start, stop in origin.dead)
    _Tables(origin, column).add()
    column[PADDING] = origin.container.nbytes - column.total()
    return {name: nbytes for name, nbytes in column.items() if nbytes}


class _Tables:
    """Adds up tables, vectors and strings; all of them were checked when the file was read."""

    def __init__(self, origin: Source, column: Counter[str]) -> None:
        self._data = origin.container.data
        self._root = origin.root
        self._column = column
        self._seen: set[object] = set()

    def add(self) -> None:
        # The offset of the root table and the identifier.
        self._column[OTHER] += 8
        waiting: list[tuple[Record, str]] = [(self._root, OTHER)]
        while waiting:
            record, kind = waiting.pop()
            kind = _KINDS.get(record.spec.name, kind)
            if not self._first("table", record.offset):
                continue
            vtable = record.offset - struct.unpack_from("<i", self._data, record.offset)[0]
            length, nbytes = struct.unpack_from("<HH", self._data, vtable)
            self._column[kind] += nbytes
            if self._first("vtable", vtable):
                self._column[OTHER] += length
            for name, value in record.values.items():
                where = _FIELDS.get((record.spec.name, name), kind)
                inner = self._value(value, where, content=(record.spec.name, name) != ("Buffer", "data"))
                waiting += [(item, where) for item in reversed(inner)]

    def _value(self, value: Any, kind: str, *, content: bool) -> list[Record]:
        """Adds one field; returns the tables in it."""
        if isinstance(value, Record):
            return [value]
        if isinstance(value, ScalarVector):
            if self._first("vector", value.offset):
                self._column[kind] += 4 + (value.nbytes if content else 0)
        elif isinstance(value, str):
            if self._first("string", id(value)):
                self._column[kind] += 5 + len(value.encode("utf-8", "surrogateescape"))
        elif isinstance(value, list) and self._first("list", id(value)):
            self._column[kind] += 4 + 4 * len(value)
            for item in value:
                if isinstance(item, str):
                    self._value(item, kind, content=content)
            return [item for item in value if isinstance(item, Record)]
        return []

    def _first(self, what: str, place: int) -> bool:
        known = (what, place) in self._seen
        self._seen.add((what, place))
        return not known


def other_values(one: Tensor, two: Tensor) -> str | None:
    """Says how many values differ and by how much, in words; None where all bytes are equal.

    Args:
        one: A constant.
        two: Another of the same type.
    """
    left, right = one.buffer.blob, two.buffer.blob
    if left is None or right is None or not (left.nbytes or right.nbytes):
        return None
    if left.nbytes != right.nbytes:
        return "other values"
    if same_bytes(left, right):
        return None
    row = dtypes.BY_VALUE.get(one.dtype)
    size = np.dtype(row.numpy).itemsize if row is not None and row.numpy else 0
    if row is None or not size or left.nbytes % size or one.is_sparse or two.is_sparse:
        return "other values"
    count, largest = _compared(left, right, np.dtype(row.numpy))
    total = left.nbytes // size
    return f"{count:,} of {total:,} values differ, by up to {largest:.4g}"


def _compared(one: Blob, two: Blob, kind: np.dtype[np.generic]) -> tuple[int, float]:
    """Returns how many values differ in their bits, and the largest finite difference."""
    count, largest = 0, 0.0
    for left, right in zip(pieces(one), pieces(two), strict=True):
        bits = [np.frombuffer(piece, np.uint8).reshape(-1, kind.itemsize) for piece in (left, right)]
        differ = (bits[0] != bits[1]).any(axis=1)
        count += int(differ.sum())
        wide = np.complex128 if kind.kind == "c" else np.float64
        values = [np.frombuffer(piece, kind)[differ].astype(wide) for piece in (left, right)]
        with np.errstate(invalid="ignore", over="ignore"):
            distance = np.abs(values[0] - values[1])
        largest = max(largest, float(distance[np.isfinite(distance)].max(initial=0.0)))
    return count, largest
