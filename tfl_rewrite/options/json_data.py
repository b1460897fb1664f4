"""JSON data of dataclasses, made from their fields; and JSON and TOML files, read without trust in them.

Each field is a key of the same name, in the order of the class. What differs stands beside the field::

    snr: float | None = field(default=None, metadata=shown("snr_db", made=finite()))
    tally: OutputTally | None = field(default=None, metadata=LEFT_OUT)

    @property
    @computed(after="status")
    def headline(self) -> str: ...

A file is read in bounded time and memory, whoever wrote it.
"""

from __future__ import annotations

import enum
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import field, fields, is_dataclass
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from tfl_rewrite.errors import FileAccessError, FormatError, UnsupportedError, UsageError
from tfl_rewrite.options.frozen import frozen

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "json_key"
_MOST_ROWS = 20


@frozen(kw_only=True)
class Key:
    """How a field or a property stands in JSON data.

    Attributes:
        name: Of the key; that of the field if None.
        made: Makes the data of the value.
        after: A property stands behind this field or property; at the end if None.
        merged: The value is a mapping whose keys stand among those around it; nothing if it is empty or None.
        optional: The key is missing where the value is empty or None.
        left_out: It is no part of the data.
    """

    name: str | None = None
    made: Callable[[Any], Any] | None = None
    after: str | None = None
    merged: bool = False
    optional: bool = False
    left_out: bool = False


def shown(
    name: str | None = None,
    *,
    made: Callable[[Any], Any] | None = None,
    merged: bool = False,
    optional: bool = False,
) -> Mapping[str, Key]:
    """Returns the metadata of a field that does not stand in the data as it is; see :class:`Key`."""
    return MappingProxyType({_MARK: Key(name=name, made=made, merged=merged, optional=optional)})


LEFT_OUT: Mapping[str, Key] = MappingProxyType({_MARK: Key(left_out=True)})
"""The metadata of a field that is no part of the data."""


def left_out(made: Any) -> Any:
    """Returns a field of a dataclass as no part of the data."""
    return field(default=made.default, metadata={**made.metadata, **LEFT_OUT})


def computed(
    name: str | None = None,
    *,
    made: Callable[[Any], Any] | None = None,
    after: str | None = None,
    merged: bool = False,
    optional: bool = False,
) -> Callable[[F], F]:
    """Puts a property among the data; stands below ``@property``. See :class:`Key`."""
    key = Key(name=name, made=made, after=after, merged=merged, optional=optional)

    def mark(function: F) -> F:
        setattr(function, _MARK, key)
        return function

    return mark


def finite(digits: int | None = None) -> Callable[[float | None], float | None]:
    """Returns what makes a number that is infinite or NaN into None, and rounds the others."""

    def made(value: float | None) -> float | None:
        if value is None or not math.isfinite(value):
            return None
        return value if digits is None else round(value, digits)

    return made


def spread(*names: str) -> Callable[[Any], dict[str, Any]]:
    """Returns what gives each value of a tuple a key, to be merged; with None for the tuple, each is None."""

    def made(values: Any) -> dict[str, Any]:
        return dict(zip(names, values or (None,) * len(names), strict=True))

    return made


class JsonData:
    """A dataclass that can be written as JSON.

    Attributes:
        schema: Counts changes of the form; 0 for what only stands inside other data.
    """

    __slots__ = ()
    schema: ClassVar[int] = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data.

        What JSON cannot say (infinite, NaN) becomes a string such as ``inf``. The number ``schema`` counts
        changes of the form.
        """
        found: dict[str, Any] = {"schema": self.schema} if self.schema else {}
        for attribute, key in _keys(type(self)):
            value = getattr(self, attribute)
            data = json_data(value if key.made is None else key.made(value))
            if key.merged:
                found |= data or {}
            elif data or not key.optional:
                found[key.name or attribute] = data
        return found

    def _repr_html_(self) -> str:
        """Returns the data as a table, which a notebook shows; long lists are cut with a count."""
        import html

        return f"<strong>{html.escape(type(self).__name__)}</strong>{_html(self.to_dict())}"


def json_data(value: Any) -> Any:
    """Returns a value as JSON can say it: infinite and NaN as text, tuples as lists, dataclasses by field."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        return {item.name: json_data(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: json_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_data(item) for item in value]
    return value


def _html(data: Any) -> str:
    """JSON data as HTML: mappings and lists of mappings as tables, other lists by commas."""
    if isinstance(data, Mapping):
        rows = [[f"<th>{_escaped(key)}</th>", _cell(value)] for key, value in data.items()]
        return _table(rows) if rows else ""
    if not isinstance(data, list):
        return "" if data is None else _escaped(f"{data:,}" if type(data) is int else data)
    kept, more = data[:_MOST_ROWS], max(len(data) - _MOST_ROWS, 0)
    if kept and all(isinstance(item, Mapping) for item in kept):
        names = list(dict.fromkeys(name for item in kept for name in item))
        rows = [[f"<th>{_escaped(name)}</th>" for name in names]]
        rows += [[_cell(item.get(name)) for name in names] for item in kept]
        text = _table(rows)
    else:
        text = ", ".join(map(_html, kept))
    return f"{text} and {more:,} more" if more else text


def _escaped(value: Any) -> str:
    """Text that is safe in a page: names come from files, and may hold anything."""
    safe = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(value))
    import html

    return html.escape("".join(safe))


def _cell(data: Any) -> str:
    return f"<td>{_html(data)}</td>"


def _table(rows: list[list[str]]) -> str:
    return "<table>" + "".join(f"<tr>{''.join(row)}</tr>" for row in rows) + "</table>"


def _keys(kind: type[Any]) -> tuple[tuple[str, Key], ...]:
    """The attributes of a class that are data, in their order."""
    rows = {item.name: item.metadata.get(_MARK, Key()) for item in fields(kind)}
    order = list(rows)
    for owner in reversed(kind.__mro__):
        for name, item in vars(owner).items():
            key = getattr(getattr(item, "fget", None) or getattr(item, "func", None), _MARK, None)
            if key is None:
                continue
            rows[name] = key
            before = [at for at, other in enumerate(order) if key.after in (None, other, rows[other].after)]
            order.insert(before[-1] + 1, name)
    return tuple((name, rows[name]) for name in order if not rows[name].left_out)


@frozen(kw_only=True)
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


MOST_NBYTES = 32 << 20
MOST_PARTS = 200
"""Of a key between dots; reading a key takes time that grows with their square."""

_PART = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*"""
# Not in the middle of a word: the time would grow with the square of its length.
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-]){_PART}(?:\.[ \t]*{_PART}){{{MOST_PARTS}}}")
# TOML's own bound: what does not fit into 64 bits "cannot be represented losslessly".
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
_TOO_LONG = "holds an integer of more than 64 bits"


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file.

    Raises:
        FileAccessError: It cannot be read.
        UsageError: It is not TOML, or holds a number of more than 64 bits, or is too large or too deep.
    """
    # Most programs read none.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        with open(path, "rb") as file:
            data = file.read(MOST_NBYTES + 1)
    except OSError as error:
        raise FileAccessError(f"cannot read: {error.strerror or error}", file=path) from error
    if len(data) > MOST_NBYTES:
        raise UsageError(f"is not TOML of this program: it has more than {MOST_NBYTES} bytes", file=path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"is not TOML: not UTF-8 text: {error.reason}", file=path) from error
    if _LONG_KEY.search(text) is not None:
        raise UsageError(f"has a key of more than {MOST_PARTS} parts", file=path)
    try:
        content: dict[str, Any] = tomllib.loads(text.replace("\r\n", "\n"))
    except RecursionError:
        raise UsageError("is not TOML: it nests too deep", file=path) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"is not TOML: {error}", file=path) from error
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
