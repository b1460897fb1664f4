"""What a schema says about tables, and one table as data; ``reader`` reads both."""

from __future__ import annotations

import enum
import functools
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from tfl_rewrite.options.frozen import frozen


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


class EnumSpec:
    """An enum or union; what it holds is read from its row when it is asked for.

    Args:
        name: Its name.
        row: ``NAME=NUMBER`` of each member.
        tables: Those of the schema, for a union; each member but number 0 is the table of its name.

    Attributes:
        values: Number of each member.
        names: Name of each number, the first where there are several.
        members: Of a union: the table of each number.
    """

    __slots__ = ("_row", "_tables", "members", "name", "names", "values")
    values: Mapping[str, int]
    names: Mapping[int, str]
    members: Mapping[int, TableSpec]

    def __init__(self, name: str, row: str, tables: Mapping[str, TableSpec] | None = None) -> None:
        self.name = name
        self._row = row
        self._tables = tables

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name not in ("members", "names", "values"):
                raise AttributeError(name)
            rows = (item.partition("=") for item in self._row.split())
            self.values = {member: int(number) for member, _, number in rows}
            self.names = {number: member for member, number in reversed(self.values.items())}
            tables = self._tables or {}
            self.members = {
                number: tables[member] for member, number in self.values.items() if number and tables
            }
            return getattr(self, name)

    @property
    def is_union(self) -> bool:
        """Whether its members are tables."""
        return self._tables is not None

    def name_of(self, value: int) -> str:
        """Returns the member's name, or the number as text where the schema has no name for it."""
        return self.names.get(value) or str(value)


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


class TableSpec:
    """A table: its fields by slot (``fields[i].slot == i``) and by name.

    Args:
        name: Its name.
        make: Makes the fields when they are asked for: a model has few of the tables of its schema.
    """

    __slots__ = ("_make", "by_name", "fields", "name")
    fields: list[FieldSpec]
    by_name: dict[str, FieldSpec]

    def __init__(self, name: str, make: Callable[[], Iterable[FieldSpec]]) -> None:
        self.name = name
        self._make = make

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name not in ("by_name", "fields"):
                raise AttributeError(name)
            self.fields = list(self._make())
            self.by_name = {item.name: item for item in self.fields}
            return getattr(self, name)


@frozen(eq=False)
class Schema:
    """All tables and enums by name without namespace, the root table and the file identifier."""

    tables: Mapping[str, TableSpec]
    enums: Mapping[str, EnumSpec]
    root: TableSpec
    identifier: bytes


SCALARS = {
    item.name: item
    for item in (BOOL, INT8, UINT8, INT16, UINT16, INT32, UINT32, INT64, UINT64, FLOAT32, FLOAT64)
}
_PACKERS = {item.code: struct.Struct("<" + item.code).pack for item in SCALARS.values()}
_PYTHON: Mapping[str, Callable[[Any], Any]] = {"f": float, "d": float, "?": lambda text: bool(int(text))}
"""What a default becomes; else a whole number."""


def load_schema(text: str) -> Schema:
    """Reads a schema in the form that ``scripts/compile_schema.py`` writes.

    Args:
        text: Rows of words: ``root TABLE IDENTIFIER``; ``enum`` or ``union``, its name, and ``NAME=NUMBER``
            of each member; ``table``, its name, and ``NAME:TYPE`` of each field by slot. A type is a scalar
            with its default where that is not 0 (``int=-1``), ``string``, a table, or ``union.NAME``; one in
            brackets is a vector, with an alignment behind (``[ubyte]@16``). Behind a dot stands the enum of
            a scalar.
    """
    tables: dict[str, TableSpec] = {}
    enums: dict[str, EnumSpec] = {}
    root = identifier = ""
    for line in text.splitlines():
        kind, name, *rest = line.split(" ", 2)
        row = "".join(rest)
        if kind == "root":
            root, identifier = name, row
        elif kind == "table":
            tables[name] = TableSpec(name, functools.partial(_fields, row, tables, enums))
        else:
            enums[name] = EnumSpec(name, row, tables if kind == "union" else None)
    return Schema(tables, enums, tables[root], identifier.encode("ascii"))


def _fields(row: str, tables: Mapping[str, TableSpec], enums: Mapping[str, EnumSpec]) -> Iterator[FieldSpec]:
    for slot, item in enumerate(row.split()):
        name, _, kind = item.partition(":")
        kind, _, default = kind.partition("=")
        is_vector = kind.startswith("[")
        kind, _, align = kind.removeprefix("[").partition("]")
        word, _, enum_name = kind.partition(".")
        enum_spec, scalar = enums.get(enum_name), SCALARS.get(word)
        if scalar is not None and is_vector:
            yield FieldSpec(name, slot, Kind.SCALARS, scalar, enum=enum_spec, align=int(align[1:] or 0))
        elif scalar is not None:
            number = _PYTHON.get(scalar.code, int)(default or 0)
            yield FieldSpec(name, slot, Kind.SCALAR, scalar, number, enum=enum_spec)
        elif word == "string":
            yield FieldSpec(name, slot, Kind.STRINGS if is_vector else Kind.STRING)
        elif word == "union":
            yield FieldSpec(name, slot, Kind.UNION, enum=enum_spec)
        else:
            yield FieldSpec(name, slot, Kind.TABLES if is_vector else Kind.TABLE, table=tables[word])


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
    return _PACKERS[scalar.code](value)


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


def _equal(scalar: Scalar | None, kind: Kind, one: Any, two: Any) -> bool:
    if one is two:
        return True
    if kind is Kind.SCALAR and scalar is not None and scalar.code in "fd":
        # By bits: NaN equals itself and -0.0 is not 0.0.
        if isinstance(one, NotANumber) or isinstance(two, NotANumber):
            return packed(scalar, one) == packed(scalar, two)
        return struct.pack("<d", one) == struct.pack("<d", two)
    return bool(one == two)
