"""Kinds of values that options take: which text stands for one, and which Python and TOML values are one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_UNITS = {"": 1, "B": 1, "K": 1000, "KB": 1000, "M": 1000**2, "MB": 1000**2, "G": 1000**3, "GB": 1000**3}
_UNITS |= {"T": 1000**4, "TB": 1000**4}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value.

    Attributes:
        what: What a value is, with its article, for messages.
        read: Returns the value that a text stands for; raises ``ValueError`` if it stands for none.
        take: Returns a Python or TOML value in the form that the field has; raises ``ValueError`` likewise.
        many: Whether it is a list of values, given one by one on the command line.
    """

    what: str
    read: Callable[[str], Any]
    take: Callable[[Any], Any]
    many: bool = False


def nbytes_of(size: int | str) -> int:
    """Reads an amount of bytes: a number, or text such as ``4GB`` (decimal) or ``512MiB`` (binary).

    Raises:
        ValueError: It is none.
    """
    found = _SIZE.fullmatch(str(size).strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if isinstance(size, bool) or found is None or unit is None:
        raise ValueError("is no amount of bytes, such as 500000, 4MB or 512KiB")
    return int(float(found[1]) * unit)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is no text")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("is no whole number")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError("is no number")
    return float(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    """A text alone is one of them, not its letters."""
    return tuple(_text(item) for item in _items(value))


def _paths(value: Any) -> tuple[str | os.PathLike[str], ...]:
    return tuple(item if isinstance(item, os.PathLike) else _text(item) for item in _items(value))


def _path(value: Any) -> str | os.PathLike[str]:
    return value if isinstance(value, os.PathLike) else _text(value)


def listed(value: Any) -> tuple[str, ...]:
    """Returns the texts of a list, or those between the commas of one text."""
    return tuple(filter(None, value.split(","))) if isinstance(value, str) else _texts(value)


def _items(value: Any) -> list[Any]:
    if isinstance(value, (str, os.PathLike)):
        return [value]
    try:
        return list(value)
    except TypeError:
        raise ValueError("is no list of texts") from None


def _range(value: Any) -> tuple[float, float]:
    try:
        low, high = value
        return _number(low), _number(high)
    except (TypeError, ValueError):
        raise ValueError("is no list of two numbers") from None


def _read_whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("is no whole number") from None


def _read_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("is no number") from None


def _read_switch(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("is neither yes nor no")
    return text == "yes"


def _read_texts(text: str) -> tuple[str, ...]:
    return tuple(split(text, "+"))


def _read_range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError("is not LO,HI: two numbers with a comma between them") from None
    return low, high


def split(text: str, sign: str) -> list[str]:
    """Splits at a sign; the sign twice is the sign itself."""
    parts = re.split(f"(?<!{re.escape(sign)}){re.escape(sign)}(?!{re.escape(sign)})", text)
    return [part.replace(2 * sign, sign) for part in parts]


TEXT = Kind("a text", str, _text)
WHOLE = Kind("a whole number", _read_whole, _whole)
NUMBER = Kind("a number", _read_number, _number)
SWITCH = Kind("true or false", _read_switch, _switch)
TEXTS = Kind("a list of texts", _read_texts, _texts, many=True)
PATH = Kind("a path", str, _path)
PATHS = Kind("a list of paths", _read_texts, _paths, many=True)
RANGE = Kind("a list of two numbers", _read_range, _range)
NBYTES = Kind("an amount of bytes", nbytes_of, nbytes_of)

BY_ANNOTATION = {
    "str": TEXT,
    "int": WHOLE,
    "float": NUMBER,
    "bool": SWITCH,
    "tuple[str, ...]": TEXTS,
    "tuple[float, float]": RANGE,
}
"""The kind of a field that names none, by its annotation, without ``| None``."""
