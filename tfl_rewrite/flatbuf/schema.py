"""What a schema says about tables, fields and enums; :mod:`tfl_rewrite.flatbuf.bootstrap` reads one."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Kind(enum.Enum):
    """What a field holds."""

    SCALAR = "scalar"
    STRING = "string"
    TABLE = "table"
    UNION = "union"
    SCALARS = "vector of scalars"
    STRINGS = "vector of strings"
    TABLES = "vector of tables"


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True, eq=False)
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


@dataclass(frozen=True, slots=True, eq=False)
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


@dataclass(frozen=True, slots=True, eq=False)
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


@dataclass(frozen=True, slots=True, eq=False)
class Schema:
    """All tables and enums by name without namespace, the root table and the file identifier."""

    tables: Mapping[str, TableSpec]
    enums: Mapping[str, EnumSpec]
    root: TableSpec
    identifier: bytes
