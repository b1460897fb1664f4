"""Records to bytes: plan every offset first, then write the blobs.

:mod:`tfl_rewrite.flatbuf.builder` lays out the tables. A blob (a long vector of bytes, or one whose alignment
the schema demands) is left out there: its slot holds zero, the blob is placed after the tables at its
alignment, and the slot is patched. Offsets point forward, so the result is a legal FlatBuffer, and blobs go
from file to file in pieces. A :class:`FilePosition` in a number's place stands for a blob outside of the
FlatBuffer, addressed from the start of the file.

Equal strings, vectors and tables are stored once. Same records, same bytes.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import Any

from tfl_rewrite.errors import InvariantError, UnsupportedError
from tfl_rewrite.flatbuf.builder import Builder, Placed
from tfl_rewrite.flatbuf.reader import MAX_DEPTH
from tfl_rewrite.flatbuf.record import (
    UINT8,
    FieldSpec,
    Kind,
    Record,
    ScalarVector,
    Schema,
    Sink,
    Writable,
    packed,
)
from tfl_rewrite.options.frozen import frozen

MAX_NBYTES = (1 << 31) - 1
"""What 32-bit FlatBuffer offsets reach (``FLATBUFFERS_MAX_BUFFER_SIZE``)."""

_BLOB_NBYTES = 1024
_BLOB_ALIGN = 16
_LEAST_LEAF = 5
"""Bytes of what fills a gap: its count, and something."""


@frozen
class FilePosition:
    """Stands in a 64-bit field for the file-absolute offset of a blob that lies after the FlatBuffer."""

    blob: Writable
    align: int = _BLOB_ALIGN


@frozen
class Packing:
    """How a file is to be laid out when its content alone does not settle it.

    Attributes:
        page: Blobs of at least this many bytes start on a multiple of it, counted from the start of the file;
            a power of two. At 16, the least that the schema allows, every blob does.
        defaults: Whether numbers that equal the schema's default are written where a record has them. No
            reader can tell: an absent number reads as its default.
    """

    page: int = 16
    defaults: bool = False


@frozen
class Plan:
    """Where every byte of a FlatBuffer file goes.

    Attributes:
        head: All bytes but the blobs; gaps between blobs are zero.
        writes: ``(offset, blob)`` by ascending offset; inside the FlatBuffer, then outside.
        flatbuffer_nbytes: Size of the FlatBuffer with its inline blobs.
        nbytes: Size with the blobs after it.
    """

    head: bytes
    writes: list[tuple[int, Writable]]
    flatbuffer_nbytes: int
    nbytes: int

    def blobs(self) -> Iterator[tuple[int, Writable]]:
        """Yields where the bytes of each blob start, and the blob; without the count before them."""
        for offset, blob in self.writes:
            yield (offset + 4, blob.blob) if isinstance(blob, _CountedBlob) else (offset, blob)

    def write_to(self, sink: Sink) -> None:
        """Writes everything, one blob after the other."""
        sink.write_at(self.head, 0)
        for offset, blob in self.writes:
            blob.write_to(sink, offset)


def plan(root: Record, schema: Schema, *, align: int = _BLOB_ALIGN, packing: Packing | None = None) -> Plan:
    """Decides where each byte goes.

    Args:
        root: The root table. Its vectors of numbers may be any :class:`Writable`.
        schema: Gives the file identifier.
        align: Least alignment of blobs, in bytes; a power of two.
        packing: Further wishes, and the smaller one of two layouts: strings and vectors between the tables,
            or after them, where small ones fill the gaps that the alignment of blobs leaves. Without it, what
            the records have is written, between the tables.

    Raises:
        UnsupportedError: A record has fields that the schema does not know, or the FlatBuffer would pass
            2 GiB (the caller places blobs outside then).
    """
    if packing is None:
        return _Planner(schema, align, Packing(page=0, defaults=True)).plan(root)
    plans = [_Planner(schema, align, packing, leaves_apart=apart).plan(root) for apart in (True, False)]
    return min(plans, key=lambda made: made.nbytes)


class _Planner:
    def __init__(self, schema: Schema, align: int, packing: Packing, *, leaves_apart: bool = False) -> None:
        self.schema = schema
        self.align = align
        self.packing = packing
        self.leaves_apart = leaves_apart
        self.builder = Builder()
        self.tables: dict[object, int] = {}
        self.by_record: dict[int, int] = {}
        # Of tables that have the same fields: name, slot, width and default of each.
        self.rows: dict[object, list[tuple[str, int, int, bytes | None, FieldSpec]]] = {}
        self.inline: dict[object, tuple[Writable, int]] = {}
        self.outside: dict[object, tuple[Writable, int]] = {}
        self.leaves: dict[object, _Leaf] = {}
        self.fillers: list[tuple[object, _Leaf]] = []

    def plan(self, root: Record) -> Plan:
        head = self.builder.finish(self.table(root, 0), self.schema.identifier)
        tables_nbytes = len(head)
        writes: list[tuple[int, Writable]] = []
        placed: dict[object, int] = {}
        self._place_leaves(head, placed)
        end = len(head)
        for key, start, blob in self._places(self.inline, end, 4):
            writes += self._filled(end, start - 4, placed)
            placed[key] = start - 4
            writes.append((start - 4, _CountedBlob(blob)))
            end = start + blob.nbytes
        for write in self._filled(end, sys.maxsize, placed):
            writes.append(write)
            end = write[0] + write[1].nbytes
        if end > MAX_NBYTES:
            raise UnsupportedError(f"the FlatBuffer would take {end} bytes, more than its offsets reach")
        for distance, value in self.builder.unset:
            position = tables_nbytes - distance
            if isinstance(value, _Blob):
                struct.pack_into("<I", head, position, placed[value.key] - position)
        flatbuffer_nbytes = end
        for key, start, blob in self._places(self.outside, end, 0):
            placed[key] = start
            writes.append((start, blob))
            end = start + blob.nbytes
        for distance, value in self.builder.unset:
            if isinstance(value, FilePosition):
                struct.pack_into("<Q", head, tables_nbytes - distance, placed[value.blob.identity])
        return Plan(bytes(head), writes, flatbuffer_nbytes, end)

    def _place_leaves(self, head: bytearray, placed: dict[object, int]) -> None:
        """Puts strings and vectors of numbers after the tables, but for small ones that gaps will take."""
        gaps = [-(4 + blob.nbytes) % align for blob, align in self.inline.values()]
        rooms = {12: sum(gap >= 12 for gap in gaps), 8: sum(gap >= 8 for gap in gaps)}
        order = sorted(self.leaves.items(), key=lambda item: (-item[1].align, -len(item[1].data)))
        for key, leaf in order:
            size = _aligned(len(leaf.data), 4)
            if leaf.align == 4 and rooms.get(size, 0) > 0:
                self.fillers.append((key, leaf))
                # What takes 12 bytes is in the way of what takes 8 there.
                rooms = {room: count - 1 if room <= size else count for room, count in rooms.items()}
                continue
            start = _aligned(len(head) + 4, leaf.align) - 4
            head += bytes(start - len(head)) + leaf.data
            placed[key] = start

    def _filled(self, end: int, stop: int, placed: dict[object, int]) -> list[tuple[int, Writable]]:
        """Fills a gap between blobs with the largest leaves that fit."""
        writes: list[tuple[int, Writable]] = []
        waiting = []
        start = _aligned(end, 4)
        if stop - start < _LEAST_LEAF:
            return writes
        for key, leaf in self.fillers:
            if start + len(leaf.data) <= stop:
                writes.append((start, ScalarVector(UINT8, leaf.data)))
                placed[key] = start
                start = _aligned(start + len(leaf.data), 4)
            else:
                waiting.append((key, leaf))
        self.fillers = waiting
        return writes

    def _places(
        self, blobs: dict[object, tuple[Writable, int]], end: int, before: int
    ) -> Iterator[tuple[object, int, Writable]]:
        """Yields key, start and blob in ascending order; ``before`` is what each needs in front of it.

        Blobs that start on a page leave gaps, which the small ones fill.
        """
        page = self.packing.page
        paged: list[tuple[object, Writable, int]] = []
        small: list[tuple[object, Writable, int]] = []
        for key, (blob, align) in blobs.items():
            row = (key, blob, align)
            (paged if align < page <= blob.nbytes else small).append(row)
        for key, blob, _ in paged:
            start = _aligned(end + before, page)
            waiting: list[tuple[object, Writable, int]] = []
            for row in small:
                first = _aligned(end + before, row[2])
                if first + row[1].nbytes + before <= start:
                    yield row[0], first, row[1]
                    end = first + row[1].nbytes
                else:
                    waiting.append(row)
            small = waiting
            yield key, start, blob
            end = start + blob.nbytes
        for key, blob, align in small:
            start = _aligned(end + before, align)
            yield key, start, blob
            end = start + blob.nbytes

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
        if depth >= MAX_DEPTH:
            raise InvariantError(f"tables nest too deep at {record.spec.name}")
        children: list[Placed] = []
        tokens: list[object] = [record.spec.name]
        names = (record.spec.name, *record.values)
        rows = self.rows.get(names)
        if rows is None:
            # By slot, whatever the order in which a pass set them, so that a file read back lays out alike.
            fields = sorted(map(record.spec.by_name.__getitem__, record.values), key=_slot)
            rows = self.rows[names] = [(field.name, field.slot, *_number(field), field) for field in fields]
        child: object
        token: object
        for name, slot, width, default, field in rows:
            value = record.values[name]
            if default is None:
                child, token = self._child(field, value, depth)
            elif isinstance(value, FilePosition):
                child, token = value, ("outside", value.blob.identity)
                self.outside.setdefault(token[1], (value.blob, max(value.align, self.align)))
            else:
                assert field.scalar is not None
                child = token = packed(field.scalar, value)
                # By bits, since -0.0 equals 0.0.
                if child == default and not self.packing.defaults:
                    continue
            children.append((-width, slot, child))
            tokens += (slot, token)
        key = tuple(tokens)
        offset = self.tables.get(key)
        if offset is None:
            offset = self.tables[key] = self.builder.table(children)
        self.by_record[id(record)] = offset
        return offset

    def _child(self, field: FieldSpec, value: Any, depth: int) -> tuple[object, object]:
        """Writes what a field refers to; returns what goes into the slot and a token for equality."""
        kind = field.kind
        if self.leaves_apart and kind is Kind.STRING:
            raw = value.encode("utf-8", "surrogateescape")
            leaf = self._leaf(len(raw), raw + b"\0", 4)
            return leaf, leaf.key
        if kind is Kind.STRING:
            offset = self.builder.string(value)
        elif kind in (Kind.TABLE, Kind.UNION):
            offset = self.table(value, depth + 1)
        elif kind is Kind.STRINGS:
            offset = self.builder.offsets([self.builder.string(item) for item in value])
        elif kind is Kind.TABLES:
            offset = self.builder.offsets([self.table(item, depth + 1) for item in value])
        elif _is_blob(field, value):
            key = (value.identity, field.align)
            self.inline.setdefault(key, (value, max(field.align, self.align)))
            return _Blob(key), ("blob", key)
        else:
            assert field.scalar is not None
            raw, align = bytes(value.raw), max(field.align, field.scalar.nbytes, 4)
            if self.leaves_apart:
                leaf = self._leaf(len(value), raw, align)
                return leaf, leaf.key
            offset = self.builder.scalars(field.scalar, raw, align)
        return offset, offset

    def _leaf(self, count: int, raw: bytes, align: int) -> _Blob:
        """Keeps a string or vector back, to be placed after the tables."""
        key = ("leaf", count, raw, align)
        self.leaves.setdefault(key, _Leaf(struct.pack("<I", count) + raw, align))
        return _Blob(key)


@frozen
class _Blob:
    key: object


@frozen
class _Leaf:
    """A string or vector with its count; ``align`` is that of what follows the count."""

    data: bytes
    align: int


@frozen
class _CountedBlob:
    """A vector in the file: its 32-bit element count, then its bytes."""

    blob: Writable

    @property
    def nbytes(self) -> int:
        return 4 + self.blob.nbytes

    @property
    def identity(self) -> object:
        return ("counted", self.blob.identity)

    def write_to(self, sink: Sink, offset: int) -> None:
        sink.write_at(struct.pack("<I", self.blob.nbytes), offset)
        self.blob.write_to(sink, offset + 4)


def _number(field: FieldSpec) -> tuple[int, bytes | None]:
    """Returns the width of a field in its table, and the default of a number as bytes, None for others."""
    if field.kind is not Kind.SCALAR:
        return 4, None
    assert field.scalar is not None
    return field.scalar.nbytes, b"" if field.default is None else packed(field.scalar, field.default)


def _is_blob(field: FieldSpec, value: Any) -> bool:
    if not isinstance(value, ScalarVector):
        return True
    if field.scalar is None or field.scalar.nbytes != 1 or not value.nbytes:
        return False
    return bool(field.align) or value.nbytes >= _BLOB_NBYTES


def _slot(field: FieldSpec) -> int:
    return field.slot


def _aligned(offset: int, align: int) -> int:
    return -(-offset // align) * align
