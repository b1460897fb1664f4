"""A file that gets shorter while it is mapped: one line instead of a death by SIGBUS.

Reading past the new end of a mapped file is a fault of the processor, which Python cannot turn into an
exception: its own handlers run later, and the instruction would fault again and again. So the C library is
given a handler that says what happened and ends the process at once. Nothing is lost by that: outputs have no
name yet, and temporary folders are removed by the next run.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Sequence

EXIT_CODE = 2

# The C library keeps a bare pointer to it.
_kept: object = None


def watch(paths: Sequence[str]) -> None:
    """From now on, a fault while one of these files is read ends the process with one line.

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
            os._exit(EXIT_CODE)

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
