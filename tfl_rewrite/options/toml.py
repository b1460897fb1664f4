"""TOML files, whoever wrote them: read in bounded time, with no number that others would stumble over."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

from tfl_rewrite.errors import FileAccessError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_NBYTES = 32 << 20
MOST_PARTS = 200
"""Of a key between dots; reading a key takes time that grows with their square."""

_PART = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*"""
_LONG_KEY = re.compile(rf"{_PART}(?:\.[ \t]*{_PART}){{{MOST_PARTS}}}")
# TOML's own bound: what does not fit into 64 bits "cannot be represented losslessly".
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_TOO_LONG = "holds an integer of more than 64 bits"


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file.

    Raises:
        FileAccessError: It cannot be read.
        UsageError: It is no TOML, or holds a number of more than 64 bits, or is too large or too deep.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_NBYTES + 1)
    except OSError as error:
        raise FileAccessError(f"cannot read: {error.strerror or error}", file=path) from error
    if len(data) > MOST_NBYTES:
        raise UsageError(f"is no TOML file of ours: it has more than {MOST_NBYTES} bytes", file=path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"is no TOML: not UTF-8 text: {error.reason}", file=path) from error
    if _LONG_KEY.search(text) is not None:
        raise UsageError(f"has a key of more than {MOST_PARTS} parts", file=path)
    try:
        content: dict[str, Any] = tomllib.loads(text.replace("\r\n", "\n"))
    except RecursionError:
        raise UsageError("is no TOML: it nests too deep", file=path) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"is no TOML: {error}", file=path) from error
    except ValueError as error:
        # Of so many digits that Python does not read it.
        raise UsageError(_TOO_LONG, file=path) from error
    _check_numbers(content, path)
    return content


def _check_numbers(content: dict[str, Any], path: str | os.PathLike[str]) -> None:
    waiting: list[tuple[str, Any]] = list(content.items())
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(name, item) for item in value]
        elif isinstance(value, int) and not _LEAST <= value <= _MOST:
            raise UsageError(_TOO_LONG, file=path, where=name)
