"""JSON data of dataclasses: keys, their order, and what JSON cannot say."""

from __future__ import annotations

import enum
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tfl_rewrite.errors import UsageError
from tfl_rewrite.options.json_data import (
    LEFT_OUT,
    MOST_PARTS,
    JsonData,
    computed,
    finite,
    json_data,
    read_toml,
    shown,
    spread,
)


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Point:
    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Small(JsonData):
    ratio: float | None = field(default=None, metadata=shown("ratio_db", made=finite(2)))
    facts: dict[str, Any] = field(default_factory=dict, metadata=shown(merged=True))


@dataclass(kw_only=True)
class Large(JsonData):
    schema: ClassVar[int] = 3
    name: str = field(metadata=shown("tensor"))
    secret: int = field(default=1, metadata=LEFT_OUT)
    colour: Colour = Colour.RED
    sizes: tuple[int, int] | None = field(
        default=None, metadata=shown(merged=True, made=spread("old", "new"))
    )
    notes: tuple[str, ...] = field(default=(), metadata=shown(optional=True))
    parts: tuple[Small, ...] = ()
    place: Point | None = None

    @property
    @computed(after="name")
    def first(self) -> str:
        return "one"

    @property
    @computed(after="name")
    def second(self) -> str:
        return "two"

    @cached_property
    @computed("count", made=len)
    def items(self) -> list[int]:
        return [1, 2, 3]

    @property
    def hidden(self) -> str:
        return "not there"


def test_keys_stand_in_the_order_of_the_class() -> None:
    keys = ["schema", "tensor", "first", "second", "colour", "old", "new", "parts", "place", "count"]
    assert list(Large(name="a").to_dict()) == keys


def test_values() -> None:
    parts = (Small(ratio=1.2345, facts={"a": (1, 2)}), Small(ratio=math.inf), Small())
    made = Large(name="a", sizes=(4, 5), notes=("x",), parts=parts, place=Point(math.nan, -math.inf))
    data = made.to_dict()
    assert data["schema"] == 3 and data["tensor"] == "a" and data["colour"] == "red" and data["count"] == 3
    assert (data["old"], data["new"], data["notes"]) == (4, 5, ["x"])
    assert data["parts"] == [{"ratio_db": 1.23, "a": [1, 2]}, {"ratio_db": None}, {"ratio_db": None}]
    assert data["place"] == {"x": "nan", "y": "-inf"}
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_none_keeps_the_keys_of_a_tuple() -> None:
    data = Large(name="a").to_dict()
    assert data["old"] is None and data["new"] is None and "notes" not in data


def test_a_subclass_adds_its_keys_and_may_replace_a_property() -> None:
    @dataclass(kw_only=True)
    class Larger(Large):
        extra: int = 7

        @property
        @computed("premier", after="name")
        def first(self) -> str:
            return "uno"

    data = Larger(name="a").to_dict()
    assert (data["premier"], data["extra"]) == ("uno", 7) and "first" not in data


def test_what_has_a_form_of_its_own_keeps_it() -> None:
    class Own:
        def to_dict(self) -> dict[str, int]:
            return {"mine": 1}

    assert json_data({"a": [Own()]}) == {"a": [{"mine": 1}]}


def test_rounding_is_left_out_where_no_digits_are_named() -> None:
    assert finite()(1.23456) == 1.23456 and finite()(math.nan) is None and finite(1)(None) is None


def test_a_notebook_shows_tables_and_escapes_everything() -> None:
    found = Large(
        name="<b>&\u202e\udc80\n", parts=(Small(ratio=1.5, facts={"<i>": '"'}), Small())
    )._repr_html_()
    assert found.startswith("<strong>Large</strong><table>") and "<b>" not in found and "<i>" not in found
    assert "<tr><th>tensor</th><td>&lt;b&gt;&amp;\\u202e\\udc80\\n</td></tr>" in found
    rows = "<tr><th>ratio_db</th><th>&lt;i&gt;</th></tr><tr><td>1.5</td><td>&quot;</td></tr>"
    assert f"<td><table>{rows}<tr><td></td><td></td></tr></table></td>" in found
    assert "<tr><th>place</th><td></td></tr>" in found


def test_a_notebook_shows_long_lists_cut_with_a_count() -> None:
    found = Large(name="a", notes=("x",) * 1021, parts=(Small(ratio=1.0),) * 20)._repr_html_()
    assert found.count("x, ") == 19 and "x and 1,001 more</td>" in found and found.count("more") == 1
    assert Large(name="a", parts=(Small(),) * 22)._repr_html_().count("</table> and 2 more") == 1


@pytest.mark.parametrize("words", ["x" * 400_000, "7" * 4000, ".".join(["'a b'"] * 90)])
def test_toml_is_read_in_time_that_grows_with_its_length(tmp_path: Path, words: str) -> None:
    """Where it grows with the square, the first of these takes minutes."""
    path = tmp_path / "some.toml"
    path.write_text(f'text = "{words}"\n')
    assert read_toml(path) == {"text": words}


def test_a_key_of_many_parts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    for key in (".".join(["a-1"] * (MOST_PARTS + 2)), ". ".join(["'a b'"] * (MOST_PARTS + 2))):
        path.write_text(f"{key} = 1\n")
        with pytest.raises(UsageError, match=f"more than {MOST_PARTS} parts"):
            read_toml(path)
