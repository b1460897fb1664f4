"""Model to records: objects become indices again.

A field is written when its value is not the schema's default, or when the record that the object came from
had it. So a model that nobody changed lowers to records equal to those that it was lifted from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tfl_rewrite.errors import InvariantError
from tfl_rewrite.flatbuf.record import INT32, Record, ScalarVector
from tfl_rewrite.flatbuf.writer import FilePosition
from tfl_rewrite.model.ir import (
    Buffer,
    Model,
    Operator,
    OperatorCode,
    Quantization,
    Signature,
    SubGraph,
    Tensor,
    new_record,
    schema,
)
from tfl_rewrite.model.lift import BY_TABLE, Into


def lower(model: Model, *, outside_from: int | None = None) -> Record:
    """Builds the root record.

    Args:
        model: Not changed.
        outside_from: Place buffers of at least this many bytes after the FlatBuffer; None for none.

    Raises:
        InvariantError: An object refers to one that is not part of the model.
    """
    return _Lowerer(model, outside_from).root()


class _Lowerer:
    def __init__(self, model: Model, outside_from: int | None) -> None:
        self.model = model
        self.outside_from = outside_from
        self.buffers = _positions(model.adopt())
        self.subgraphs = _positions(model.subgraphs)
        self.codes = _positions(model.operator_codes)
        self.groups = _positions(model.external_groups)
        self.tensors: dict[int, int] = {}

    def root(self) -> Record:
        model, rest = self.model, self.model.rest
        metadata = [
            _with(item.rest, name=item.name, buffer=self._index(self.buffers, item.buffer, "metadata buffer"))
            for item in model.metadata
        ]
        old = [self._index(self.buffers, item, "metadata buffer") for item in model.metadata_buffers]
        external = [
            _with(
                item.rest,
                id=item.identifier,
                group=self._index(self.groups, item.group, "external group"),
                offset=item.offset,
                length=item.nbytes,
            )
            for item in model.external_buffers
        ]
        return _with(
            rest,
            version=model.version,
            operator_codes=_list(rest, "operator_codes", [_code(item) for item in model.operator_codes]),
            subgraphs=_list(rest, "subgraphs", [self._subgraph(item) for item in model.subgraphs]),
            description=model.description,
            buffers=_list(rest, "buffers", [self._buffer(item) for item in model.buffers]),
            metadata_buffer=_ints(rest, "metadata_buffer", old),
            metadata=_list(rest, "metadata", metadata),
            signature_defs=_list(
                rest, "signature_defs", [self._signature(item) for item in model.signatures]
            ),
            external_buffer_groups=_list(
                rest,
                "external_buffer_groups",
                [_with(item.rest, name=item.name) for item in model.external_groups],
            ),
            external_buffers=_list(rest, "external_buffers", external),
        )

    def _buffer(self, item: Buffer) -> Record:
        placement: dict[str, Any] = {"offset": None, "size": None} if item.outside else {}
        if item.blob is None:
            # An empty vector that was there stays there; bytes that were there are gone.
            data = item.rest.get("data")
            return item.rest.replace(data=data if data is not None and not len(data) else None, **placement)
        if self.outside_from is not None and item.nbytes >= self.outside_from:
            return item.rest.replace(data=None, offset=FilePosition(item.blob), size=item.nbytes)
        return item.rest.replace(data=item.blob, **placement)

    def _subgraph(self, item: SubGraph) -> Record:
        self.tensors = _positions(item.tensors)
        rest = item.rest
        return _with(
            rest,
            tensors=_list(rest, "tensors", [self._tensor(tensor) for tensor in item.tensors]),
            inputs=_ints(rest, "inputs", [self._tensor_index(tensor) for tensor in item.inputs]),
            outputs=_ints(rest, "outputs", [self._tensor_index(tensor) for tensor in item.outputs]),
            operators=_list(rest, "operators", [self._operator(operator) for operator in item.operators]),
            name=item.name,
        )

    def _tensor(self, item: Tensor) -> Record:
        buffer = 0
        if self.model.buffers:
            buffer = self._index(self.buffers, item.buffer, f"buffer of tensor {item.name!r}")
        return _with(
            item.rest,
            shape=_ints(item.rest, "shape", item.shape),
            type=item.dtype,
            buffer=buffer,
            name=item.name if item.name or "name" in item.rest else None,
            quantization=self._quantization(item.quantization),
            is_variable=item.is_variable,
            shape_signature=_ints(item.rest, "shape_signature", item.signature),
            external_buffer=item.external.identifier if item.external else 0,
        )

    def _quantization(self, item: Quantization | None) -> Record | None:
        if item is None:
            return None
        record = _with(
            item.rest, scale=item.scale, zero_point=item.zero_point, quantized_dimension=item.dimension
        )
        details = item.rest.get("details")
        if details is None or details.spec.name not in BY_TABLE:
            if item.scales_tensor is None and item.zero_points_tensor is None:
                return record
            details = new_record("BlockwiseQuantization")
            number = schema().enums["QuantizationDetails"].values["BlockwiseQuantization"]
            record = record.replace(details_type=number)
        return record.replace(
            details=_with(
                details,
                scales=self._tensor_index(item.scales_tensor),
                zero_points=self._tensor_index(item.zero_points_tensor),
            )
        )

    def _operator(self, item: Operator) -> Record:
        rest = item.rest
        record = _with(
            rest,
            opcode_index=self._index(self.codes, item.code, f"code of operator {item.code.name}"),
            inputs=_ints(rest, "inputs", [self._tensor_index(tensor) for tensor in item.inputs]),
            outputs=_ints(rest, "outputs", [self._tensor_index(tensor) for tensor in item.outputs]),
            intermediates=_ints(
                rest, "intermediates", [self._tensor_index(tensor) for tensor in item.intermediates]
            ),
            builtin_options=self._options(item.options),
            builtin_options_2=self._options(item.options2),
        )
        if item.large_custom is not None:
            record = record.replace(large_custom_options_offset=FilePosition(item.large_custom))
            record = _with(record, large_custom_options_size=item.large_custom.nbytes)
        elif rest.get("large_custom_options_offset") > 1:
            record = record.replace(large_custom_options_offset=None, large_custom_options_size=None)
        return record

    def _options(self, record: Record | None) -> Record | None:
        if record is None or record.spec.name not in BY_TABLE:
            return record
        changes: dict[str, Any] = {}
        for reference in BY_TABLE[record.spec.name]:
            value = record.values.get(reference.field)
            if reference.into is not Into.SUBGRAPH or value is None:
                continue
            if isinstance(value, list):
                indices = [self._index(self.subgraphs, item, "subgraph of an option") for item in value]
                changes[reference.field] = ScalarVector.of(INT32, indices)
            elif isinstance(value, SubGraph):
                changes[reference.field] = self._index(self.subgraphs, value, "subgraph of an option")
        return record.replace(**changes) if changes else record

    def _signature(self, item: Signature) -> Record:
        self.tensors = _positions(item.subgraph.tensors)

        def maps(name: str, rows: Iterable[tuple[Record, Tensor]]) -> list[Record] | None:
            return _list(
                item.rest,
                name,
                [_with(row, tensor_index=self._tensor_index(tensor)) for row, tensor in rows],
            )

        return _with(
            item.rest,
            inputs=maps("inputs", item.inputs),
            outputs=maps("outputs", item.outputs),
            signature_key=item.key,
            subgraph_index=self._index(self.subgraphs, item.subgraph, f"subgraph of signature {item.key!r}"),
        )

    def _tensor_index(self, tensor: Tensor | None) -> int:
        return -1 if tensor is None else self._index(self.tensors, tensor, f"tensor {tensor.name!r}")

    def _index(self, positions: dict[int, int], item: object, what: str) -> int:
        position = positions.get(id(item))
        if position is None:
            raise InvariantError(f"{what} is not part of the model")
        return position


def _positions(items: Sequence[object]) -> dict[int, int]:
    return {id(item): index for index, item in enumerate(items)}


def _code(item: OperatorCode) -> Record:
    rest = item.rest
    same = item.builtin == max(rest.get("deprecated_builtin_code"), rest.get("builtin_code"))
    if same and rest.offset >= 0 and item.version == rest.get("version"):
        return _with(rest, custom_code=item.custom, version=item.version)
    # What we make or change carries the code in both fields, for readers of either age. 127 is the mark
    # "look at the other field" (``schema_utils.cc``).
    return rest.replace(
        deprecated_builtin_code=min(item.builtin, 127),
        builtin_code=item.builtin,
        custom_code=item.custom,
        version=item.version,
    )


def _with(record: Record, **fields: Any) -> Record:
    """Sets fields by the rule of presence (see the module)."""
    by_name, values = record.spec.by_name, dict(record.values)
    for name, value in fields.items():
        default = by_name[name].default
        if value is None:
            values.pop(name, None)
        elif default is None or name in values or value != default:
            values[name] = value
    return Record(record.spec, values, unknown=record.unknown, offset=record.offset)


def _list(record: Record, name: str, items: list[Record]) -> list[Record] | None:
    return items if items or name in record else None


def _ints(record: Record, name: str, items: Sequence[int] | None) -> ScalarVector | None:
    if items is None or (not items and name not in record and name not in ("shape", "shape_signature")):
        return None
    return ScalarVector.of(INT32, items)
