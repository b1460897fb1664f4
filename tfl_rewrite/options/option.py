"""An option is a field of a dataclass: of a pass, of the judging, of a search, of a command.

From the field are made: the row of the command line, ``--pass name:option=value``, the TOML key, the
keyword in Python, and the tables of the docs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, field, fields, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tfl_rewrite.errors import UnsupportedError, UsageError, check_number, near_names
from tfl_rewrite.options.frozen import frozen

Made = TypeVar("Made")
Held = TypeVar("Held")
Given = TypeVar("Given")

_LONGEST_SHOWN = 80


_UNITS = {"": 1, "B": 1, "K": 1000, "KB": 1000, "M": 1000**2, "MB": 1000**2, "G": 1000**3, "GB": 1000**3}
_UNITS |= {"T": 1000**4, "TB": 1000**4}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)")


@frozen
class Kind:
    """A kind of value.

    Attributes:
        read: Returns the value that a text stands for; raises ``ValueError`` if it stands for none.
        take: Returns a Python or TOML value in the form that the field has; raises ``ValueError`` likewise.
        many: Whether it is a list of values, given one by one on the command line.
        check: Raises a ``UsageError`` for a value that is not taken; what it says follows the option's name.
    """

    read: Callable[[str], Any]
    take: Callable[[Any], Any]
    many: bool = False
    check: Callable[[Any], object] | None = None

    def checked_by(self, check: Callable[[Any], object]) -> Kind:
        """Returns the kind of those values that a check lets pass."""
        return replace(self, check=check)


def nbytes_of(size: int | str) -> int:
    """Reads an amount of bytes: a number, or text such as ``4GB`` (decimal) or ``512MiB`` (binary).

    Raises:
        ValueError: It is none.
    """
    found = _SIZE.fullmatch(str(size).strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if isinstance(size, bool) or found is None or unit is None:
        raise ValueError("is not a number of bytes, such as 500000, 4MB or 512KiB")
    return int(float(found[1]) * unit)


def _instance(what: str, *types: type) -> Callable[[Any], Any]:
    """Returns what takes values of some types; True and False are no numbers."""

    def take(value: Any) -> Any:
        if isinstance(value, types) and (bool in types or not isinstance(value, bool)):
            return value
        raise ValueError(f"is {what}")

    return take


def _parsed(what: str, made: Callable[[str], Any]) -> Callable[[str], Any]:
    """Returns what reads texts as ``made`` does."""

    def read(text: str) -> Any:
        try:
            return made(text)
        except (ValueError, KeyError):
            raise ValueError(f"is {what}") from None

    return read


_text = _instance("no text", str)
_real = _instance("no number", float, int)


def _number(value: Any) -> float:
    return float(_real(value))


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
        raise ValueError("is not a list of texts") from None


def _range(value: Any) -> tuple[float, float]:
    try:
        low, high = value
        return _number(low), _number(high)
    except (TypeError, ValueError):
        raise ValueError("is not a list of two numbers") from None


def _pair(text: str) -> tuple[float, float]:
    low, high = (float(part) for part in text.split(","))
    return low, high


def split(text: str, sign: str) -> list[str]:
    """Splits at a sign; the sign twice is the sign itself."""
    parts = re.split(f"(?<!{re.escape(sign)}){re.escape(sign)}(?!{re.escape(sign)})", text)
    return [part.replace(2 * sign, sign) for part in parts]


TEXT = Kind(str, _text)
WHOLE = Kind(_parsed("no whole number", int), _instance("no whole number", int))
NUMBER = Kind(_parsed("no number", float), _number)
SWITCH = Kind(
    _parsed("neither yes nor no", {"yes": True, "no": False}.__getitem__),
    _instance("neither true nor false", bool),
)
TEXTS = Kind(lambda text: tuple(split(text, "+")), _texts, many=True)
PATH = Kind(str, _path)
PICTURES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif"])
SOUNDS = frozenset([".wav", ".flac", ".ogg"])
SAMPLES = PICTURES | SOUNDS | {".npz"}
"""By what the names of files with real inputs end; all others in a folder of them are no inputs."""
PATHS = Kind(TEXTS.read, _paths, many=True)
RANGE = Kind(_parsed("not LO,HI: two numbers with a comma between them", _pair), _range)
NBYTES = Kind(nbytes_of, nbytes_of)

BY_ANNOTATION = {
    "str": TEXT,
    "int": WHOLE,
    "float": NUMBER,
    "bool": SWITCH,
    "tuple[str, ...]": TEXTS,
    "tuple[float, float]": RANGE,
}
"""The kind of a field that names none, by its annotation, without ``| None``."""


class Role(Enum):
    """What is done with the files that an option names; :mod:`tfl_rewrite.cli.files` checks it."""

    READ = "reads them, or those of the folder"
    READ_MAP = "reads it, if it is a TOML file"
    READ_PASSES = "reads those that options of passes name"
    READ_RUNTIME = "starts it, if it is a path"
    WRITE = "writes it"
    OUT = "writes it, maybe in place of IN"
    KEEP = "reads it and writes it, if it is of its own making"
    CALIBRATED = "writes it where inputs are given, else reads it"
    FOLDER = "writes into it"


@frozen(kw_only=True)
class Option:
    """All that is known of one option.

    Attributes:
        name: Of the field, and in Python and TOML; on the command line with dashes.
        help: What it does, for the command line and the docs.
        kind: Which values it takes.
        default: Its value where it is not given.
        nullable: Whether None is a value.
        metavar: What stands for its value in the help.
        choices: Its values, where those are few.
        member: The enumeration whose members they become, if any.
        bounds: Least and largest value of a number.
        role: What is done with the files that it names.
        flags: Its names on the command line; one without dashes is an argument that stands alone.
    """

    name: str
    help: str
    kind: Kind
    default: Any
    nullable: bool
    metavar: str | None
    choices: tuple[str, ...]
    member: type[Enum] | None
    bounds: tuple[float, float] | None
    role: Role | None
    flags: tuple[str, ...]

    @property
    def text(self) -> str:
        """The help, with the default where it does not tell it."""
        plain = self.default is None or isinstance(self.default, bool) or self.default in ((), "")
        if plain or "default" in self.help:
            return self.help
        shown = self.default.value if isinstance(self.default, Enum) else self.default
        told = f"{shown:g}" if isinstance(shown, float) else shown
        return f"{self.help} (default: {told})"

    def read(self, text: str) -> Any:
        """Returns the value that a text stands for.

        Raises:
            ValueError: It stands for none; says so, to go behind the text.
            UsageError: It is out of bounds, or none of the choices.
        """
        return self.checked(self.kind.read(text))

    def take(self, value: Any, where: str = "") -> Any:
        """Returns a Python or TOML value in the form that the field has.

        Args:
            value: What was given.
            where: What the message begins with, such as the name of a file.

        Raises:
            UsageError: It is of another kind, out of bounds, or none of the choices.
        """
        if value is None and self.nullable:
            return None
        with naming(where and f"{where}:"):
            try:
                return self.checked(self.kind.take(value))
            except ValueError as error:
                raise UsageError(f"{self.name} = {value!r:.{_LONGEST_SHOWN}} {error}") from None

    def given(self, value: Any) -> None:
        """Refuses a value of the command line, in the words of the parser.

        Raises:
            UsageError: It is of another kind, out of bounds, or none of the choices.
        """
        argument = f"argument {self.flags[0]}:"
        try:
            self.checked(self.kind.take(value), argument, f"{argument} {self.metavar or 'the value'}")
        except ValueError as error:
            raise UsageError(f"{argument} {value!r:.{_LONGEST_SHOWN}} {error}") from None
        except UsageError as error:
            what = error.what if error.what.startswith(argument) else f"{argument} {error.what}"
            raise UsageError(what, remedy=error.remedy) from None

    def checked(self, value: Any, what: str = "", number: str = "") -> Any:
        """Returns a value of its kind.

        Args:
            value: The value.
            what: What a message calls the option, and ``number`` what is out of bounds; by default its name.

        Raises:
            UsageError: It is out of bounds, none of the choices, or refused by the check.
        """
        if self.choices:
            for item in value if self.kind.many else [value]:
                if item not in self.choices:
                    raise unknown(what or self.name.replace("_", "-"), item, self.choices)
        if self.bounds is not None:
            check_number(number or self.name, value, self.bounds)
        if self.kind.check is not None:
            with naming(what or f"{self.name}:"):
                self.kind.check(value)
        return value if self.member is None else self.member(value)


class Taken(Generic[Held, Given]):
    """For type checkers: a field that holds one type and may be given as another, such as the text of it."""

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: Any) -> Held: ...

        def __set__(self, instance: object, value: Held | Given) -> None: ...


def option(
    default: Any,
    help: str,
    *,
    kind: Kind | None = None,
    metavar: str | None = None,
    choices: Iterable[str | Enum] = (),
    bounds: tuple[float, float] | None = None,
    role: Role | None = None,
    flags: tuple[str, ...] = (),
) -> Any:
    """Returns a field of a dataclass that is an option.

    Args:
        default: Its value where it is not given.
        help: What it does: one phrase, or a few sentences, that begins in lower case.
        kind: Which values it takes; by default as its annotation says.
        metavar: What stands for its value in the help.
        choices: Its values, where those are few; members of an enumeration are what texts become.
        bounds: Least and largest value of a number.
        role: What is done with the files that it names.
        flags: Its names on the command line; by default its own, with dashes, and ``--no-`` before that of a
            switch that is on.

    Example:
        >>> from tfl_rewrite.editing import option
        >>> from tfl_rewrite.passes import Dedup
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, kw_only=True, slots=True)
        ... class Clamp(Dedup):
        ...     '''Limits constants.'''
        ...
        ...     most: float = option(6.0, "largest value", metavar="X", bounds=(0, 1e6))
        >>> Clamp(most=-1)
        Traceback (most recent call last):
        tfl_rewrite.errors.UsageError: most is -1.0; give 0 or more, 1,000,000.0 at most
    """
    values = tuple(choices)
    facts = {
        "help": help,
        "kind": kind,
        "metavar": metavar,
        "choices": tuple(item.value if isinstance(item, Enum) else item for item in values),
        "member": next((type(item) for item in values if isinstance(item, Enum)), None),
        "bounds": bounds,
        "role": role,
        "flags": flags,
    }
    return field(default=default, metadata={"option": facts})


def option_of(owner: type[Any], name: str, help: str) -> Any:
    """Returns a field that is an option of another dataclass, with a help of its own."""
    made = next(item for item in fields(owner) if item.name == name)
    return field(default=made.default, metadata={"option": {**made.metadata["option"], "help": help}})


def options_within(made: type) -> Any:
    """Returns a field that holds another dataclass, whose options count as those of the outer one."""
    return field(default_factory=made, metadata={"options": made})


@functools.cache
def options_of(made: type[Any]) -> tuple[Option, ...]:
    """Returns the options of a dataclass, in the order of its fields."""
    found: list[Option] = []
    for item in fields(made):
        if "options" in item.metadata:
            found += options_of(item.metadata["options"])
        elif "option" in item.metadata:
            found.append(_option(item))
    return tuple(found)


def _option(item: Field[Any]) -> Option:
    facts = dict(item.metadata["option"])
    # A name where annotations are put off, which they are in most modules; a type elsewhere.
    annotation = item.type.__name__ if type(item.type) is type else str(item.type)
    named = "str" if facts["member"] is not None else annotation.removesuffix(" | None")
    kind = facts.pop("kind") or BY_ANNOTATION[named]
    flags = facts.pop("flags")
    if not flags:
        negation = "no-" if kind is SWITCH and item.default else ""
        flags = (f"--{negation}{item.name.replace('_', '-')}",)
    assert item.default is not MISSING
    nullable = annotation.endswith(" | None")
    return Option(name=item.name, kind=kind, default=item.default, nullable=nullable, flags=flags, **facts)


def made_with(made: type[Made], values: Mapping[str, Any]) -> Made:
    """Makes a dataclass of values of its options; what is for others is left out.

    Args:
        made: The dataclass.
        values: By name of the option, those of dataclasses within it too.
    """
    arguments: dict[str, Any] = {}
    for item in fields(made):  # type: ignore[arg-type]
        if "options" in item.metadata:
            arguments[item.name] = made_with(item.metadata["options"], values)
        elif "option" in item.metadata and item.name in values:
            arguments[item.name] = values[item.name]
    return made(**arguments)


def values_of(holder: Any) -> dict[str, Any]:
    """Returns the values of the options of a dataclass, by name; the other way round of :func:`made_with`."""
    found: dict[str, Any] = {}
    for item in fields(holder):
        value = getattr(holder, item.name)
        if "options" in item.metadata:
            found |= values_of(value)
        elif "option" in item.metadata:
            found[item.name] = value
    return found


def check_options(holder: Any) -> None:
    """Brings the options of a dataclass into the form of their kind; for its ``__post_init__``.

    Raises:
        UsageError: A value is of another kind, out of bounds, or none of the choices.
    """
    made: Any = type(holder)
    rows = {row.name: row for row in options_of(made)}
    for item in fields(made):
        if "option" in item.metadata:
            object.__setattr__(holder, item.name, rows[item.name].take(getattr(holder, item.name)))


def read_options(text: str, options: Iterable[Option], owner: str) -> dict[str, Any]:
    """Reads ``name=value,name=value``.

    Args:
        text: Dashes in names may be underscores. Items of a list stand between plus signs. A comma or a plus
            sign in a value is written twice.
        options: Those that exist.
        owner: Whose options they are, for messages.

    Raises:
        UsageError: A name is unknown, or a value does not fit.
    """
    rows = list(options)
    known = {item.name: item for item in rows}
    # One may be called otherwise on the command line.
    shorter = {
        flag[2:].replace("-", "_"): row for row in rows if row.kind is not SWITCH for flag in row.flags
    }
    found: dict[str, Any] = {}
    for part in filter(None, split(text, ",")):
        name, sign, value = part.partition("=")
        key = name.strip().replace("-", "_")
        row = known.get(key) or shorter.get(key)
        if row is None:
            raise unknown(f"{owner}: option", name.strip(), [other.replace("_", "-") for other in known])
        if not sign:
            raise UsageError(f"{part!r} of {owner} has no value", remedy=f"write {name.strip()}=VALUE")
        with naming(f"{owner}:"):
            try:
                found[row.name] = row.read(value)
            except ValueError as error:
                raise UsageError(f"{name} = {value!r} {error}") from None
    return found


def take_options(values: Mapping[str, Any], options: Iterable[Option], where: str) -> dict[str, Any]:
    """Checks values by name of the option, such as those of a TOML table.

    Args:
        values: As they were read.
        options: Those that exist.
        where: What a message begins with, such as the name of the file.

    Raises:
        UsageError: A name is unknown, or a value does not fit.
    """
    known = {item.name: item for item in options}
    for name in values:
        if name not in known:
            raise unknown(f"{where}: option", name, known)
    return {name: known[name].take(value, where) for name, value in values.items()}


@contextlib.contextmanager
def naming(option: str) -> Iterator[None]:
    """Begins what an error says with the option that it is about, such as ``--input a=b:``; empty: nothing.

    What is done with a value of an option stands under it where the model is what refuses that value.
    """
    try:
        yield
    except (UsageError, UnsupportedError) as error:
        error.what = f"{option} {error.what}".lstrip()
        raise


def unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    """Returns the error of a name that does not exist: it names the nearest one, and all."""
    names = list(known)
    near = near_names(name.lower().replace("_", "-"), names, count=1)
    near = near or near_names(name.lower(), names, count=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    shown = f"{name!r:.{_LONGEST_SHOWN}}"
    remedy = f"{meant}use one of {', '.join(names)}" if names else "there is none"
    return UsageError(f"{what} {shown} is unknown", remedy=remedy)
