"""``@frozen`` and ``@slotted``: dataclasses with slots that are cheap to define.

``dataclass(frozen=True, slots=True)`` compiles eight methods for every class: 0.6 ms each time that a command
starts, where this takes 0.1. Some hundred such classes took as long to define as numpy takes to load. Here
``__init__`` alone is compiled, when the first object is made (a command makes few of the classes that it
loads), and all classes share the other methods. What a class can do is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar, overload

T = TypeVar("T")

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_given: object) -> Callable[[T], T]:
        """Tells type checkers that a decorator makes dataclasses; Python has it from 3.11 on."""
        return lambda function: function


@overload
def frozen(cls: type[T], /) -> type[T]: ...


@overload
def frozen(*, kw_only: bool = False, eq: bool = True) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(field, Field))
def frozen(cls: Any = None, /, *, kw_only: bool = False, eq: bool = True) -> Any:
    """Makes a class a dataclass with slots whose fields are set once.

    Args:
        cls: The class.
        kw_only: As for ``dataclass``.
        eq: Whether two are equal, and hash the same, if all that is compared is; else they are by identity.
    """

    return _decorator(kw_only, eq, fixed=True) if cls is None else _decorator(kw_only, eq, fixed=True)(cls)


@overload
def slotted(cls: type[T], /) -> type[T]: ...


@overload
def slotted(*, kw_only: bool = False, eq: bool = True) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(field_specifiers=(field, Field))
def slotted(cls: Any = None, /, *, kw_only: bool = False, eq: bool = True) -> Any:
    """Makes a class a dataclass with slots whose fields may be set again; arguments as for :func:`frozen`.

    With ``eq`` it has no hash, as what may change has none.
    """
    return _decorator(kw_only, eq, fixed=False) if cls is None else _decorator(kw_only, eq, fixed=False)(cls)


def _decorator(kw_only: bool, eq: bool, *, fixed: bool) -> Callable[[type[Any]], type[Any]]:
    def made(given: type[Any]) -> type[Any]:
        if any("__dataclass_fields__" in vars(base) for base in given.__mro__[1:]):
            # Of two dataclasses one may call what is generated for the other.
            return dataclass(frozen=fixed, slots=True, kw_only=kw_only, eq=eq)(given)
        return _defined(given, kw_only=kw_only, eq=eq, fixed=fixed)

    return made


def _defined(given: type[Any], *, kw_only: bool, eq: bool, fixed: bool) -> type[Any]:
    own = set(vars(given))
    # Else its signature would be made as text.
    given.__doc__ = given.__doc__ or f"{given.__name__}."
    made: Any = dataclass(init=False, repr=False, eq=False, slots=True, kw_only=kw_only)(given)
    rows = fields(made)
    shared: dict[str, Any] = {"__init__": _Init(made, rows, fixed)}
    if fixed:
        shared |= {
            "__setattr__": _refused,
            "__delattr__": _refused,
            "__getstate__": _state,
            "__setstate__": _restored,
        }
    shared |= {} if "__repr__" in own else {"__repr__": _shown}
    if eq and "__eq__" not in own:
        shared |= _compared([row.name for row in rows if row.compare])
        shared |= {} if fixed else {"__hash__": None}
    for name, function in shared.items():
        setattr(made, name, function)
    made.__dataclass_params__.frozen = fixed
    return made  # type: ignore[no-any-return]


class _Init:
    """Stands for an ``__init__`` until it is asked for."""

    def __init__(self, made: type[Any], rows: tuple[Field[Any], ...], fixed: bool) -> None:
        self.given = made, rows, fixed

    def __get__(self, instance: object, _owner: type[Any]) -> Callable[..., None]:
        function = _init(*self.given)
        setattr(self.given[0], "__init__", function)  # noqa: B010 - mypy knows no __init__ that is set
        return function if instance is None else MethodType(function, instance)


def _init(made: type[Any], rows: tuple[Field[Any], ...], fixed: bool) -> Callable[..., None]:
    """Compiles ``__init__``: the one method that is called often enough."""
    names: dict[str, Any] = {"_set": object.__setattr__, "_absent": MISSING}
    taken: dict[bool, list[str]] = {False: [], True: []}
    lines = []
    for row in rows:
        name, default = row.name, f"_of_{row.name}"
        value = name
        if row.default_factory is not MISSING:
            names[default] = row.default_factory
            value = f"{default}() if {name} is _absent else {name}" if row.init else f"{default}()"
        elif row.default is not MISSING:
            names[default] = row.default
            value = name if row.init else default
        elif not row.init:
            continue
        if row.init:
            optional = "_absent" if row.default_factory is not MISSING else default
            taken[bool(row.kw_only)].append(f"{name}={optional}" if default in names else name)
        lines.append(f" _set(self,{name!r},{value})" if fixed else f" self.{name} = {value}")
    if hasattr(made, "__post_init__"):
        lines.append(" self.__post_init__()")
    arguments = ["self", *taken[False], *(["*", *taken[True]] if taken[True] else [])]
    exec(f"def __init__({','.join(arguments)}):\n" + "\n".join(lines or [" pass"]), names)
    function: Callable[..., None] = names["__init__"]
    function.__qualname__ = f"{made.__qualname__}.__init__"
    function.__annotations__ = {row.name: row.type for row in rows if row.init} | {"return": None}
    return function


def _compared(names: list[str]) -> dict[str, Any]:
    values: Callable[[Any], Any] = attrgetter(*names) if names else (lambda _self: ())

    def __eq__(self: Any, other: Any) -> Any:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(values(self))

    return {"__eq__": __eq__, "__hash__": __hash__}


def _shown(self: Any) -> str:
    said = ", ".join(f"{row.name}={getattr(self, row.name)!r}" for row in fields(self) if row.repr)
    return f"{type(self).__qualname__}({said})"


def _refused(self: Any, name: str, *_value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _state(self: Any) -> list[Any]:
    return [getattr(self, row.name) for row in fields(self)]


def _restored(self: Any, state: list[Any]) -> None:
    for row, value in zip(fields(self), state, strict=True):
        object.__setattr__(self, row.name, value)
