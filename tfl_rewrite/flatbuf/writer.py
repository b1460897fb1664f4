"""Records to bytes: plan every offset first, then pour the blobs.

``flatbuffers.Builder`` lays out the tables. A blob (a long vector of bytes, or one whose alignment the
schema demands) is left out there: its slot holds a placeholder, the blob is placed after the Builder's
bytes at its alignment, and the slot is patched. Offsets point forward, so the result is a legal FlatBuffer,
and blobs go from file to file in pieces. A :class:`FilePosition` in a number's place stands for a blob
outside of the FlatBuffer, addressed from the start of the file.

Equal strings, vectors and tables are stored once. Same records, same bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from flatbuffers.builder import Builder

from tfl_rewrite.errors import InvariantError, UnsupportedError
from tfl_rewrite.flatbuf.record import Pourable, Record, ScalarVector, Sink
from tfl_rewrite.flatbuf.schema import FieldSpec, Kind, Schema

MAX_NBYTES = (1 << 31) - 1
"""What 32-bit FlatBuffer offsets reach (``FLATBUFFERS_MAX_BUFFER_SIZE``)."""

_BLOB_NBYTES = 1024
_BLOB_ALIGN = 16


@dataclass(frozen=True, slots=True)
class FilePosition:
    """Stands in a 64-bit field for the file-absolute offset of a blob that lies after the FlatBuffer."""

    blob: Pourable
    align: int = _BLOB_ALIGN


@dataclass(frozen=True, slots=True)
class Plan:
    """Where every byte of a FlatBuffer file goes.

    Attributes:
        head: All bytes but the blobs; gaps between blobs are zero.
        pours: ``(offset, blob)`` by ascending offset; inside the FlatBuffer, then outside.
        flatbuffer_nbytes: Size of the FlatBuffer with its inline blobs.
        nbytes: Size with the blobs after it.
    """

    head: bytes
    pours: list[tuple[int, Pourable]]
    flatbuffer_nbytes: int
    nbytes: int

    def pour(self, sink: Sink) -> None:
        """Writes everything, one blob after the other."""
        sink.write_at(self.head, 0)
        for offset, blob in self.pours:
            blob.pour(sink, offset)


def plan(root: Record, schema: Schema, *, align: int = _BLOB_ALIGN) -> Plan:
    """Decides where each byte goes.

    Args:
        root: The root table. Its vectors of numbers may be any :class:`Pourable`.
        schema: Gives the file identifier.
        align: Least alignment of blobs, in bytes; a power of two.

    Raises:
        UnsupportedError: A record has fields that the schema does not know, or the FlatBuffer would pass
            2 GiB (the caller places blobs outside then).
    """
    return _Planner(schema, align).plan(root)


class _Planner:
    def __init__(self, schema: Schema, align: int) -> None:
        self.schema = schema
        self.align = align
        self.builder = Builder(1 << 16)
        self.strings: dict[str, int] = {}
        self.vectors: dict[object, int] = {}
        self.tables: dict[object, int] = {}
        self.by_record: dict[int, int] = {}
        # Slots to patch, as distances from the end of the Builder's bytes, with what they refer to.
        self.inline_slots: list[tuple[int, object]] = []
        self.outside_slots: list[tuple[int, object]] = []
        self.inline: dict[object, tuple[Pourable, int]] = {}
        self.outside: dict[object, tuple[Pourable, int]] = {}

    def plan(self, root: Record) -> Plan:
        root_offset = self.table(root, 0)
        self.builder.Finish(root_offset, self.schema.identifier or None)
        head = bytearray(self.builder.Output())
        tables_nbytes = len(head)
        pours: list[tuple[int, Pourable]] = []
        placed: dict[object, int] = {}
        end = tables_nbytes
        for key, (blob, align) in self.inline.items():
            start = _aligned(end + 4, align)
            placed[key] = start - 4
            pours.append((start - 4, _CountedBlob(blob)))
            end = start + blob.nbytes
        if end > MAX_NBYTES:
            raise UnsupportedError(f"the FlatBuffer would take {end} bytes, more than its offsets reach")
        for distance, key in self.inline_slots:
            position = tables_nbytes - distance
            struct.pack_into("<I", head, position, placed[key] - position)
        flatbuffer_nbytes = end
        for key, (blob, align) in self.outside.items():
            end = _aligned(end, align)
            placed[key] = end
            pours.append((end, blob))
            end += blob.nbytes
        for distance, key in self.outside_slots:
            struct.pack_into("<Q", head, tables_nbytes - distance, placed[key])
        return Plan(bytes(head), pours, flatbuffer_nbytes, end)

    def table(self, record: Record, depth: int) -> int:
        known = self.by_record.get(id(record))
        if known is not None:
            return known
        if record.unknown:
            raise UnsupportedError(
                f"{record.spec.name} has {record.unknown[0]}, which is newer than this program's schema",
                offset=record.offset,
                remedy="use a newer tfl-rewrite",
            )
        if depth > 64:
            raise InvariantError(f"tables nest too deep at {record.spec.name}")
        children: list[tuple[FieldSpec, Any, object]] = []
        # By slot, whatever the order in which a pass set the fields, so that a file read back lays out alike.
        for field in sorted((record.spec.by_name[name] for name in record.values), key=_slot):
            child, token = self._child(field, record.values[field.name], depth)
            children.append((field, child, token))
        key = (record.spec.name, tuple((field.slot, token) for field, _, token in children))
        offset = self.tables.get(key)
        if offset is None:
            offset = self._emit(record, children)
            self.tables[key] = offset
        self.by_record[id(record)] = offset
        return offset

    def _child(self, field: FieldSpec, value: Any, depth: int) -> tuple[Any, object]:
        """Writes what a field refers to; returns what goes into the slot and a token for equality."""
        kind = field.kind
        if kind is Kind.SCALAR:
            if isinstance(value, FilePosition):
                key = value.blob.identity
                self.outside.setdefault(key, (value.blob, max(value.align, self.align)))
                return value, ("outside", key)
            assert field.scalar is not None
            raw = struct.pack("<" + field.scalar.code, value)
            return raw, raw
        if kind is Kind.STRING:
            offset = self._string(value)
        elif kind in (Kind.TABLE, Kind.UNION):
            offset = self.table(value, depth + 1)
        elif kind is Kind.STRINGS:
            offset = self._offsets([self._string(item) for item in value])
        elif kind is Kind.TABLES:
            offset = self._offsets([self.table(item, depth + 1) for item in value])
        elif _is_blob(field, value):
            key = (value.identity, field.align)
            self.inline.setdefault(key, (value, max(field.align, self.align)))
            return _Blob(key), ("blob", key)
        else:
            offset = self._scalars(field, value)
        return offset, offset

    def _string(self, text: str) -> int:
        offset = self.strings.get(text)
        if offset is None:
            offset = self.builder.CreateString(text.encode("utf-8", "surrogateescape"))
            self.strings[text] = offset
        return offset

    def _scalars(self, field: FieldSpec, value: ScalarVector) -> int:
        assert field.scalar is not None
        raw = bytes(value.raw)
        align = max(field.align, field.scalar.nbytes)
        key = (raw, field.scalar.nbytes, align)
        offset = self.vectors.get(key)
        if offset is None:
            builder = self.builder
            builder.StartVector(field.scalar.nbytes, len(raw) // field.scalar.nbytes, align)
            head = builder.head - len(raw)
            builder.head = head
            builder.Bytes[head : head + len(raw)] = raw
            offset = builder.EndVector()
            self.vectors[key] = offset
        return offset

    def _offsets(self, items: list[int]) -> int:
        key = ("offsets", tuple(items))
        offset = self.vectors.get(key)
        if offset is None:
            self.builder.StartVector(4, len(items), 4)
            for item in reversed(items):
                self.builder.PrependUOffsetTRelative(item)
            offset = self.builder.EndVector()
            self.vectors[key] = offset
        return offset

    def _emit(self, record: Record, children: list[tuple[FieldSpec, Any, object]]) -> int:
        builder = self.builder
        builder.StartObject(children[-1][0].slot + 1 if children else 0)
        # Wide fields first, so that little is lost to padding.
        for field, child, _ in sorted(children, key=lambda item: (-_width(item[0]), item[0].slot)):
            if isinstance(child, _Blob):
                builder.PrependUint32(0)
                self.inline_slots.append((builder.Offset(), child.key))
            elif isinstance(child, FilePosition):
                builder.PrependUint64(0)
                self.outside_slots.append((builder.Offset(), child.blob.identity))
            elif isinstance(child, bytes):
                builder.Prep(len(child), 0)
                builder.head -= len(child)
                builder.Bytes[builder.head : builder.head + len(child)] = child
            else:
                builder.PrependUOffsetTRelative(child)
            builder.Slot(field.slot)
        return int(builder.EndObject())


@dataclass(frozen=True, slots=True)
class _Blob:
    key: object


@dataclass(frozen=True, slots=True)
class _CountedBlob:
    """A vector in the file: its 32-bit element count, then its bytes."""

    blob: Pourable

    @property
    def nbytes(self) -> int:
        return 4 + self.blob.nbytes

    @property
    def identity(self) -> object:
        return ("counted", self.blob.identity)

    def pour(self, sink: Sink, offset: int) -> None:
        sink.write_at(struct.pack("<I", self.blob.nbytes), offset)
        self.blob.pour(sink, offset + 4)


def _is_blob(field: FieldSpec, value: Any) -> bool:
    if not isinstance(value, ScalarVector):
        return True
    if field.scalar is None or field.scalar.nbytes != 1 or not value.nbytes:
        return False
    return bool(field.align) or value.nbytes >= _BLOB_NBYTES


def _slot(field: FieldSpec) -> int:
    return field.slot


def _width(field: FieldSpec) -> int:
    return field.scalar.nbytes if field.kind is Kind.SCALAR and field.scalar else 4


def _aligned(offset: int, align: int) -> int:
    return -(-offset // align) * align
