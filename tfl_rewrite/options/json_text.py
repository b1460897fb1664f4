"""JSON files of our own formats, whoever wrote them: read in bounded memory, and nothing in them trusted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tfl_rewrite.errors import FormatError, UnsupportedError


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
