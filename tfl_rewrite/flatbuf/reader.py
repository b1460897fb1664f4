"""Bytes to records: every offset, size, depth and count is checked before it is used.

The checks are those of FlatBuffers' own verifier (``flatbuffers/verifier.h``: alignment, vtable bounds,
string terminators, at most 64 levels and 1,000,000 tables), plus one that keeps the cost in proportion to
the file: distinct objects must not overlap so much that they add up to more than the file. As with that
verifier, numbers of 8 bytes in a vector may lie at an offset that 8 does not divide, although the format says
otherwise; :func:`tfl_rewrite.flatbuf.reader.misaligned` finds them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tfl_rewrite.errors import FormatError
from tfl_rewrite.flatbuf.record import (
    FieldSpec,
    Kind,
    NotANumber,
    Record,
    ScalarVector,
    Schema,
    TableSpec,
)
from tfl_rewrite.options.frozen import frozen

MAX_DEPTH = 64
MAX_TABLES = 1_000_000
_LONG_NBYTES = 1024
_RELEASE_AFTER = 256
_CUT_SHORT = "the file may be cut short, such as by a download that did not end: fetch it again"

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")
_SCALAR_STRUCTS = {code: struct.Struct("<" + code) for code in "?bBhHiIqQfd"}


Place = str | tuple["Place", str | int]
"""A path inside the file: the root, or a place with the name of a field or an index.

It is made text only when asked for, since that takes longer than reading.
"""

_ROOT = "root"


def _said(place: Place) -> str:
    """Returns a place in the words of the schema."""
    steps: list[str] = []
    while isinstance(place, tuple):
        place, step = place
        steps.append(f"[{step}]" if isinstance(step, int) else f".{step}")
    return "".join(reversed(steps)).removeprefix(".") or place


@frozen
class ReadResult:
    """A read file.

    Attributes:
        root: The root table.
        spans: The byte ranges that offsets reach, as sorted ``(start, end)`` pairs.
        unknown: What the schema does not know, with its place.
        vtables: ``{offset: (length, nbytes of its tables)}``.
    """

    root: Record
    spans: list[tuple[int, int]]
    unknown: list[str]
    vtables: dict[int, tuple[int, int]]


def read(data: memoryview, schema: Schema, *, release: Callable[[], None] | None = None) -> ReadResult:
    """Reads the FlatBuffer that starts at byte 0 of ``data``.

    Args:
        data: The whole file; vectors of numbers in the result are views on it. Bytes after the
            FlatBuffer are not looked at.
        schema: What the tables mean.
        release: Gives back the pages of mapped bytes; called now and then. The count before each long vector
            brings in pages of it, which are not needed.

    Raises:
        FormatError: The bytes break a rule of the format; it carries the place and the offset.
    """
    if len(data) < 8:
        raise FormatError(f"{len(data)} bytes are too few for a FlatBuffer", offset=0)
    if schema.identifier and bytes(data[4:8]) != schema.identifier:
        raise FormatError(
            f"file identifier is {bytes(data[4:8])!r}, expected {schema.identifier!r}", offset=4
        )
    reader = _Reader(data, release)
    root = reader.table(schema.root, reader.target(0, _ROOT), _ROOT, 0)
    reader.spans.append((0, 8 if schema.identifier else 4))
    return ReadResult(root, sorted(set(reader.spans)), reader.unknown, reader.vtables)


_Field = tuple[str, int, Callable[[memoryview, int], tuple[Any, ...]] | None, int, FieldSpec]
"""Name, position in the table, how a number is read (None for what is no number), width, and the field."""


@frozen
class _Layout:
    """What a vtable says of its tables.

    Attributes:
        nbytes: Size of a table.
        fields: Those that are present.
        unknown: Slots that the schema does not have.
    """

    nbytes: int
    fields: list[_Field]
    unknown: tuple[str, ...]


class _Reader:
    """One pass over one file. Everything reached is decoded once and shared, as it was in the file."""

    def __init__(self, data: memoryview, release: Callable[[], None] | None) -> None:
        self.data = data
        self._release = release
        self._long_vectors = 0
        self.size = len(data)
        self.spans: list[tuple[int, int]] = []
        self.unknown: list[str] = []
        self.vtables: dict[int, tuple[int, int]] = {}
        self.consumed = 0
        self.tables_read = 0
        self._records: dict[tuple[int, str], Record] = {}
        self._vectors: dict[tuple[int, str], Any] = {}
        self._strings: dict[int, str] = {}
        self._layouts: dict[tuple[int, str], _Layout] = {}

    def fail(self, what: str, where: Place, offset: int, remedy: str | None = None) -> FormatError:
        return FormatError(what, where=_said(where), offset=offset, remedy=remedy)

    def span(self, start: int, end: int, where: Place) -> None:
        self.consumed += end - start
        # Sharing is decoded once, so only overlapping distinct objects can pass the size of the file.
        if self.consumed > 2 * self.size + 4096:
            raise self.fail("objects overlap: together they are larger than the file", where, start)
        self.spans.append((start, end))

    def target(self, position: int, where: Place) -> int:
        """Follows the unsigned offset stored at ``position``."""
        if position + 4 > self.size:
            what = f"offset lies past the end of the file ({self.size} bytes)"
            raise self.fail(what, where, position, _CUT_SHORT)
        distance = _U32.unpack_from(self.data, position)[0]
        result: int = position + distance
        if distance == 0 or distance > 0x7FFFFFFF or result + 4 > self.size:
            what = f"offset {distance} leads out of the file ({self.size} bytes)"
            raise self.fail(what, where, position, _CUT_SHORT if distance else None)
        return result

    def table(self, spec: TableSpec, position: int, where: Place, depth: int) -> Record:
        key = (position, spec.name)
        known = self._records.get(key)
        if known is not None:
            return known
        if depth >= MAX_DEPTH:
            raise self.fail(f"tables nest deeper than {MAX_DEPTH}", where, position)
        self.tables_read += 1
        if self.tables_read > MAX_TABLES:
            raise self.fail(f"more than {MAX_TABLES} tables", where, position)
        if position % 4 or position + 4 > self.size:
            raise self.fail("table is misaligned or past the end of the file", where, position)
        vtable = position - _I32.unpack_from(self.data, position)[0]
        layout = self._layouts.get((vtable, spec.name)) or self._layout(spec, vtable, where)
        nbytes = layout.nbytes
        if position + nbytes > self.size:
            what = f"table of {nbytes} bytes is cut off by the end of the file"
            raise self.fail(what, where, position, _CUT_SHORT)
        self.span(position, position + nbytes, where)
        values: dict[str, Any] = {}
        unknown = layout.unknown
        for name, relative, unpack, width, field in layout.fields:
            # Offsets in the layout are bounded by the table, checked once per vtable.
            at = position + relative
            if unpack is None:
                value = self._value(field, at, values, where, depth)
                if value is _UNKNOWN:
                    unknown += (name,)
                else:
                    values[name] = value
                continue
            if at % width:
                raise self.fail(f"{name} is misaligned", where, at)
            value = unpack(self.data, at)[0]
            if value != value and width == 4:
                value = NotANumber(bytes(self.data[at : at + 4]))
            values[name] = value
        if unknown:
            self.unknown.extend(f"{_said(where)}: {item}" for item in unknown)
        record = Record(spec, values, unknown=unknown, offset=position)
        self._records[key] = record
        return record

    def _layout(self, spec: TableSpec, vtable: int, where: Place) -> _Layout:
        """Checks a vtable, once for each type of table that has it."""
        if vtable < 0 or vtable % 2 or vtable + 4 > self.size:
            raise self.fail("vtable is misaligned or outside of the file", where, vtable)
        length = _U16.unpack_from(self.data, vtable)[0]
        nbytes = _U16.unpack_from(self.data, vtable + 2)[0]
        if length < 4 or length % 2 or vtable + length > self.size:
            raise self.fail(f"vtable of {length} bytes is invalid", where, vtable)
        if nbytes < 4:
            raise self.fail(f"vtable gives its table {nbytes} bytes", where, vtable)
        entries = struct.unpack_from(f"<{length // 2 - 2}H", self.data, vtable + 4)
        fields: list[_Field] = []
        unknown: list[str] = []
        for slot, relative in enumerate(entries):
            if not relative:
                continue
            if slot >= len(spec.fields):
                unknown.append(f"slot {slot} of {spec.name}")
                continue
            field = spec.fields[slot]
            width = field.scalar.nbytes if field.kind is Kind.SCALAR and field.scalar else 4
            if relative < 4 or relative + width > nbytes:
                raise self.fail(
                    f"{spec.name}.{field.name} lies outside of its table ({relative} + {width} > {nbytes})",
                    where,
                    vtable,
                )
            unpack = None
            if field.kind is Kind.SCALAR and field.scalar:
                unpack = _SCALAR_STRUCTS[field.scalar.code].unpack_from
            fields.append((field.name, relative, unpack, width, field))
        self.span(vtable, vtable + length, where)
        self.vtables[vtable] = (length, nbytes)
        result = self._layouts[vtable, spec.name] = _Layout(nbytes, fields, tuple(unknown))
        return result

    def _value(
        self, field: FieldSpec, position: int, siblings: dict[str, Any], where: Place, depth: int
    ) -> Any:
        kind = field.kind
        place: Place = (where, field.name)
        if position % 4:
            raise self.fail("offset is misaligned", place, position)
        target = self.target(position, place)
        if kind is Kind.STRING:
            return self._string(target, place)
        if kind is Kind.TABLE:
            assert field.table is not None
            return self.table(field.table, target, place, depth + 1)
        if kind is Kind.UNION:
            assert field.enum is not None
            number = siblings.get(field.name + "_type", 0)
            member = field.enum.members.get(number)
            if member is None:
                if number == 0:
                    raise self.fail("union has a value but no type", place, position)
                return _UNKNOWN
            return self.table(member, target, place, depth + 1)
        return self._vector(field, target, place, depth)

    def _count(self, position: int, width: int, where: Place) -> int:
        if position % 4:
            raise self.fail("vector is misaligned", where, position)
        count: int = _U32.unpack_from(self.data, position)[0]
        if count > (self.size - position - 4) // width:
            raise self.fail(
                f"vector of {count} elements of {width} bytes does not fit in the file ({self.size} bytes)",
                where,
                position,
                _CUT_SHORT,
            )
        return count

    def _string(self, position: int, where: Place) -> str:
        known = self._strings.get(position)
        if known is not None:
            return known
        count = self._count(position, 1, where)
        end = position + 4 + count
        if end >= self.size or self.data[end] != 0:
            raise self.fail("string has no terminating zero", where, position)
        self.span(position, end + 1, where)
        text = bytes(self.data[position + 4 : end]).decode("utf-8", "surrogateescape")
        self._strings[position] = text
        return text

    def _vector(self, field: FieldSpec, position: int, where: Place, depth: int) -> Any:
        target = field.table.name if field.table else field.scalar.code if field.scalar else "string"
        key = (position, target)
        known = self._vectors.get(key)
        if known is not None:
            return known
        result: Any
        if field.kind is Kind.SCALARS:
            assert field.scalar is not None
            width = field.scalar.nbytes
            count = self._count(position, width, where)
            end = position + 4 + count * width
            self.span(position, end, where)
            self._longer(count * width)
            result = ScalarVector(field.scalar, self.data[position + 4 : end], position + 4)
        else:
            count = self._count(position, 4, where)
            self.span(position, position + 4 + 4 * count, where)
            result = []
            for index in range(count):
                place: Place = (where, index)
                item = self.target(position + 4 + 4 * index, place)
                if field.kind is Kind.STRINGS:
                    result.append(self._string(item, place))
                else:
                    assert field.table is not None
                    result.append(self.table(field.table, item, place, depth + 1))
        self._vectors[key] = result
        return result

    def _longer(self, nbytes: int) -> None:
        """Counts vectors that are not read with the tables around them."""
        if self._release is None or nbytes < _LONG_NBYTES:
            return
        self._long_vectors += 1
        if self._long_vectors % _RELEASE_AFTER == 0:
            self._release()


class _Unknown:
    """Marks a union member that the schema does not have."""


_UNKNOWN = _Unknown()


def misaligned(root: Record) -> list[tuple[str, int]]:
    """Finds vectors of numbers that do not start at a multiple of the size of a number, as the format asks.

    Args:
        root: As read from a file.

    Returns:
        The place in the words of the schema and the offset in the file, each vector once.
    """
    found: dict[int, str] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, ScalarVector):
            if len(value) and value.offset > 0 and value.offset % value.scalar.nbytes:
                found.setdefault(value.offset, place)
        elif isinstance(value, Record | list) and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, Record):
                waiting += [
                    (f"{place}.{name}".lstrip("."), item)
                    for name, item in value.values.items()
                    if isinstance(item, Record | list | ScalarVector)
                ]
            elif value and isinstance(value[0], Record):
                waiting += [(f"{place}[{index}]", item) for index, item in enumerate(value)]
    return sorted(((place, offset) for offset, place in found.items()), key=lambda item: item[1])
