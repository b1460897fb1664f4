"""``-`` in place of a file name: models from standard input and to standard output.

A model is read in any order and verified before it gets out, so neither stream is used as it is: input is
copied into a temporary folder first, output last. Reports go to standard error when the model takes standard
output.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tfl_rewrite.errors import FileAccessError, UsageError

STREAM = "-"
READ = ("source", "model", "models", "before", "after")
WRITTEN = "target"
_PIECE = 1 << 20

# Paths of temporary copies, and what is shown in their place.
_shown: dict[str, str] = {}


def shown(text: str) -> str:
    """Returns a message with the streams under their names."""
    for path, name in _shown.items():
        # In a command that is recommended, it is what the command takes.
        text = re.sub(rf"(?<=tfl-rewrite )([\w-]+ ){re.escape(path)}", rf"\1{STREAM}", text)
        text = text.replace(path, name)
    return text


@contextlib.contextmanager
def standard_streams(arguments: argparse.Namespace) -> Iterator[None]:
    """Puts files in place of ``-`` in the arguments, and writes standard output if all went well.

    Raises:
        UsageError: Standard input is asked for twice, or standard output is a terminal.
        FileAccessError: A stream is closed, or cannot be read or written.
    """
    wanted = [name for name in READ if STREAM in paths(arguments, name)]
    # "shard" writes a folder.
    writes = getattr(arguments, WRITTEN, None) == STREAM and arguments.command != "shard"
    _shown.clear()
    if not wanted and not writes:
        yield
        return
    if writes and arguments.json:
        raise UsageError("standard output takes the model, not --json too", remedy="give --report FILE.json")
    from tfl_rewrite.interpreter.scratch import Scratch

    if sum(paths(arguments, name).count(STREAM) for name in wanted) > 1:
        raise UsageError("standard input can be read once", remedy="name a file for the other one")
    stdout = sys.stdout
    with Scratch() as scratch:
        for name in wanted:
            copy = scratch.path / "stdin.tflite"
            _shown[str(copy)] = "<stdin>"
            _read(copy)
            _replace(arguments, name, str(copy))
        if not writes:
            yield
            return
        if stdout is None or stdout.isatty():
            raise UsageError(
                "a model is nothing for a terminal", remedy="redirect standard output, or name a file"
            )
        made = scratch.path / "stdout.tflite"
        _shown[str(made)] = "<stdout>"
        arguments.target = str(made)
        # Whatever is said belongs beside the model, not into it.
        sys.stdout = sys.stderr
        try:
            yield
            if made.exists():
                _write(made, stdout.fileno())
        finally:
            sys.stdout = stdout


def paths(arguments: argparse.Namespace, name: str) -> list[str]:
    """Returns the file names that an argument holds; none if the command has no such argument."""
    value = getattr(arguments, name, None)
    return list(value) if isinstance(value, list | tuple) else [value] if isinstance(value, str) else []


def _replace(arguments: argparse.Namespace, name: str, path: str) -> None:
    value = getattr(arguments, name)
    if isinstance(value, str):
        setattr(arguments, name, path)
    else:
        setattr(arguments, name, [path if item == STREAM else item for item in value])


def _read(copy: Path) -> None:
    if sys.stdin is None:
        raise FileAccessError("cannot read: it is closed", file="standard input")
    if sys.stdin.isatty():
        raise UsageError("standard input is a terminal", remedy="redirect a model into it, or name a file")
    try:
        with open(copy, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, _PIECE)
    except OSError as error:
        raise FileAccessError(f"cannot read: {error.strerror or error}", file="standard input") from error


def _write(made: Path, descriptor: int) -> None:
    try:
        with open(made, "rb") as file:
            while piece := file.read(_PIECE):
                view = memoryview(piece)
                while view:
                    view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise FileAccessError(f"cannot write: {error.strerror or error}", file="standard output") from error
