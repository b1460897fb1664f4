"""JSON data of dataclasses, made from their fields.

Each field is a key of the same name, in the order of the class. What differs stands beside the field::

    snr: float | None = field(default=None, metadata=shown("snr_db", made=finite()))
    tally: OutputTally | None = field(default=None, metadata=LEFT_OUT)

    @property
    @computed(after="status")
    def headline(self) -> str: ...
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import field, fields, is_dataclass
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

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
