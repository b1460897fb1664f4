"""Text for people: what comes from files is shown escaped, so that it cannot write to the terminal."""

from __future__ import annotations

import math
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence

from tfl_rewrite.cli import streams
from tfl_rewrite.errors import FileAccessError

_ESCAPED = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")


def safe(text: str, *, limit: int = 120) -> str:
    """Escapes control characters, terminal escapes, bidirectional marks and broken bytes; cuts the middle."""
    # A stream by its own name, before the path of its copy is cut.
    shown = "".join(escaped(char) for char in streams.shown(text))
    if len(shown) > limit:
        head = (limit - 3) // 2
        shown = f"{shown[:head]}...{shown[len(shown) - (limit - 3 - head) :]}"
    return shown


def escaped(char: str) -> str:
    """Returns a character, or an escape sequence for one that a terminal would act on or not show."""
    # Spaces other than the plain one look like it, or like nothing.
    if unicodedata.category(char) in _ESCAPED and char != " ":
        return char.encode("unicode_escape", "backslashreplace").decode("ascii")
    return char


def size(nbytes: int) -> str:
    """Formats bytes with thousands separators."""
    return f"{nbytes:,}"


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


def print_lines(lines: Sequence[str]) -> None:
    """Prints to standard output, whatever its encoding, and whether somebody still reads it or not."""
    if sys.stdout is None or not lines:
        return  # The caller closed it, or there is nothing to say.
    text = streams.shown("\n".join(lines) + "\n")
    # A terminal of another encoding shows what it can.
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        # Nothing more can be said there; without this, Python tries again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # A reader that went away changes neither the work nor its exit code.
        if not isinstance(error, BrokenPipeError):
            raise FileAccessError(
                f"cannot write: {error.strerror or error}", file="standard output"
            ) from error
