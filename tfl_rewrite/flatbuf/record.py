"""What a schema says about tables, and one table as data; ``reader`` reads both."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field
from typing import Any, Protocol

from tfl_rewrite.frozen import frozen


class Kind(enum.Enum):
    """What a field holds."""

    SCALAR = "scalar"
    STRING = "string"
    TABLE = "table"
    UNION = "union"
    SCALARS = "vector of scalars"
    STRINGS = "vector of strings"
    TABLES = "vector of tables"


@frozen
class Scalar:
    """A fixed-size number: its ``struct`` code (little endian), and its size in bytes."""

    name: str
    code: str
    nbytes: int


BOOL = Scalar("bool", "?", 1)
INT8 = Scalar("byte", "b", 1)
UINT8 = Scalar("ubyte", "B", 1)
INT16 = Scalar("short", "h", 2)
UINT16 = Scalar("ushort", "H", 2)
INT32 = Scalar("int", "i", 4)
UINT32 = Scalar("uint", "I", 4)
INT64 = Scalar("long", "q", 8)
UINT64 = Scalar("ulong", "Q", 8)
FLOAT32 = Scalar("float", "f", 4)
FLOAT64 = Scalar("double", "d", 8)


@frozen(eq=False)
class EnumSpec:
    """An enum or union: ``values`` maps member names to numbers, ``members`` numbers to union tables."""

    name: str
    values: Mapping[str, int]
    members: Mapping[int, TableSpec] = field(default_factory=dict)
    is_union: bool = False

    def name_of(self, value: int) -> str:
        """Returns the member's name, or the number as text where the schema has no name for it."""
        for name, number in self.values.items():
            if number == value:
                return name
        return str(value)


@frozen(eq=False)
class FieldSpec:
    """One field of a table.

    Attributes:
        slot: Position in the vtable, counted from 0.
        scalar: The number type of a SCALAR or of the elements of SCALARS; a union's type field is a
            ubyte scalar of its own, one slot before the union.
        default: Value of an absent SCALAR; None for every other kind.
        table: Target of TABLE and TABLES.
        enum: The enum of a scalar, or the union of a UNION.
        align: Alignment that the schema demands for a vector's elements (``force_align``), or 0.
    """

    name: str
    slot: int
    kind: Kind
    scalar: Scalar | None = None
    default: int | float | bool | None = None
    table: TableSpec | None = None
    enum: EnumSpec | None = None
    align: int = 0


@frozen(eq=False)
class TableSpec:
    """A table: its fields by slot (``fields[i].slot == i``) and by name."""

    name: str
    fields: list[FieldSpec] = field(default_factory=list)
    by_name: dict[str, FieldSpec] = field(default_factory=dict)

    def add(self, spec: FieldSpec) -> None:
        """Appends the field of the next slot."""
        assert spec.slot == len(self.fields), (self.name, spec.name)
        self.fields.append(spec)
        self.by_name[spec.name] = spec


@frozen(eq=False)
class Schema:
    """All tables and enums by name without namespace, the root table and the file identifier."""

    tables: Mapping[str, TableSpec]
    enums: Mapping[str, EnumSpec]
    root: TableSpec
    identifier: bytes


class Sink(Protocol):
    """Where bytes of a file go: a positioned write, safe to call from several threads."""

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Writes all of ``data`` at ``offset`` of the file."""


class Writable(Protocol):
    """Bytes that the writer lays out now and asks for later."""

    @property
    def nbytes(self) -> int:
        """Their number, known before they are."""

    @property
    def identity(self) -> object:
        """Hashable; equal for two that are the same bytes by construction, so they are stored once."""

    def write_to(self, sink: Sink, offset: int) -> None:
        """Writes exactly ``nbytes`` bytes at ``offset`` of the sink."""


class NotANumber(float):
    """A 32-bit NaN with the bits of the file: a signalling one would come out quiet otherwise.

    Python's floats have 64 bits, and the conversion sets the quiet bit (IEEE 754, 6.2.3).
    """

    __slots__ = ("raw",)
    raw: bytes

    def __new__(cls, raw: bytes) -> NotANumber:
        """Makes one of its four little-endian bytes."""
        made = super().__new__(cls, "nan")
        made.raw = raw
        return made


def packed(scalar: Scalar, value: Any) -> bytes:
    """Returns the little-endian bytes of a number."""
    if isinstance(value, NotANumber) and scalar.code == "f":
        return value.raw
    return struct.pack("<" + scalar.code, value)


class ScalarVector:
    """A vector of numbers, kept as the bytes of the file so that no value changes on the way.

    Args:
        scalar: Type of the elements.
        raw: Little-endian elements; shared, not copied.
        offset: Where they lie in the file that they were read from, or -1.
    """

    __slots__ = ("offset", "raw", "scalar")

    def __init__(self, scalar: Scalar, raw: bytes | memoryview, offset: int = -1) -> None:
        self.scalar = scalar
        self.raw = raw
        self.offset = offset

    @classmethod
    def of(cls, scalar: Scalar, values: Iterable[int | float | bool]) -> ScalarVector:
        """Packs Python numbers."""
        items = list(values)
        return cls(scalar, struct.pack(f"<{len(items)}{scalar.code}", *items))

    @property
    def nbytes(self) -> int:
        """Size of the elements in bytes."""
        return len(self.raw)

    @property
    def identity(self) -> object:
        """Content for small vectors; equal content is equal."""
        return ("bytes", bytes(self.raw))

    def write_to(self, sink: Sink, offset: int) -> None:
        """Writes the elements at ``offset`` of the sink."""
        sink.write_at(self.raw, offset)

    def tolist(self) -> list[Any]:
        """Returns the elements as Python numbers."""
        return list(struct.unpack(f"<{len(self)}{self.scalar.code}", self.raw))

    def __len__(self) -> int:
        return len(self.raw) // self.scalar.nbytes

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())

    def __getitem__(self, index: int) -> Any:
        return self.tolist()[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScalarVector):
            return NotImplemented
        return self.scalar.code == other.scalar.code and self.raw == other.raw

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = self.tolist() if len(self) <= 8 else f"{len(self)} elements"
        return f"ScalarVector({self.scalar.name}, {shown})"


class Record:
    """The present fields of one table.

    ``values`` maps field names to: a number; ``str`` (undecodable bytes as surrogate escapes, so every
    name survives); :class:`ScalarVector` or a :class:`Writable` for a vector of numbers; ``Record`` for a
    table or union member; ``list[str]`` or ``list[Record]``. A union's type is a field of its own.

    Attributes:
        spec: The table's schema.
        values: The present fields; an absent one is not in it, whatever its default.
        unknown: Slots, union types and so on that the schema does not have. Such a record can be looked
            at but not written.
        offset: Where the table lay in its file, or -1.
    """

    __slots__ = ("offset", "spec", "unknown", "values")

    def __init__(
        self,
        spec: TableSpec,
        values: dict[str, Any] | None = None,
        *,
        unknown: tuple[str, ...] = (),
        offset: int = -1,
    ) -> None:
        self.spec = spec
        self.values = {} if values is None else values
        self.unknown = unknown
        self.offset = offset

    def get(self, name: str) -> Any:
        """Returns the field, or its default where absent (None where it has none)."""
        value = self.values.get(name)
        if value is None:
            return self.spec.by_name[name].default
        return value

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def __contains__(self, name: object) -> bool:
        return name in self.values

    def replace(self, **changes: Any) -> Record:
        """Returns a copy with fields set, or removed where the new value is None."""
        values = dict(self.values)
        for name, value in changes.items():
            if name not in self.spec.by_name:
                raise KeyError(f"{self.spec.name} has no field {name}")
            if value is None:
                values.pop(name, None)
            else:
                values[name] = value
        return Record(self.spec, values, unknown=self.unknown, offset=self.offset)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Record):
            return NotImplemented
        if self.spec.name != other.spec.name or self.unknown != other.unknown:
            return False
        if self.values.keys() != other.values.keys():
            return False
        return all(
            _equal(self.spec.by_name[name].scalar, self.spec.by_name[name].kind, value, other.values[name])
            for name, value in self.values.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Record({self.spec.name}, {self.values})"


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


def _equal(scalar: Scalar | None, kind: Kind, one: Any, two: Any) -> bool:
    if one is two:
        return True
    if kind is Kind.SCALAR and scalar is not None and scalar.code in "fd":
        # By bits: NaN equals itself and -0.0 is not 0.0.
        if isinstance(one, NotANumber) or isinstance(two, NotANumber):
            return packed(scalar, one) == packed(scalar, two)
        return struct.pack("<d", one) == struct.pack("<d", two)
    return bool(one == two)
