"""Ranges as data: what a file holds, whose it is, and that nothing in it is trusted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.nets import Net, named
from tfl_rewrite import FileAccessError, FormatError, TflRewriteError, UnsupportedError, UsageError
from tfl_rewrite.editing.base import Context
from tfl_rewrite.integers.ranges import Calibration, GivenModel, TensorRanges
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Model

Range = tuple[float, float]
SEEN = {"in": (-1.0, 0.1), "out": (-2.0, 3.0)}


def net(name: str = "out") -> Model:
    made = Net()
    made.input("count", (1,), np.int32)
    source = made.input("in", (1, 2))
    factor = made.constant("factor", np.array([-1.5, 2.5], np.float32))
    made.output(made.add("MUL", [source, factor], name, (1, 2)))
    made.next_subgraph("empty")
    return made.model


def taken(model: Model, **changed: Range) -> TensorRanges:
    """The ranges of a model as they come from calibration, which tells constants, too."""
    known = {**SEEN, "factor": (-1.5, 2.5), **changed}
    tensors = model.subgraphs[0].tensors
    found = {id(item): known[item.name] for item in tensors if item.name in known}
    return TensorRanges.of(GivenModel.of(model), found)


def by_name(model: Model, found: dict[int, Range]) -> dict[str, Range]:
    tensors = [item for subgraph in model.subgraphs for item in subgraph.tensors]
    return {item.name: found[id(item)] for item in tensors if id(item) in found}


def data() -> dict[str, Any]:
    """A good file, as JSON data."""
    found: dict[str, Any] = json.loads(taken(net()).dump())
    return found


def read(folder: Path, content: object) -> TensorRanges:
    path = folder / "ranges.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return TensorRanges.read(path)


def test_a_file_gives_back_what_was_kept(tmp_path: Path) -> None:
    made = taken(net())
    made.save(tmp_path / "ranges.json")
    again = TensorRanges.read(tmp_path / "ranges.json")
    assert again == made and again.dump() == made.dump() and again.count == 2
    model = net()
    assert by_name(model, again.on(GivenModel.of(model))) == SEEN


def test_constants_have_no_row_and_integers_none() -> None:
    assert data()["subgraphs"] == [[[1, "in", [1, 2], -1.0, 0.1], [3, "out", [1, 2], -2.0, 3.0]], []]


def test_numbers_keep_every_bit(tmp_path: Path) -> None:
    odd = float(np.float32(0.1)), float(np.nextafter(np.float32(3), np.float32(4)))
    model = net()
    assert by_name(model, read(tmp_path, taken(net(), out=odd).dump()).on(GivenModel.of(model)))["out"] == odd


@pytest.mark.parametrize("held", [(-math.inf, 1.0), (-math.inf, math.inf), (math.nan, math.nan)], ids=str)
def test_what_is_not_finite_is_kept_as_well(held: Range, tmp_path: Path) -> None:
    text = taken(net(), out=held).dump()
    assert b"NaN" not in text and b"Infinity" not in text
    model = net()
    found = by_name(model, read(tmp_path, text).on(GivenModel.of(model)))["out"]
    assert np.array_equal(found, held, equal_nan=True)


def test_ranges_of_another_model_are_refused(tmp_path: Path) -> None:
    made = taken(net())
    with pytest.raises(UsageError, match=r"^r\.json: holds the ranges of another model"):
        made.on(GivenModel.of(net("other")), "r.json")
    other = net()
    other.subgraphs[0].tensor("factor").set_values(np.array([1, 2], np.float32))
    with pytest.raises(UsageError, match="another model"):
        made.on(GivenModel.of(other))


@pytest.mark.parametrize(
    ("change", "said", "where"),
    [
        ({"format": "other"}, '"format" is not', None),
        ({"version": 0}, "is not a version number", "version"),
        ({"version": True}, "is not a version number", "version"),
        ({"model": "f" * 63}, "no hash of 64 hex digits", "model"),
        ({"model": 7}, "no hash of 64 hex digits", "model"),
        ({"subgraphs": {}}, "is not a list", "subgraphs"),
        ({"subgraphs": [{}]}, "is not a list", "subgraphs[0]"),
        ({"subgraphs": [[7]]}, "is not a list of index", "subgraphs[0][0]"),
        ({"subgraphs": [[[1, "in", [1, 2], 0]]]}, "is not a list of index", "subgraphs[0][0]"),
        ({"subgraphs": [[[1, "in", [1, 2], 0, 1, 2]]]}, "is not a list of index", "subgraphs[0][0]"),
        ({"subgraphs": [[[-1, "in", [1, 2], 0, 1]]]}, "no index", "subgraphs[0][0]"),
        ({"subgraphs": [[[True, "in", [1, 2], 0, 1]]]}, "no index", "subgraphs[0][0]"),
        ({"subgraphs": [[[1 << 40, "in", [1, 2], 0, 1]]]}, "no index", "subgraphs[0][0]"),
        ({"subgraphs": [[[1, 7, [1, 2], 0, 1]]]}, "no name", "subgraphs[0][0]"),
        ({"subgraphs": [[[1, "in", [1.5], 0, 1]]]}, "not a shape", "subgraphs[0][0]"),
        ({"subgraphs": [[[1, "in", 7, 0, 1]]]}, "not a shape", "subgraphs[0][0]"),
        ({"subgraphs": [[[1, "in", [1, 2], "0", 1]]]}, "no two numbers", "subgraphs[0][0]"),
        ({"subgraphs": [[[1, "in", [1, 2], None, 1]]]}, "no two numbers", "subgraphs[0][0]"),
        ({"subgraphs": [[[1, "in", [1, 2], False, 1]]]}, "no two numbers", "subgraphs[0][0]"),
        ({"subgraphs": [[[1, "in", [1, 2], 0, 1e39]]]}, "no two numbers", "subgraphs[0][0]"),
        ({"subgraphs": [[[1, "in", [1, 2], 0, 10**400]]]}, "no two numbers", "subgraphs[0][0]"),
        ({"subgraphs": [[[1, "in", [1, 2], 2, 1]]]}, "its least value 2 is above", "subgraphs[0][0]"),
        ({"subgraphs": [[[1, "in", [1, 2], "nan", 1]]]}, "its least value nan", "subgraphs[0][0]"),
        ({"subgraphs": [[[1, "in", [1, 2], "inf", "-inf"]]]}, "is above", "subgraphs[0][0]"),
        ({"subgraphs": [[[1, "in", [1, 2], 0, 1]] * 2]}, "comes behind", "subgraphs[0][1]"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], said: str, where: str | None, tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        read(tmp_path, {**data(), **change})
    assert said in str(caught.value) and caught.value.where == where
    assert caught.value.file == str(tmp_path / "ranges.json") and str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("subgraphs", "said"),
    [
        ([[]], "1 lists for 2 subgraphs"),
        ([[], [], []], "3 lists for 2 subgraphs"),
        ([[[4, "in", [1, 2], 0, 1]], []], "is of tensor 4; there are 4"),
        ([[[0, "count", [1], 0, 1]], []], "holds no floats"),
        ([[[1, "on", [1, 2], 0, 1]], []], "another name or shape"),
        ([[[1, "in", [2, 1], 0, 1]], []], "another name or shape"),
        ([[[1, "in", None, 0, 1]], []], "another name or shape"),
    ],
)
def test_rows_fit_their_tensors(subgraphs: Any, said: str, tmp_path: Path) -> None:
    made = read(tmp_path, {**data(), "subgraphs": subgraphs})
    with pytest.raises(FormatError, match=said):
        made.on(GivenModel.of(net()), "r.json")


@pytest.mark.parametrize(
    "text",
    [b"", b"[" * 200_000, b"\xff", b'{"format": NaN}', b" " * ((16 << 20) + 1), b"[1, " + b"9" * 9999],
    ids=["empty", "deep", "no text", "no JSON", "large", "long number"],
)
def test_what_is_no_file_of_ranges(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="a file of ranges"):
        read(tmp_path, text)


def test_a_newer_version_and_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="newer"):
        read(tmp_path, {**data(), "version": 2})
    errors: list[type[TflRewriteError]] = [FileAccessError] * 3
    for path, kind in zip((tmp_path, tmp_path / "none", "a\0b"), errors, strict=True):
        with pytest.raises(kind):
            TensorRanges.read(path)
    with pytest.raises(FileAccessError, match="give --inputs, too"):
        TensorRanges.read(tmp_path / "none")


def test_a_file_is_replaced_only_where_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "ranges.json").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        taken(net()).save(tmp_path / "ranges.json")
    assert (tmp_path / "ranges.json").read_text() == "mine"
    taken(net()).save(tmp_path / "ranges.json", force=True)
    assert TensorRanges.read(tmp_path / "ranges.json") == taken(net())


class Inputs:
    """Ranges that somebody finds on inputs."""

    def ranges(self, number: int, model: Model, *, whole: bool = False) -> dict[int, Range]:
        found = taken(model, out=(-5.0, 5.0)).on(GivenModel.of(model))
        return {id(model.subgraphs[0].tensor("factor")): (-1.5, 2.5), **found}

    def rounder(self, *_: Any, **__: Any) -> Any: ...
    def measured(self, *_: Any) -> None: ...
    def integer_rounder(self, *_: Any, **__: Any) -> Any: ...
    def fitting(self, number: int) -> Any: ...


def test_whose_ranges_count(tmp_path: Path) -> None:
    model, path = net(), tmp_path / "ranges.json"
    context = Context(activations=Inputs())
    everything = {"in": SEEN["in"], "factor": (-1.5, 2.5), "out": (-5.0, 5.0)}

    def ranges(calibration: Calibration) -> dict[str, Range]:
        return by_name(model, dict(calibration.ranges(model)))

    seen = Calibration(model, None, context)
    assert ranges(seen) == everything and seen.files == ()
    kept = Calibration(model, path, context)
    assert ranges(kept) == everything and kept.activations is context.activations
    ((target, content),) = kept.files
    assert target == path and not path.exists(), "the file gets its name with the model"
    path.write_bytes(content)
    again = Calibration(model, path, Context())
    assert ranges(again) == everything and again.files == () and again.activations is None
    recorded = Calibration(model, taken(model), context)
    assert ranges(recorded)["out"] == SEEN["out"], "recorded ones win"
    with pytest.raises(UsageError, match=r"needs real inputs: the ranges of made.*--ranges"):
        Calibration(model, None, Context())
    with pytest.raises(UsageError, match=r"needs real inputs: 1 is too few"):
        Calibration(model, None, Context(unfit="1 is too few"))


def test_rows_are_those_of_the_model_as_it_was_given(tmp_path: Path) -> None:
    """A pass moves tensors and makes others before anybody looks at their ranges."""
    model, path = net(), tmp_path / "ranges.json"
    calibration = Calibration(model, path, Context(activations=Inputs()))
    tensors = model.subgraphs[0].tensors
    tensors.insert(0, tensors.pop())
    calibration.ranges(model)
    ((_, content),) = calibration.files
    assert content == taken(net(), out=(-5.0, 5.0)).dump()


def test_what_a_file_says_of_constants_counts_for_nothing() -> None:
    """Of one that cannot be read nothing is known, so that what reads it stays float."""
    model = net()
    recorded = taken(model, factor=(-9.0, 9.0))
    assert "factor" in str(recorded)
    assert by_name(model, dict(Calibration(model, recorded, Context()).ranges(model)))["factor"] == (
        -1.5,
        2.5,
    )
    named(model, "factor").buffer.blob = OwnedBlob(b"odd")
    recorded = taken(model, factor=(-9.0, 9.0))
    found = by_name(model, dict(Calibration(model, recorded, Context()).ranges(model)))
    assert found == SEEN
