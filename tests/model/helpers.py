"""Lowered records as data that can be compared: blobs as their bytes, indices shifted as a test wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tfl_rewrite.flatbuf.record import UINT8, Kind, Record, ScalarVector
from tfl_rewrite.flatbuf.writer import FilePosition, plan
from tfl_rewrite.model.blob import MemorySink
from tfl_rewrite.model.ir import Model, schema
from tfl_rewrite.model.lift import BY_TABLE, Into
from tfl_rewrite.model.lower import lower

Shift = Mapping[Into, Callable[[int], int]]


def plain(record: Record, shift: Shift | None = None) -> Record:
    """A copy: blobs as vectors, references shifted; an absent reference counts as its default."""
    values: dict[str, Any] = {name: _plain(value, shift) for name, value in record.values.items()}
    for reference in BY_TABLE.get(record.spec.name, ()):
        change = (shift or {}).get(reference.into)
        field = record.spec.by_name[reference.field]
        value = values.get(reference.field, field.default)
        if change is None or value is None:
            continue
        if field.kind is Kind.SCALAR:
            moved = value if value == reference.absent else change(value)
            if moved != value:
                values[reference.field] = moved
        else:
            assert field.scalar is not None
            moved = [item if item == reference.absent else change(item) for item in value]
            values[reference.field] = ScalarVector.of(field.scalar, moved)
    return Record(record.spec, values)


def _plain(value: Any, shift: Shift | None) -> Any:
    if isinstance(value, Record):
        return plain(value, shift)
    if isinstance(value, list):
        return [_plain(item, shift) for item in value]
    if isinstance(value, FilePosition):
        return bytes(value.blob.view())  # type: ignore[attr-defined]
    if hasattr(value, "view"):
        return ScalarVector(UINT8, bytes(value.view()))
    return value


def essential(record: Record) -> Record:
    """A copy without numbers that equal their default: what was written once stays written."""
    values: dict[str, Any] = {}
    for name, value in record.values.items():
        field = record.spec.by_name[name]
        if field.kind is Kind.SCALAR and value == field.default:
            continue
        if isinstance(value, list):
            value = [essential(item) if isinstance(item, Record) else item for item in value]
        values[name] = essential(value) if isinstance(value, Record) else value
    return Record(record.spec, values)


def lowered(model: Model) -> Record:
    """The records of a model with the bytes of its buffers."""
    return plain(lower(model))


def written(root: Record) -> bytes:
    """The file of a root record."""
    made = plan(root, schema())
    sink = MemorySink(made.nbytes)
    made.write_to(sink)
    return bytes(sink.data)
