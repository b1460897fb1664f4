"""Records to model: indices become objects, each checked against what it points into.

With every field of the schema that is an index, and into what, and the custom operators that refer to the
file: lifting turns these into objects and lowering turns them back, so that a pass which adds, drops or moves
something cannot leave a number pointing at the wrong thing. A test compares the rows with all integer fields
of the schema.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, TypeVar

from tfl_rewrite.errors import FormatError
from tfl_rewrite.flatbuf.record import Record, ScalarVector
from tfl_rewrite.model.blob import Blob, MappedBlob, Source
from tfl_rewrite.model.ir import (
    Buffer,
    ExternalBuffer,
    ExternalGroup,
    Metadata,
    Model,
    Operator,
    OperatorCode,
    Quantization,
    Signature,
    SubGraph,
    Tensor,
)
from tfl_rewrite.options.frozen import frozen


class Into(enum.Enum):
    """What a reference points into."""

    BUFFER = "Model.buffers"
    TENSOR = "SubGraph.tensors of the same subgraph"
    SIGNATURE_TENSOR = "SubGraph.tensors of the signature's subgraph"
    SUBGRAPH = "Model.subgraphs"
    OPERATOR_CODE = "Model.operator_codes"
    EXTERNAL_BUFFER = "Model.external_buffers, by id; 0 is none"
    EXTERNAL_GROUP = "Model.external_buffer_groups"
    FILE = "bytes of the file, from its start"
    DEBUG = "entries of the debug metadata buffer, which we carry unread"


@frozen
class Reference:
    """A field that refers to something.

    Attributes:
        absent: The value that stands for nothing, or None if there is no such value.
    """

    table: str
    field: str
    into: Into
    absent: int | None = None


REFERENCES: tuple[Reference, ...] = (
    Reference("Tensor", "buffer", Into.BUFFER),
    Reference("Tensor", "external_buffer", Into.EXTERNAL_BUFFER, 0),
    Reference("BlockwiseQuantization", "scales", Into.TENSOR, -1),
    Reference("BlockwiseQuantization", "zero_points", Into.TENSOR, -1),
    Reference("MultiAxisQuantization", "scales", Into.TENSOR, -1),
    Reference("MultiAxisQuantization", "zero_points", Into.TENSOR, -1),
    Reference("SubGraph", "inputs", Into.TENSOR),
    Reference("SubGraph", "outputs", Into.TENSOR),
    Reference("SubGraph", "debug_metadata_index", Into.DEBUG, -1),
    Reference("Operator", "opcode_index", Into.OPERATOR_CODE),
    Reference("Operator", "inputs", Into.TENSOR, -1),
    Reference("Operator", "outputs", Into.TENSOR, -1),
    Reference("Operator", "intermediates", Into.TENSOR, -1),
    Reference("Operator", "debug_metadata_index", Into.DEBUG, -1),
    Reference("Operator", "large_custom_options_offset", Into.FILE, 0),
    Reference("Buffer", "offset", Into.FILE, 0),
    Reference("Metadata", "buffer", Into.BUFFER),
    Reference("Model", "metadata_buffer", Into.BUFFER),
    Reference("TensorMap", "tensor_index", Into.SIGNATURE_TENSOR),
    Reference("SignatureDef", "subgraph_index", Into.SUBGRAPH),
    Reference("ExternalBuffer", "group", Into.EXTERNAL_GROUP),
    Reference("CallOptions", "subgraph", Into.SUBGRAPH),
    Reference("CallOnceOptions", "init_subgraph_index", Into.SUBGRAPH),
    Reference("IfOptions", "then_subgraph_index", Into.SUBGRAPH),
    Reference("IfOptions", "else_subgraph_index", Into.SUBGRAPH),
    Reference("WhileOptions", "cond_subgraph_index", Into.SUBGRAPH),
    Reference("WhileOptions", "body_subgraph_index", Into.SUBGRAPH),
    Reference("StableHLOCompositeOptions", "decomposition_subgraph_index", Into.SUBGRAPH, -1),
    Reference("StablehloReduceOptions", "body_subgraph_index", Into.SUBGRAPH),
    Reference("StablehloWhileOptions", "cond_subgraph_index", Into.SUBGRAPH),
    Reference("StablehloWhileOptions", "body_subgraph_index", Into.SUBGRAPH),
    Reference("StablehloSortOptions", "comparator_subgraph_index", Into.SUBGRAPH),
    Reference("StablehloReduceWindowOptions", "body_subgraph_index", Into.SUBGRAPH),
    Reference("StablehloScatterOptions", "update_computation_subgraph_index", Into.SUBGRAPH),
    Reference("StablehloCustomCallOptions", "called_computations", Into.SUBGRAPH),
    Reference("StablehloCaseOptions", "branch_subgraph_indices", Into.SUBGRAPH),
)
BY_TABLE: dict[str, tuple[Reference, ...]] = {
    table: tuple(row for row in REFERENCES if row.table == table)
    for table in {row.table for row in REFERENCES}
}

BUILT_IN_CUSTOM = (
    "NumericVerify",
    "Mfcc",
    "AudioSpectrogram",
    "TFLite_Detection_PostProcess",
    "aeq.hadamard_rotation",
)
"""Custom operators that the runtime registers itself (``tflite/core/kernels/register.cc``)."""
DELEGATE_CUSTOM = ("Convolution2DTransposeBias", "MaxPoolingWithArgmax2D", "MaxUnpooling2D")
"""Custom operators that only XNNPACK takes (``xnnpack_delegate.cc``)."""
KNOWN_CUSTOM = frozenset((*BUILT_IN_CUSTOM, *DELEGATE_CUSTOM, "edgetpu-custom-op"))
"""Custom operators whose options are known to hold no position in the file."""
DISPATCH = "DISPATCH_OP"
"""The custom operator that addresses compiled code by its position in the file (LiteRT, ``litert/core``)."""


T = TypeVar("T")

MAX_RANK = 64
"""Bound on dimensions, so that products of hostile shapes stay cheap; kernels take 8 at most."""

MAX_SHARED = 1 << 18
"""How many more parts than bytes a model may have: an operand or a dimension is one, a tensor or an operator
counts as four. In the file each reference takes four bytes, but tables that refer to shared tables multiply
without end. (FlatBuffers' verifier counts each visit of a table, for the same reason.)"""


def lift(root: Record, source: Source) -> Model:
    """Builds the model of a file's root record.

    Args:
        root: As read; shared, not changed.
        source: The file, for the bytes of buffers.

    Raises:
        FormatError: An index, offset or count points outside of what it refers to.
    """
    return _Lifter(root, source).model()


class _Lifter:
    def __init__(self, root: Record, source: Source) -> None:
        self.root = root
        self.source = source
        self.buffers: list[Buffer] = []
        self.subgraphs: list[SubGraph] = []
        self.codes: list[OperatorCode] = []
        self.external: dict[int, ExternalBuffer] = {}
        self.quantizations: dict[tuple[int, int], Quantization] = {}
        self.parts_left = len(source.data) + MAX_SHARED

    def spend(self, count: int, where: str, row: Record) -> None:
        """Counts parts before they are made."""
        self.parts_left -= count
        if self.parts_left < 0:
            raise FormatError(
                f"tables are shared so often that the model has over {MAX_SHARED} parts more than bytes",
                where=where,
                offset=row.offset,
            )

    def model(self) -> Model:
        root = self.root
        self.buffers = [self._buffer(row, index) for index, row in enumerate(root.get("buffers") or ())]
        self.codes = [_operator_code(row) for row in root.get("operator_codes") or ()]
        groups = [ExternalGroup(row.get("name"), row) for row in root.get("external_buffer_groups") or ()]
        external = [
            ExternalBuffer(
                row.get("id"),
                _at(groups, row.get("group"), f"external_buffers[{index}].group", row),
                row.get("offset"),
                row.get("length"),
                row,
            )
            for index, row in enumerate(root.get("external_buffers") or ())
        ]
        self.external = {item.identifier: item for item in external}
        rows = list(root.get("subgraphs") or ())
        # Operators refer to subgraphs that come later, so all shells exist before any is filled.
        self.subgraphs = [SubGraph([], [], [], [], row.get("name"), row) for row in rows]
        for index, (subgraph, row) in enumerate(zip(self.subgraphs, rows, strict=True)):
            self._fill(subgraph, row, f"subgraphs[{index}]")
        metadata = [
            Metadata(
                row.get("name"), _at(self.buffers, row.get("buffer"), f"metadata[{index}].buffer", row), row
            )
            for index, row in enumerate(root.get("metadata") or ())
        ]
        old = [
            _at(self.buffers, number, f"metadata_buffer[{index}]", root)
            for index, number in enumerate(root.get("metadata_buffer") or ())
        ]
        signatures = [
            self._signature(row, f"signature_defs[{index}]")
            for index, row in enumerate(root.get("signature_defs") or ())
        ]
        return Model(
            self.codes,
            self.subgraphs,
            self.buffers,
            metadata,
            old,
            signatures,
            groups,
            external,
            root.get("version"),
            root.get("description"),
            root,
        )

    def _buffer(self, row: Record, index: int) -> Buffer:
        data = row.get("data")
        offset, size = row.get("offset"), row.get("size")
        # Offsets 0 and 1 mean "not used": the runtime's own rule (``tflite/core/model_builder``).
        if offset > 1:
            if data is not None and len(data):
                # Runtimes read the vector; whoever meant the offset would see other weights than they do.
                raise FormatError(
                    f"its bytes lie in two places: {len(data)} in the buffer, {size} at file offset {offset}",
                    where=f"buffers[{index}]",
                    offset=row.offset,
                )
            blob = self._outside(offset, size, f"buffers[{index}]", row)
            return Buffer(blob, True, row)
        return Buffer(_mapped(self.source, data) if data is not None and len(data) else None, False, row)

    def _outside(self, offset: int, size: int, where: str, row: Record) -> Blob:
        total = len(self.source.data)
        if offset > total or size > total - offset:
            raise FormatError(
                f"{size} bytes at file offset {offset} reach past the end of the file ({total} bytes)",
                where=where,
                offset=row.offset,
                remedy="the file may be cut short",
            )
        return MappedBlob(self.source, offset, size)

    def _fill(self, subgraph: SubGraph, row: Record, where: str) -> None:
        rows = row.get("tensors") or []
        operators = row.get("operators") or []
        self.spend(4 * (len(rows) + len(operators)), where, row)
        subgraph.tensors = [self._tensor(item, f"{where}.tensors[{i}]") for i, item in enumerate(rows)]
        for index, (tensor, item) in enumerate(zip(subgraph.tensors, rows, strict=True)):
            place = f"{where}.tensors[{index}].quantization"
            tensor.quantization = self._quantization(item.get("quantization"), subgraph, place)
        subgraph.inputs = self._tensors(row.get("inputs"), subgraph, f"{where}.inputs", row)
        subgraph.outputs = self._tensors(row.get("outputs"), subgraph, f"{where}.outputs", row)
        subgraph.operators = [
            self._operator(item, subgraph, f"{where}.operators[{i}]") for i, item in enumerate(operators)
        ]

    def _tensor(self, row: Record, where: str) -> Tensor:
        shape = self._shape(row.get("shape"), f"{where}.shape", row)
        signature = self._shape(row.get("shape_signature"), f"{where}.shape_signature", row)
        identifier = row.get("external_buffer")
        external = None
        if identifier:
            external = self.external.get(identifier)
            if external is None:
                raise FormatError(
                    f"no external buffer has the id {identifier:#x}",
                    where=f"{where}.external_buffer",
                    offset=row.offset,
                )
        buffer = _at(self.buffers, row.get("buffer"), f"{where}.buffer", row) if self.buffers else Buffer()
        if not self.buffers and row.get("buffer"):
            raise FormatError("the model has no buffers", where=f"{where}.buffer", offset=row.offset)
        return Tensor(
            row.get("name") or "",
            shape,
            row.get("type"),
            buffer,
            None,
            row.get("is_variable"),
            signature,
            external,
            row,
        )

    def _quantization(self, row: Record | None, subgraph: SubGraph, where: str) -> Quantization | None:
        if row is None:
            return None
        # Two subgraphs may share the table, but its tensor indices mean something else in each.
        key = (id(row), id(subgraph))
        known = self.quantizations.get(key)
        if known is not None:
            return known
        scales = zero_points = None
        details = row.get("details")
        if details is not None and details.spec.name in BY_TABLE:
            scales = self._optional(details.get("scales"), subgraph, f"{where}.scales", details)
            zero_points = self._optional(
                details.get("zero_points"), subgraph, f"{where}.zero_points", details
            )
        result = Quantization(
            row.get("scale"), row.get("zero_point"), row.get("quantized_dimension"), scales, zero_points, row
        )
        self.quantizations[key] = result
        return result

    def _operator(self, row: Record, subgraph: SubGraph, where: str) -> Operator:
        large = None
        if row.get("large_custom_options_offset") > 1:
            large = self._outside(
                row.get("large_custom_options_offset"),
                row.get("large_custom_options_size"),
                f"{where}.large_custom_options",
                row,
            )
        return Operator(
            _at(self.codes, row.get("opcode_index"), f"{where}.opcode_index", row),
            self._optionals(row.get("inputs"), subgraph, f"{where}.inputs", row),
            self._optionals(row.get("outputs"), subgraph, f"{where}.outputs", row),
            self._optionals(row.get("intermediates"), subgraph, f"{where}.intermediates", row),
            self._options(row.get("builtin_options"), f"{where}.builtin_options"),
            self._options(row.get("builtin_options_2"), f"{where}.builtin_options_2"),
            large,
            row,
        )

    def _options(self, row: Record | None, where: str) -> Record | None:
        """Replaces the subgraph indices of an options table by the subgraphs."""
        if row is None or row.spec.name not in BY_TABLE:
            return row
        changes: dict[str, Any] = {}
        for reference in BY_TABLE[row.spec.name]:
            if reference.into is not Into.SUBGRAPH or reference.field not in row:
                continue
            value, place = row[reference.field], f"{where}.{reference.field}"
            if isinstance(value, ScalarVector):
                self.spend(len(value), place, row)
                changes[reference.field] = [_at(self.subgraphs, item, place, row) for item in value]
            elif value != reference.absent:
                changes[reference.field] = _at(self.subgraphs, value, place, row)
        return row.replace(**changes)

    def _signature(self, row: Record, where: str) -> Signature:
        subgraph = _at(self.subgraphs, row.get("subgraph_index"), f"{where}.subgraph_index", row)

        def maps(name: str) -> list[tuple[Record, Tensor]]:
            self.spend(len(row.get(name) or ()), f"{where}.{name}", row)
            return [
                (item, _at(subgraph.tensors, item.get("tensor_index"), f"{where}.{name}[{index}]", item))
                for index, item in enumerate(row.get(name) or ())
            ]

        return Signature(row.get("signature_key"), subgraph, maps("inputs"), maps("outputs"), row)

    def _tensors(
        self, indices: ScalarVector | None, subgraph: SubGraph, where: str, row: Record
    ) -> list[Tensor]:
        self.spend(len(indices or ()), where, row)
        return [_at(subgraph.tensors, i, f"{where}[{n}]", row) for n, i in enumerate(indices or ())]

    def _optionals(
        self, indices: ScalarVector | None, subgraph: SubGraph, where: str, row: Record
    ) -> list[Tensor | None]:
        self.spend(len(indices or ()), where, row)
        return [self._optional(i, subgraph, f"{where}[{n}]", row) for n, i in enumerate(indices or ())]

    def _optional(self, index: int, subgraph: SubGraph, where: str, row: Record) -> Tensor | None:
        return None if index == -1 else _at(subgraph.tensors, index, where, row)

    def _shape(self, vector: ScalarVector | None, where: str, row: Record) -> tuple[int, ...] | None:
        if vector is None:
            return None
        if len(vector) > MAX_RANK:
            raise FormatError(
                f"{len(vector)} dimensions, more than {MAX_RANK}", where=where, offset=row.offset
            )
        self.spend(len(vector), where, row)
        shape = tuple(vector.tolist())
        if any(size < -1 for size in shape):
            raise FormatError(f"negative dimension in {shape}", where=where, offset=row.offset)
        return shape


def _at(items: Sequence[T], index: int, where: str, row: Record) -> T:
    if not 0 <= index < len(items):
        raise FormatError(
            f"index {index} is out of range; there are {len(items)}", where=where, offset=row.offset
        )
    return items[index]


def _mapped(source: Source, data: ScalarVector) -> Blob:
    return MappedBlob(source, data.offset, data.nbytes)


def _operator_code(row: Record) -> OperatorCode:
    # Before schema 3a there was only the byte field; since then both are written and the larger one is
    # meant (``GetBuiltinCode`` of ``schema_utils.cc``).
    builtin = max(row.get("deprecated_builtin_code"), row.get("builtin_code"))
    return OperatorCode(builtin, row.get("custom_code"), row.get("version"), row)
