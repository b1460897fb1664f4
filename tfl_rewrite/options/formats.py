"""JSON and TOML files, whoever wrote them: read in bounded time and memory, and nothing in them trusted."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from typing import Any

from tfl_rewrite.errors import FileAccessError, FormatError, UnsupportedError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonFormat:
    """One format: an object with the keys ``format`` and ``version`` among others.

    Attributes:
        name: Which ``format`` holds.
        version: The newest that this program reads.
        what: What such a file is called, such as ``a manifest``.
        most_nbytes: A larger file is refused.
        remedy: What to do where a file is none.
    """

    name: str
    version: int
    what: str
    most_nbytes: int
    remedy: str

    def parse(self, data: bytes) -> dict[str, Any]:
        """Returns the object of a file; what else is in it is not checked.

        Raises:
            FormatError: It is no JSON (``NaN`` and ``Infinity`` are none), too long, or of no such format.
            UnsupportedError: A newer version of the format.
        """
        if len(data) > self.most_nbytes:
            raise self.too_long()
        try:
            found = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"not {self.what}: {_why(error)}", remedy=self.remedy) from None
        if not isinstance(found, dict) or found.get("format") != self.name:
            raise FormatError(f'not {self.what}: "format" is not {self.name!r}', remedy=self.remedy)
        version = found.get("version")
        if type(version) is not int or version < 1:
            raise FormatError("is not a version number", where="version")
        if version > self.version:
            noun = self.what.removeprefix("a ")
            raise UnsupportedError(
                f"{noun} version {version} is newer than this program's {self.version}",
                remedy="use a newer tfl-rewrite",
            )
        return found

    def too_long(self, file: str | None = None) -> FormatError:
        """Returns the error about a file of more bytes than one may have."""
        text = f"{self.what} of over {self.most_nbytes} bytes"
        return FormatError(text, file=file, remedy=self.remedy)


class _NoJsonError(ValueError):
    """What Python reads as JSON, and is none."""


def _no_constant(text: str) -> None:
    raise _NoJsonError(f"{text} is not JSON")


def _why(error: ValueError | RecursionError) -> str:
    """Says in words why a text is no JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"no UTF-8 text at byte {error.start}"
    if isinstance(error, RecursionError):
        return "it nests too deep"
    return str(error) if isinstance(error, _NoJsonError) else "it holds a number of too many digits"


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
