"""The files that a command's arguments name: checked before it begins, and reports that are written aside."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tfl_rewrite.cli.options import Argument, Command, given
from tfl_rewrite.cli.text import STREAM, paths, shown
from tfl_rewrite.errors import FileAccessError, UsageError
from tfl_rewrite.files.atomic import PLAIN, AtomicFile, access_of, atomic_write
from tfl_rewrite.files.claims import INPUT, OUTPUT, Claim, check_claims
from tfl_rewrite.options.option import Role

# What is written beside the manifest, or model.tflite, of a folder: named by its content.
_OF_A_FOLDER = (".part", ".bin")


def check(command: Command, arguments: argparse.Namespace) -> None:
    """Checks all files that a command reads and writes.

    Raises:
        UsageError, FileAccessError: See :func:`tfl_rewrite.files.claims.check_claims`.
    """
    reads: list[Claim] = []
    writes: list[Claim] = []
    rows = [row for _, group in command.groups for row in group if row.role is not None]
    for row in rows:
        what = _what(row)
        for path in paths(arguments, _destination(row)):
            for role, name in _files(row.role, path, arguments):
                if role in (Role.WRITE, Role.OUT, Role.KEEP):
                    if name == STREAM:
                        raise UsageError(
                            f"{what} is not for standard output",
                            remedy="name a file, such as ./- for that name",
                        )
                    writes.append(Claim(what, name, mine=role is Role.KEEP))
                elif role is Role.FOLDER:
                    writes += _of_a_folder(what, name, arguments)
                else:
                    reads.append(Claim(what, name))
    check_claims(reads, writes, force=bool(getattr(arguments, "force", False)))
    folders = [row.names[0] for row in rows if row.role is Role.FOLDER]
    for folder in [path for name in folders for path in paths(arguments, name)]:
        for claim in writes:
            inside = Path(os.path.realpath(claim.path)).parent == Path(os.path.realpath(folder))
            if inside and claim.path.endswith(_OF_A_FOLDER):
                raise UsageError(
                    f"{claim.what} has a name that files of {folder} have",
                    file=claim.path,
                    remedy="name another file",
                )


def _what(row: Argument) -> str:
    name = row.names[0]
    if name.startswith("-"):
        return name
    names = {"source": INPUT} if row.role is Role.FOLDER else {"source": INPUT, "target": OUTPUT}
    return names.get(name, str(row.extra["metavar"]))


def _destination(row: Argument) -> str:
    return str(row.extra.get("dest") or row.names[0].lstrip("-").replace("-", "_"))


def _of_a_folder(what: str, path: str, arguments: argparse.Namespace) -> Iterator[Claim]:
    """The file by which a folder of shards is opened; its writer looks whether it has the same content."""
    from tfl_rewrite.shards.settings import ShardOptions
    from tfl_rewrite.shards.split import SplitOptions

    if Path(path).is_dir():
        kind: type[ShardOptions | SplitOptions] = (
            SplitOptions if arguments.command == "split" else ShardOptions
        )
        entry = kind(**given(kind, arguments)).entry
        yield Claim(what, os.fspath(Path(path) / entry), mine=True)


def _files(role: Role | None, path: str, arguments: argparse.Namespace) -> list[tuple[Role | None, str]]:
    """Returns the files that a value names, and what is done with each."""
    if role is Role.READ_PASSES:
        from tfl_rewrite.passes import catalog

        found = catalog.files_of(path)
        return [row for item in found for row in _files(*item, arguments)]
    if role is Role.READ_MAP:
        return [(role, path)] if path.endswith(".toml") else []
    if role is Role.READ_RUNTIME:
        return [(role, name) for name in path.split(":")[1:2]]
    if role is Role.CALIBRATED:
        return [(Role.WRITE if getattr(arguments, "inputs", None) else Role.READ, path)]
    return [(role, path)]


# The C library keeps a bare pointer to it.
_kept: object = None


def watch(paths: Sequence[str]) -> None:
    """From now on, a fault while one of these files is read ends the process with one line.

    A mapped file may get shorter. To read past its new end is a fault of the processor, which Python cannot
    turn into an exception: its own handlers run later, and the instruction would fault again and again. So
    the C library is given a handler that says what happened and ends the process at once. Nothing is lost by
    that: outputs have no name yet, and temporary folders are removed by the next run.

    Args:
        paths: Files that may be mapped; those that do not exist are left out.
    """
    global _kept
    sizes = {path: size for path in paths if (size := _size(path)) is not None}

    def fault(_number: int) -> None:
        shorter = [path for path, size in sizes.items() if (_size(path) or 0) < size]
        name = shorter[0] if shorter else "a file"
        text = f"tfl-rewrite: error: {name}: was truncated while it was being read; nothing was written"
        if not shorter:
            text = "tfl-rewrite: error: a mapped file could not be read; nothing was written"
        printable = "".join(letter if letter.isprintable() else "?" for letter in text)
        try:
            os.write(2, (printable + "\n").encode("utf-8", "backslashreplace"))
        finally:
            os._exit(UsageError.exit_code)

    made = ctypes.CFUNCTYPE(None, ctypes.c_int)(fault)
    try:
        library = ctypes.CDLL(None)
        library.signal.argtypes = [ctypes.c_int, type(made)]
        library.signal.restype = ctypes.c_void_p
        library.signal(int(signal.SIGBUS), made)
    except (OSError, AttributeError):
        return  # Not a C library that we know: the system's message has to do.
    _kept = made


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return None


class SideFiles:
    """Reports, recipes and the like of one command: whole before anything gets its name, named after OUT.

    Args:
        arguments: Of the command.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        origin = getattr(arguments, "source", None) or getattr(arguments, "before", None)
        self._access = access_of(origin) & PLAIN if origin is not None else PLAIN
        self._force = bool(getattr(arguments, "force", False))
        self._stack = contextlib.ExitStack()
        self._written: list[AtomicFile] = []

    def __enter__(self) -> SideFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes what got no name."""
        self._stack.close()

    def add(self, path: str | None, data: bytes) -> None:
        """Writes a file without giving it its name; nothing, if no path is given.

        Raises:
            UsageError: It exists, and may not be overwritten.
            FileAccessError: It cannot be written, or the disk is full.
        """
        if path is None:
            return
        writing = atomic_write(path, force=self._force, nbytes=len(data), access=self._access)
        output = self._stack.enter_context(writing)
        try:
            output.sink.write_at(data, 0)
        except OSError as error:
            raise FileAccessError.of_writing(error, path) from error
        self._written.append(output)

    def add_json(self, path: str | None, data: Callable[[], dict[str, Any]]) -> None:
        """Writes data as JSON, where it is asked for; see :meth:`add`."""
        if path is not None:
            self.add(path, f"{shown(json.dumps(data(), indent=2, allow_nan=False))}\n".encode("ascii"))

    def publish(self) -> None:
        """Gives all of them their names.

        Raises:
            UsageError: Something has such a name by now.
            FileAccessError: The system refuses.
        """
        for output in self._written:
            try:
                output.publish()
            except OSError as error:
                raise FileAccessError.of_writing(error, output.target) from error
        self._written.clear()
