"""How a compiled schema (.bfbs) is read.

A ``.bfbs`` is itself a FlatBuffer, so the rows of ``_REFLECTION`` (the wire facts of FlatBuffers'
``reflection.fbs``) let our own reader load it; nothing here is generated code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tfl_rewrite.errors import FormatError

if TYPE_CHECKING:
    from tfl_rewrite.flatbuf.record import Record
from tfl_rewrite.flatbuf.record import (
    BOOL,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    EnumSpec,
    FieldSpec,
    Kind,
    Scalar,
    Schema,
    TableSpec,
)

# base type number of reflection.fbs -> our scalar. 1 is the hidden type field of a union.
_SCALARS = {
    1: UINT8,
    2: BOOL,
    3: INT8,
    4: UINT8,
    5: INT16,
    6: UINT16,
    7: INT32,
    8: UINT32,
    9: INT64,
    10: UINT64,
    11: FLOAT32,
    12: FLOAT64,
}
_STRING, _VECTOR, _OBJ, _UNION = 13, 14, 15, 16

# The tables of reflection.fbs: (name, slot, kind, scalar, default, target table).
_REFLECTION: dict[str, list[tuple[str, Kind, Scalar | None, int | float | bool | None, str | None]]] = {
    "Type": [
        ("base_type", Kind.SCALAR, INT8, 0, None),
        ("element", Kind.SCALAR, INT8, 0, None),
        ("index", Kind.SCALAR, INT32, -1, None),
        ("fixed_length", Kind.SCALAR, UINT16, 0, None),
        ("base_size", Kind.SCALAR, UINT32, 4, None),
        ("element_size", Kind.SCALAR, UINT32, 0, None),
    ],
    "KeyValue": [("key", Kind.STRING, None, None, None), ("value", Kind.STRING, None, None, None)],
    "EnumVal": [
        ("name", Kind.STRING, None, None, None),
        ("value", Kind.SCALAR, INT64, 0, None),
        ("object", Kind.TABLE, None, None, "Object"),
        ("union_type", Kind.TABLE, None, None, "Type"),
        ("documentation", Kind.STRINGS, None, None, None),
        ("attributes", Kind.TABLES, None, None, "KeyValue"),
    ],
    "Enum": [
        ("name", Kind.STRING, None, None, None),
        ("values", Kind.TABLES, None, None, "EnumVal"),
        ("is_union", Kind.SCALAR, BOOL, False, None),
        ("underlying_type", Kind.TABLE, None, None, "Type"),
        ("attributes", Kind.TABLES, None, None, "KeyValue"),
        ("documentation", Kind.STRINGS, None, None, None),
        ("declaration_file", Kind.STRING, None, None, None),
    ],
    "Field": [
        ("name", Kind.STRING, None, None, None),
        ("type", Kind.TABLE, None, None, "Type"),
        ("id", Kind.SCALAR, UINT16, 0, None),
        ("offset", Kind.SCALAR, UINT16, 0, None),
        ("default_integer", Kind.SCALAR, INT64, 0, None),
        ("default_real", Kind.SCALAR, FLOAT64, 0.0, None),
        ("deprecated", Kind.SCALAR, BOOL, False, None),
        ("required", Kind.SCALAR, BOOL, False, None),
        ("key", Kind.SCALAR, BOOL, False, None),
        ("attributes", Kind.TABLES, None, None, "KeyValue"),
        ("documentation", Kind.STRINGS, None, None, None),
        ("optional", Kind.SCALAR, BOOL, False, None),
        ("padding", Kind.SCALAR, UINT16, 0, None),
        ("offset64", Kind.SCALAR, BOOL, False, None),
    ],
    "Object": [
        ("name", Kind.STRING, None, None, None),
        ("fields", Kind.TABLES, None, None, "Field"),
        ("is_struct", Kind.SCALAR, BOOL, False, None),
        ("minalign", Kind.SCALAR, INT32, 0, None),
        ("bytesize", Kind.SCALAR, INT32, 0, None),
        ("attributes", Kind.TABLES, None, None, "KeyValue"),
        ("documentation", Kind.STRINGS, None, None, None),
        ("declaration_file", Kind.STRING, None, None, None),
    ],
    "SchemaFile": [
        ("filename", Kind.STRING, None, None, None),
        ("included_filenames", Kind.STRINGS, None, None, None),
    ],
    "Schema": [
        ("objects", Kind.TABLES, None, None, "Object"),
        ("enums", Kind.TABLES, None, None, "Enum"),
        ("file_ident", Kind.STRING, None, None, None),
        ("file_ext", Kind.STRING, None, None, None),
        ("root_table", Kind.TABLE, None, None, "Object"),
        ("services", Kind.TABLES, None, None, "KeyValue"),
        ("advanced_features", Kind.SCALAR, UINT64, 0, None),
        ("fbs_files", Kind.TABLES, None, None, "SchemaFile"),
    ],
}


def reflection_schema() -> Schema:
    """Returns the schema of ``.bfbs`` files themselves."""
    tables = {name: TableSpec(name) for name in _REFLECTION}
    for name, rows in _REFLECTION.items():
        for slot, (field_name, kind, scalar, default, target) in enumerate(rows):
            table = tables[target] if target else None
            tables[name].add(FieldSpec(field_name, slot, kind, scalar, default, table))
    return Schema(tables, {}, tables["Schema"], b"BFBS")


def load_schema(data: bytes) -> Schema:
    """Reads a compiled schema.

    Args:
        data: Contents of a ``.bfbs`` file compiled with its built-in attributes.

    Raises:
        FormatError: The bytes are no compiled schema, or it uses structs, fixed-length arrays or vectors
            of unions, which this codec does not read.
    """
    from tfl_rewrite.flatbuf.reader import read

    root = read(memoryview(data), reflection_schema()).root
    objects, enum_rows = list(root["objects"]), list(root["enums"])
    tables = {_base(row["name"]): TableSpec(_base(row["name"])) for row in objects}
    by_index = [tables[_base(row["name"])] for row in objects]
    enums = [_enum(row, by_index) for row in enum_rows]
    for row in objects:
        if row.get("is_struct"):
            raise FormatError(f"schema uses the struct {row['name']}; only tables are supported")
        for field_row in sorted(row.get("fields") or (), key=lambda item: int(item.get("id"))):
            tables[_base(row["name"])].add(_field(field_row, by_index, enums))
    root_name = _base(root["root_table"]["name"])
    return Schema(
        tables, {spec.name: spec for spec in enums}, tables[root_name], root["file_ident"].encode("ascii")
    )


def _base(name: str) -> str:
    return name.rpartition(".")[2]


def _enum(row: Record, tables: list[TableSpec]) -> EnumSpec:
    values, members = {}, {}
    for value in row["values"]:
        number = int(value.get("value"))
        values[value["name"]] = number
        target = value.get("union_type")
        if target is not None and target.get("base_type") == _OBJ:
            members[number] = tables[target.get("index")]
    return EnumSpec(_base(row["name"]), values, members, bool(row.get("is_union")))


def _field(row: Record, tables: list[TableSpec], enums: list[EnumSpec]) -> FieldSpec:
    spec, name, slot = row["type"], row["name"], int(row.get("id"))
    base, element, index = spec.get("base_type"), spec.get("element"), spec.get("index")
    if base in _SCALARS:
        scalar = _SCALARS[base]
        real = scalar in (FLOAT32, FLOAT64)
        default = row.get("default_real") if real else row.get("default_integer")
        if scalar is BOOL:
            default = bool(default)
        # A union's hidden type field has the union as its enum, like any enum-typed scalar.
        return FieldSpec(name, slot, Kind.SCALAR, scalar, default, enum=enums[index] if index >= 0 else None)
    if base == _STRING:
        return FieldSpec(name, slot, Kind.STRING)
    if base == _OBJ:
        return FieldSpec(name, slot, Kind.TABLE, table=tables[index])
    if base == _UNION:
        return FieldSpec(name, slot, Kind.UNION, enum=enums[index])
    if base == _VECTOR:
        if element in _SCALARS and element != 1:
            align = _attribute(row.get("attributes") or (), "force_align")
            enum_spec = enums[index] if index >= 0 else None
            return FieldSpec(
                name, slot, Kind.SCALARS, _SCALARS[element], enum=enum_spec, align=int(align or 0)
            )
        if element == _STRING:
            return FieldSpec(name, slot, Kind.STRINGS)
        if element == _OBJ:
            return FieldSpec(name, slot, Kind.TABLES, table=tables[index])
    raise FormatError(
        f"schema field {name} has base type {base} of {element}, which this codec does not read"
    )


def _attribute(rows: Iterable[Record], key: str) -> str | None:
    return next((str(row["value"]) for row in rows if row["key"] == key), None)
