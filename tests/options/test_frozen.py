"""Classes of ``@frozen`` and ``@slotted`` against the same ones of the standard library."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import KW_ONLY, FrozenInstanceError, asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, ClassVar

import pytest

from tfl_rewrite.options.frozen import frozen, slotted


class Point:
    """A point."""

    kind: ClassVar[str] = "point"
    x: int
    y: float = 2.5
    tags: list[str] = field(default_factory=list)
    seen: list[int] = field(default_factory=list, compare=False, repr=False)
    _: KW_ONLY
    name: str = "p"
    total: float = field(init=False)
    rank: int = field(default=7, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", self.x + self.y)


class Named:
    """One that says itself who it is."""

    name: str
    other: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.name == other.name

    def __hash__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return self.name


class Empty:
    """Nothing."""


def copied(cls: type[Any]) -> type[Any]:
    return type(cls.__name__, (), {key: value for key, value in vars(cls).items() if key[:6] != "__dict"})


Ours: Any = frozen(copied(Point))
Theirs: Any = dataclass(frozen=True, slots=True)(copied(Point))
for made in (Ours, Theirs):
    made.__qualname__ = made.__name__


@pytest.mark.parametrize(
    "make",
    [
        lambda cls: cls(1),
        lambda cls: cls(1, 3.0, ["a"], [2], name="q"),
        lambda cls: cls(x=1, tags=["b"]),
        lambda cls: replace(cls(1), y=0.5),
        lambda cls: cls(),
        lambda cls: cls(1, 2, [], [], "q"),
        lambda cls: cls(1, total=3),
        lambda cls: replace(cls(1), total=3),
    ],
)
def test_they_are_made_alike(make: Any) -> None:
    try:
        expected = make(Theirs)
    except (TypeError, ValueError) as error:
        with pytest.raises(type(error)):
            make(Ours)
        return
    made = make(Ours)
    assert repr(made) == repr(expected) and asdict(made) == asdict(expected)
    assert made == make(Ours) and made != expected
    assert copy.deepcopy(made) == made and copy.copy(made).tags is made.tags


def test_fields_and_signatures_are_the_same() -> None:
    facts = [
        [(row.name, row.init, row.repr, row.compare, row.kw_only, row.type) for row in fields(cls)]
        for cls in (Ours, Theirs)
    ]
    assert facts[0] == facts[1] and is_dataclass(Ours)
    names = [
        [(item.name, item.kind, item.annotation) for item in inspect.signature(cls).parameters.values()]
        for cls in (Ours, Theirs)
    ]
    assert names[0] == names[1]
    assert Ours.__slots__ == Theirs.__slots__ and Ours.__match_args__ == Theirs.__match_args__


def test_what_is_compared_decides_and_hashes() -> None:
    assert Ours(1, seen=[1]) == Ours(1, seen=[2]) != Ours(2)
    pair: Any = frozen(copied(Named))
    assert pair("a", 1) == pair("a", 2) and hash(pair("a", 1)) == 1 and repr(pair("a", 1)) == "a"

    @frozen
    class Key:
        """A key."""

        a: int
        b: str = ""

    @frozen(eq=False)
    class Same:
        """By identity."""

        a: int

    assert len({Key(1), Key(1), Key(1, "c")}) == 2
    one = Same(1)
    assert one == one and one != Same(1) and len({one, Same(1)}) == 2
    nothing: Any = frozen(copied(Empty))
    assert nothing() == nothing() and hash(nothing()) == hash(nothing()) and repr(nothing()) == "Empty()"


def test_nothing_is_set_or_added_afterwards() -> None:
    made = Ours(1)
    for change in (
        lambda: setattr(made, "x", 2),
        lambda: setattr(made, "new", 2),
        lambda: delattr(made, "x"),
    ):
        with pytest.raises(FrozenInstanceError):
            change()
    assert made.x == 1


@frozen(kw_only=True)
class Kept:
    """One that other processes get."""

    a: int
    b: tuple[int, ...] = ()


@frozen
class Grown(Kept):
    """Another with a field more."""

    c: int = 3


@dataclass(frozen=True)
class Foreign(Kept):
    """Of somebody who uses the standard library."""

    d: int = 4


def test_what_may_change_is_as_the_standard_library_makes_it() -> None:
    ours: Any = slotted(copied(Point))
    theirs: Any = dataclass(slots=True)(copied(Point))
    for cls in (ours, theirs):
        cls.__qualname__ = cls.__name__
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    made, expected = ours(1, tags=["b"], name="q"), theirs(1, tags=["b"], name="q")
    for one in (made, expected):
        one.x = 5
        del one.y
        one.y = 0.5
        with pytest.raises(AttributeError):
            one.new = 1
        with pytest.raises(TypeError):
            hash(one)
    assert repr(made) == repr(expected) and asdict(made) == asdict(expected)
    assert made == copy.deepcopy(made) != ours(1) and replace(made, name="r").name == "r"
    assert ours.__slots__ == theirs.__slots__ and not ours.__dataclass_params__.frozen
    same: Any = slotted(eq=False)(copied(Point))
    assert len({same(1), same(1)}) == 2


def test_the_first_object_is_made_like_the_others() -> None:
    for make in (frozen, slotted):
        cls: Any = make(copied(Point))
        heir = type("Heir", (cls,), {"__slots__": ()})
        assert heir(1, name="h").name == "h" and heir(2).x == cls(2).x == 2


def test_they_go_to_other_processes_and_have_heirs() -> None:
    for made in (Kept(a=1, b=(2,)), Grown(5, a=1), Foreign(6, a=1)):
        assert pickle.loads(pickle.dumps(made)) == made
        with pytest.raises(FrozenInstanceError):
            made.a = 2  # type: ignore[misc]
    assert Grown(5, a=1).c == 5 and Foreign(6, a=1).d == 6
    with pytest.raises(TypeError):
        Kept(1)  # type: ignore[misc]
