"""Text for people, and the standard streams.

What comes from files is shown escaped, so that it cannot write to the terminal. ``-`` in place of a file name
is a model from standard input or to standard output. One is read in any order and verified before it gets
out, so neither stream is used as it is: input is copied into a temporary folder first, output last. Reports
go to standard error when the model takes standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tfl_rewrite.errors import FileAccessError, TflRewriteError, UsageError, shell_path

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
    # Some write a folder.
    writes = getattr(arguments, WRITTEN, None) == STREAM and arguments.command not in ("shard", "split")
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
                "standard output is a terminal, and a model is binary",
                remedy="redirect standard output, or name a file",
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
            import shutil

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
        raise FileAccessError.of_writing(error, "standard output") from error


LONGEST_ERROR = 4000
LONGEST_WORD = 200
"""Of what an error repeats; a hash, or a name in a folder of some depth, is shorter."""
_LEAST_NAME = 24
"""Letters of a name that is cut to fit a terminal; fewer tell too little."""

_ESCAPED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")


def safe(text: str, *, limit: int = 120) -> str:
    """Escapes control characters, terminal escapes, bidirectional marks and broken bytes; cuts the middle."""
    # A stream by its own name, before the path of its copy is cut.
    return _cut("".join(escaped(char) for char in shown(text)), limit)


def shell(path: str) -> str:
    """Returns a path as a shell takes it."""
    return shell_path(safe(path))


def _cut(text: str, limit: int) -> str:
    """Takes out the middle of a text that is too long."""
    if len(text) <= limit:
        return text
    head = (limit - 3) // 2
    return f"{text[:head]}...{text[len(text) - (limit - 3 - head) :]}"


def escaped(char: str) -> str:
    """Returns a character, or an escape sequence for one that a terminal would act on or not show."""
    # Spaces other than the plain one look like it, or like nothing.
    if unicodedata.category(char) in _ESCAPED and char != " ":
        return char.encode("unicode_escape", "backslashreplace").decode("ascii")
    return char


def size(nbytes: int) -> str:
    """Formats bytes with thousands separators."""
    return f"{nbytes:,}"


def counted(number: int, what: str) -> str:
    """Returns such as ``1 change`` and ``2 changes``."""
    return f"{size(number)} {what}{'' if number == 1 else 's'}"


def short_names(names: Sequence[str], *, limit: int) -> list[str]:
    """Shortens names for a table, where they agree rather than where they differ.

    Folders that all of them begin or end with are left out; of a name that is still too long, the middle,
    unless it is told from another by that.

    Args:
        names: Of tensors, in which folders stand between slashes.
        limit: How long one is to be.
    """
    paths = [name.split("/") for name in names]
    begin = end = 0
    if len(set(names)) > 1 and max(map(len, names)) > limit // 2:
        shortest = min(map(len, paths))
        while begin < shortest - 1 and len({path[begin] for path in paths}) == 1:
            begin += 1
        while end < shortest - 1 - begin and len({path[-1 - end] for path in paths}) == 1:
            end += 1
    kept = ["/".join(path[begin : len(path) - end]) for path in paths]
    shown = [(".../" if begin else "") + name + ("/..." if end else "") for name in kept]
    while True:
        cut = [safe(name, limit=limit) for name in shown]
        if len(set(cut)) == len(set(shown)) or limit > LONGEST_WORD:
            return cut
        limit += 20


def name_limit(others: Sequence[Sequence[str]], most: int = 60) -> int:
    """Returns how long names in the first column of a table may be, so that its lines fit the terminal.

    Args:
        others: The other columns, row by row.
        most: Where there is no terminal, or names would have to be shorter than tells anything.
    """
    if sys.stdout is None or not sys.stdout.isatty():
        return most
    taken = sum(2 + max(map(len, column)) for column in zip(*others, strict=True))
    # With all that it can unpack it takes a while to load.
    import shutil

    left = shutil.get_terminal_size().columns - 2 - taken
    return min(left, most) if left >= _LEAST_NAME else most


def decibels(value: float) -> str:
    """Formats an SNR."""
    return f"{value:.1f}" if math.isfinite(value) else "exact" if value > 0 else "-inf"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()) -> list[str]:
    """Lays out a table with two spaces between columns; ``right`` are the columns that align right."""
    all_rows = [list(head), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in all_rows) for column in range(len(head))]
    aligned = set(right)
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if column in aligned else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in all_rows
    ]


def print_error(error: TflRewriteError) -> None:
    """Prints an error as JSON, for whoever reads nothing else; no matter whether it can be printed."""
    names = ("what", "file", "where", "offset", "remedy", "exit_code")
    told = {name: getattr(error, name) for name in names if getattr(error, name) is not None}
    with contextlib.suppress(TflRewriteError, OSError):
        print_lines([json.dumps({"schema": 1, "error": told}, indent=2)])


def complain(text: str, arguments: Iterable[str] = ()) -> None:
    """Prints an error in one line; of each thing that it repeats, such as a name, as much as can be read.

    Args:
        text: What is wrong.
        arguments: Those of the command line, which may hold spaces.
    """
    shown = safe(text, limit=sys.maxsize)
    for argument in arguments:
        for form in (argument, repr(argument)[1:-1], argument.partition("=")[2]):
            if len(form) > LONGEST_WORD:
                form = safe(form, limit=sys.maxsize)
                shown = shown.replace(form, _cut(form, LONGEST_WORD))
    shown = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda found: _cut(found[0], LONGEST_WORD), shown)
    warn(f"tfl-rewrite: error: {_cut(shown, LONGEST_ERROR)}")


def warn(text: str) -> None:
    """Prints a line to standard error, if somebody can read it."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def show(
    arguments: argparse.Namespace,
    data: Callable[[], dict[str, Any]],
    lines: Callable[[], Sequence[str]],
    *,
    product: bool = True,
) -> None:
    """Prints what a command found or did, as its options say: text, or JSON; with ``--quiet`` only JSON.

    Args:
        arguments: Of the command.
        data: Makes the JSON data.
        lines: Makes the text.
        product: Whether it is all that was asked for; where it is not, a report that cannot be printed undoes
            nothing.

    Raises:
        FileAccessError: It cannot be printed, and is all that was asked for.
    """
    if arguments.quiet and not arguments.json:
        return
    made = [json.dumps(data(), indent=2)] if arguments.json else lines()
    try:
        print_lines(made)
    except FileAccessError as error:
        if product:
            raise
        warn(f"tfl-rewrite: the report could not be printed: {error}")


def print_lines(lines: Sequence[str], *, plain: bool = False) -> None:
    """Prints to standard output, whatever its encoding, and whether somebody still reads it or not.

    Args:
        lines: What to print.
        plain: Whether nothing of it is to stand out.

    Raises:
        FileAccessError: It is closed, or cannot be written.
    """
    if not lines:
        return
    if sys.stdout is None:
        raise FileAccessError("cannot write: it is closed", file="standard output")
    text = shown("\n".join(lines) + "\n")
    # A terminal of another encoding shows what it can.
    encoding = sys.stdout.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        if not plain and sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
            _print_coloured(text)
        else:
            sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # Nothing more can be said there; without this, Python tries again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # A reader that went away changes neither the work nor its exit code.
        if not isinstance(error, BrokenPipeError):
            raise FileAccessError.of_writing(error, "standard output") from error


_COLOURS = (
    (r"(?m)^(verified: )?PASS\b|^verified\b|: sound$", "green"),
    (r"(?m)^(verified: )?FAIL\b|^error: |NOT (SOUND|CHECKED)$|-X->", "bold red"),
    (r"(?m)^(UNVERIFIED|warning: |not judged: (?!nothing))|\(made samples[^)]*\)", "yellow"),
    (r"(?m)^(note|next): ", "cyan"),
)
"""What stands out on a terminal, and how."""


def _print_coloured(text: str) -> None:
    from rich.console import Console
    from rich.text import Text

    told = Text(text)
    for pattern, style in _COLOURS:
        told.highlight_regex(pattern, style)
    # The terminal breaks lines, so that what is copied from it has none that are not ours.
    Console(file=sys.stdout, highlight=False).print(told, soft_wrap=True, end="")
