"""What is in a file, where its bytes are, and how the values of two constants differ."""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from tfl_rewrite.editing.metadata import said_runtime
from tfl_rewrite.errors import check_number
from tfl_rewrite.files.source import ModelLike, Source, origin_of
from tfl_rewrite.flatbuf.record import Record, ScalarVector
from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.reads import late_releases, version_counts
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import Blob
from tfl_rewrite.model.ir import Buffer, Model, Tensor
from tfl_rewrite.model.likeness import equal_items, pieces, same_bytes
from tfl_rewrite.options.frozen import frozen
from tfl_rewrite.options.json_data import JsonData
from tfl_rewrite.reading.metadata import zip_members
from tfl_rewrite.work import current

_DUPLICATE_NBYTES = 64


@frozen
class Share:
    """Some bytes of the file and what they belong to."""

    name: str
    count: int
    nbytes: int


@frozen
class TensorRow:
    """One constant tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    readers: tuple[str, ...]
    subgraph: int


@frozen
class SignatureRow:
    """One entry point with the names of its arguments and results."""

    key: str
    subgraph: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@frozen
class Inspection(JsonData):
    """The contents of one file. All sizes are bytes.

    Attributes:
        opcode_age: Whether operators are named by the byte field only (before TensorFlow 2.4), by the
            newer field, or both.
        weights_by_operator: Constant bytes by the type of the operator that reads them first.
        duplicates: Bytes that equal another buffer of 64 bytes or more.
        unused: Bytes of buffers that no tensor or metadata refers to, and of tensors nothing reads.
        structure: The file less constants and ZIP: tables, names, padding.
        dead: Bytes that no offset reaches and that are not padding.
        min_runtime: The oldest TensorFlow release that lists all of its operator versions; None where no
            operator is listed.
        says_min_runtime: What the file's own metadata says of that.
        refusals: Why a rewrite of the file would be refused.
    """

    schema: ClassVar[int] = 1
    file: str
    nbytes: int
    description: str | None
    opcode_age: str
    subgraphs: int
    tensors: int
    operators: tuple[Share, ...]
    weights_by_operator: tuple[Share, ...]
    by_dtype: tuple[Share, ...]
    largest: tuple[TensorRow, ...]
    constants: int
    structure: int
    duplicates: int
    unused: int
    dead: int
    outside: int
    external: tuple[str, ...]
    metadata: tuple[Share, ...]
    zip_nbytes: int
    zip_members: tuple[str, ...]
    signatures: tuple[SignatureRow, ...]
    inputs: tuple[TensorRow, ...]
    outputs: tuple[TensorRow, ...]
    min_runtime: str | None
    says_min_runtime: str | None
    refusals: tuple[str, ...]

    def __repr__(self) -> str:
        operators = sum(row.count for row in self.operators)
        return (
            f"<Inspection: {self.nbytes:,} bytes, {self.subgraphs} subgraphs, {self.tensors} tensors, "
            f"{operators} operators, {self.constants:,} bytes of constants>"
        )


def inspect(model: ModelLike, *, largest: int = 20) -> Inspection:
    """Looks into a file.

    Args:
        model: A path, bytes, an open file or a model.
        largest: How many of the largest tensors to list.

    Raises:
        FormatError, FileAccessError, UnsupportedError: As for :func:`tfl_rewrite.files.source.load`.
        UsageError: ``largest`` is negative.

    Example:
        >>> found = tfl_rewrite.inspect("model.tflite")
        >>> found.nbytes, found.operators[0].name
        (102424, 'CONV_2D')
    """
    check_number("largest", largest, (0, 1 << 40))
    source = Source.of(model)
    return inspect_model(source.model(), source.path, largest=largest)


def inspect_model(model: Model, file: str, *, largest: int = 20) -> Inspection:
    """As :func:`inspect`, for a model that was loaded from ``file``."""
    origin = origin_of(model)
    assert origin is not None
    readers = _readers(model)
    homes = _homes(model)
    constants = _nbytes(model.buffers)
    rows = sorted(
        (_row(tensor, index, readers) for index, tensor in _constants(model)), key=lambda row: -row.nbytes
    )
    zip_nbytes = origin.tail.nbytes if origin.tail else 0
    dead = sum(stop - start for start, stop in origin.dead)
    return Inspection(
        file=file,
        nbytes=origin.container.nbytes,
        description=model.description,
        opcode_age=_opcode_age(model),
        subgraphs=len(model.subgraphs),
        tensors=sum(len(subgraph.tensors) for subgraph in model.subgraphs),
        operators=_operators(model),
        weights_by_operator=_shares(
            (readers[id(t)][0] if readers[id(t)] else "(unread)", b) for b, t in homes
        ),
        by_dtype=_shares((tensor.dtype_name, buffer) for buffer, tensor in homes),
        largest=tuple(rows[:largest]),
        constants=constants,
        structure=max(0, origin.container.nbytes - constants - zip_nbytes - dead),
        duplicates=_duplicates(model),
        unused=_unused(model, readers),
        dead=dead,
        outside=_nbytes(buffer for buffer in model.buffers if buffer.outside),
        external=tuple(group.name or "(unnamed)" for group in model.external_groups if group.name),
        metadata=tuple(Share(entry.name or "(unnamed)", 1, entry.buffer.nbytes) for entry in model.metadata),
        zip_nbytes=zip_nbytes,
        zip_members=_zip_members(origin),
        signatures=tuple(
            SignatureRow(
                item.key or "(unnamed)",
                next(i for i, sub in enumerate(model.subgraphs) if sub is item.subgraph),
                tuple(row.get("name") or "" for row, _ in item.inputs),
                tuple(row.get("name") or "" for row, _ in item.outputs),
            )
            for item in model.signatures
        ),
        inputs=tuple(_row(tensor, 0, readers) for tensor in model.subgraphs[0].inputs),
        outputs=tuple(_row(tensor, 0, readers) for tensor in model.subgraphs[0].outputs),
        min_runtime=runtimes.min_runtime_text(version_counts(model), late_releases(model)) or None,
        says_min_runtime=said_runtime(model),
        refusals=tuple(str(refusal) for refusal in origin.refusals),
    )


def _constants(model: Model) -> list[tuple[int, Tensor]]:
    return [
        (index, tensor)
        for index, subgraph in enumerate(model.subgraphs)
        for tensor in subgraph.tensors
        if tensor.is_constant
    ]


def _readers(model: Model) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for _, operator in model.operators():
        for tensor in operator.inputs:
            if tensor is not None and operator.code.name not in found[id(tensor)]:
                found[id(tensor)].append(operator.code.name)
    return found


def _nbytes(buffers: Iterable[Buffer]) -> int:
    """Adds up buffers; bytes of the file that several of them share count once."""
    return sum(
        {buffer.blob.identity: buffer.nbytes for buffer in buffers if buffer.blob is not None}.values()
    )


def _homes(model: Model) -> list[tuple[Buffer, Tensor]]:
    """Returns each range of constant bytes once, with the first tensor that refers to it."""
    first: dict[object, tuple[Buffer, Tensor]] = {}
    for _, tensor in _constants(model):
        if tensor.buffer.blob is not None and tensor.buffer.nbytes:
            first.setdefault(tensor.buffer.blob.identity, (tensor.buffer, tensor))
    return list(first.values())


def _shares(pairs: Any) -> tuple[Share, ...]:
    count: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for name, buffer in pairs:
        count[name] += 1
        nbytes[name] += buffer.nbytes
    return tuple(Share(name, count[name], size) for name, size in nbytes.most_common())


def _operators(model: Model) -> tuple[Share, ...]:
    count = Counter(operator.code.name for _, operator in model.operators())
    return tuple(Share(name, number, 0) for name, number in count.most_common())


def _row(tensor: Tensor, subgraph: int, readers: dict[int, list[str]]) -> TensorRow:
    nbytes = tensor.buffer.nbytes if tensor.external is None else tensor.external.nbytes
    shape = tensor.signature if tensor.signature is not None else tensor.shape
    return TensorRow(
        tensor.name, tensor.dtype_name, shape or (), nbytes, tuple(readers.get(id(tensor), ())), subgraph
    )


def _opcode_age(model: Model) -> str:
    old = sum("builtin_code" not in code.rest and code.builtin != 0 for code in model.operator_codes)
    if old == 0:
        return "current"
    return "before TensorFlow 2.4" if old >= sum(c.builtin != 0 for c in model.operator_codes) else "mixed"


def _duplicates(model: Model) -> int:
    ranges: dict[object, Blob] = {}
    for buffer in model.buffers:
        if buffer.blob is not None and buffer.nbytes >= _DUPLICATE_NBYTES:
            ranges.setdefault(buffer.blob.identity, buffer.blob)
    blobs = list(ranges.values())
    stage = current().stage("looking for duplicates", sum(blob.nbytes for blob in blobs))
    return sum(again.nbytes for _, again in equal_items(blobs, lambda blob: blob, stage.tick))


def _unused(model: Model, readers: dict[int, list[str]]) -> int:
    used = model.pinned
    for subgraph in model.subgraphs:
        exposed = {id(tensor) for tensor in [*subgraph.inputs, *subgraph.outputs]}
        for tensor in subgraph.tensors:
            details = tensor.quantization
            if details is not None:
                exposed |= {id(item) for item in (details.scales_tensor, details.zero_points_tensor) if item}
        for tensor in subgraph.tensors:
            if id(tensor) in exposed or readers.get(id(tensor)) or tensor.is_variable:
                used.add(id(tensor.buffer))
    used_bytes = _nbytes(buffer for buffer in model.buffers if id(buffer) in used)
    return _nbytes(model.buffers) - used_bytes


def _zip_members(origin: Source) -> tuple[str, ...]:
    if origin.tail is None:
        return ()
    try:
        return tuple(item.filename for item in zip_members(origin.tail.moved(0)))
    except ValueError:
        return ("(unreadable)",)


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
    for _, tensor in model.tensors():
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
        with np.errstate(invalid="ignore", over="ignore"):
            values = [np.frombuffer(piece, kind)[differ].astype(wide) for piece in (left, right)]
            distance = np.abs(values[0] - values[1])
        largest = max(largest, float(distance[np.isfinite(distance)].max(initial=0.0)))
    return count, largest
