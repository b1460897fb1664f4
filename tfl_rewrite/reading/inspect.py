"""What is in a file and where its bytes are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from tfl_rewrite.editing.metadata import said_runtime
from tfl_rewrite.errors import check_number
from tfl_rewrite.files.source import ModelLike, Source, origin_of
from tfl_rewrite.kernels import runtimes
from tfl_rewrite.kernels.reads import version_counts
from tfl_rewrite.model.blob import Blob
from tfl_rewrite.model.ir import Buffer, Model, Tensor
from tfl_rewrite.model.likeness import equal_items
from tfl_rewrite.options.json_data import JsonData
from tfl_rewrite.reading.metadata import zip_members
from tfl_rewrite.work import current

_DUPLICATE_NBYTES = 64


@dataclass(frozen=True, slots=True)
class Share:
    """Some bytes of the file and what they belong to."""

    name: str
    count: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One constant tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    readers: tuple[str, ...]
    subgraph: int


@dataclass(frozen=True, slots=True)
class SignatureRow:
    """One entry point with the names of its arguments and results."""

    key: str
    subgraph: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
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

    Example:
        >>> found = tfl_rewrite.inspect("model.tflite")
        >>> [(row.name, row.dtype, row.shape) for row in found.outputs]
        [('StatefulPartitionedCall_1:0', 'FLOAT32', (1, 10))]
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
        FormatError, FileAccessError, UnsupportedError: As for :func:`tfl_rewrite.files.store.load`.
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
        min_runtime=runtimes.min_runtime_text(version_counts(model)) or None,
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
