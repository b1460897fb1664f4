"""fold-constants computes once what is the same in every run, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import UnsupportedError, UsageError, load, rewrite, save
from tfl_rewrite.editing.base import Pass, PassResult, run_passes
from tfl_rewrite.editing.constant_part import NotComputedError, Part
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Model, Tensor
from tfl_rewrite.passes import fold_constants
from tfl_rewrite.passes.fold_constants import FoldConstants
from tfl_rewrite.passes.simplify import Simplify

from ..nets import Net, named

SHAPE = (2, 3)


def ints(net: Net, *values: object) -> Tensor:
    return net.constant(f"c{len(net.graph.tensors)}", np.array(values, np.int32))


def kinds(model: Model) -> list[str]:
    return [operator.code.name for _, operator in model.operators()]


def folded(net: Net, **options: object) -> PassResult:
    """What was done; a second run finds nothing."""
    (result,) = run_passes(net.model, [FoldConstants(**options)])
    assert not broken(net.model)
    (again,) = run_passes(net.model, [FoldConstants(**options)])
    assert not again.modified and again.idle
    return result


def asking(signature: tuple[int, ...] | None = None, kind: str = "SHAPE") -> Net:
    """A model that adds what it is told of a shape."""
    net = Net()
    source = net.input("in", SHAPE, np.int32)
    source.signature = signature
    told = net.add(
        kind, [net.add("ABS", [source], "abs", (9,), dtype=np.int32)], "told", (2,), dtype=np.int32
    )
    net.output(net.add("ADD", [told, source], "out", SHAPE, dtype=np.int32))
    return net


def test_a_known_shape_is_a_constant() -> None:
    net = asking()
    assert folded(net).modified
    assert kinds(net.model) == ["ADD"]
    told = net.graph.operators[0].inputs[0]
    assert told is not None and list(told.values) == [2, 3]


def test_an_open_dimension_is_not_told() -> None:
    net = asking((-1, 3))
    assert not folded(net).modified


def test_a_rank_is_known_where_sizes_are_not() -> None:
    net = asking((-1, 3), "RANK")
    assert folded(net).modified
    told = net.graph.operators[0].inputs[0]
    assert told is not None and told.shape == () and int(told.values) == 2


def test_an_output_is_left_alone() -> None:
    net = asking()
    net.output(net.graph.tensors[2])
    assert [item.name for item in net.graph.outputs] == ["out", "told"]
    assert not folded(net).modified


@pytest.fixture
def twice(monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """In the place of the runtime: every part gives out twos. Returns the parts that were asked for."""
    asked: list[Part] = []

    def computed(_model: Model, part: Part) -> list[np.ndarray]:
        asked.append(part)
        types = {0: np.float32, 2: np.int32}
        return [np.full(tensor.shape or (), 2, types[tensor.dtype]) for tensor in part.outputs]

    monkeypatch.setattr(fold_constants, "computed", computed)
    return asked


def chained(size: int = 4) -> Net:
    """ABS and NEG of a constant, added to an input."""
    net = Net()
    source = net.input("in", (size,))
    first = net.add("ABS", [net.constant("c", np.ones(size, np.float32))], "first", (size,))
    net.output(net.add("ADD", [source, net.add("NEG", [first], "second", (size,))], "out", (size,)))
    return net


def test_what_hangs_on_constants_is_computed_in_one_part(twice: list[Part]) -> None:
    net = chained()
    result = folded(net)
    assert kinds(net.model) == ["ADD"]
    assert [item.name for item in net.graph.tensors] == ["in", "second", "out"]
    assert [[item.code.name for item in part.operators] for part in twice] == [["ABS", "NEG"]]
    assert [change.what for change in result.changes] == ["computed once: a constant of shape [4]"]


def test_what_frees_as_much_as_it_takes_is_no_growth(twice: list[Part]) -> None:
    assert folded(chained(1000), max_growth=0).modified


def growing(count: int = 600) -> Net:
    net = Net()
    source = net.input("in", (count,))
    filled = net.add("FILL", [ints(net, count), net.constant("one", np.array(1, np.float32))], "f", (count,))
    net.output(net.add("ADD", [source, filled], "out", (count,)))
    return net


def test_what_takes_more_stays_unless_allowed(twice: list[Part]) -> None:
    net = growing()
    result = folded(net)
    assert not result.modified and [skip.rule for skip in result.skips] == ["growth"]
    assert "--max-growth allows 1,024" in result.skips[0].reason
    assert not twice
    assert folded(growing(), max_growth=5000).modified


def test_shapes_are_asked_how_much_they_take_too() -> None:
    net = asking()
    result = folded(net, max_growth=7)
    assert not result.modified and [skip.where for skip in result.skips] == ["SHAPE -> told"]
    assert "it would take 8 bytes more; --max-growth allows 7" in result.skips[0].reason
    assert folded(asking(), max_growth=8).modified


def shared(*readers: str) -> Net:
    """NEG of a constant of 16 bytes that others read as well: an operator inside, a live one, a dead one."""
    net = Net()
    source, kept = net.input("in", (4,)), net.constant("c", np.ones(4, np.float32))
    net.output(net.add("ADD", [source, net.add("NEG", [kept], "turned", (4,))], "out", (4,)))
    if "live" in readers:
        net.output(net.add("MUL", [source, kept], "product", (4,)))
    if "dead" in readers:
        net.add("ABS", [kept], "nobody", (4,))
    if "output" in readers:
        net.output(kept)
    return net


@pytest.mark.parametrize("reader", ["live", "dead", "output"])
def test_a_constant_that_others_read_is_not_freed(reader: str, twice: list[Part]) -> None:
    assert folded(shared(), max_growth=0).modified
    result = folded(shared(reader), max_growth=0)
    assert not result.modified
    assert "it would take 16 bytes more" in next(skip.reason for skip in result.skips)


def test_what_is_refused_first_and_folded_later_is_not_named(twice: list[Part]) -> None:
    """Its constant is its own only when another reader, which waits for a shape, has gone."""
    net = shared()
    source, kept = net.graph.inputs[0], named(net.model, "c")
    told = net.add("SHAPE", [source], "told", (1,), dtype=np.int32, out_type=2)
    row = net.add("SLICE", [kept, told, told], "part", (1,))
    net.output(net.add("MUL", [source, row], "product", (4,)))
    result = folded(net, max_growth=4)
    assert kinds(net.model) == ["ADD", "MUL"] and not result.skips


def test_what_has_no_bytes_or_no_numbers_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(_model: Model, part: Part) -> list[np.ndarray]:
        return [np.zeros(0, np.float32) for _ in part.outputs]

    monkeypatch.setattr(fold_constants, "computed", computed)
    result = folded(chained())
    assert not result.modified and "'second' has no elements" in result.skips[0].reason
    net = Net()
    words = net.constant("words", np.zeros(4, np.int32))
    made = net.add("RESHAPE", [words, ints(net, 2, 2)], "rows", (2, 2), dtype=np.int32)
    for tensor in (words, made):
        tensor.dtype = dtypes.BY_NAME["STRING"].value
    net.output(net.add("EQUAL", [made, net.input("in", (2, 2), np.int32)], "out", (2, 2), dtype=np.bool_))
    assert not folded(net).modified and not folded(net).skips


@pytest.mark.parametrize("passes", [[FoldConstants(max_growth=2392)], [Simplify()]])
def test_what_may_grow_does_not_hang_on_what_went_before(passes: list[Pass], twice: list[Part]) -> None:
    """Each is asked by itself, so that a second run finds what the first one found: nothing."""
    net = growing(240 if passes == [Simplify()] else 600)
    size = net.graph.inputs[0].shape[0]
    filled = net.add("FILL", [ints(net, size), net.constant("two", np.array(2, np.float32))], "g", (size,))
    net.output(net.add("ADD", [net.graph.inputs[0], filled], "sum", (size,)))
    larger = net.add("FILL", [ints(net, 601), net.constant("three", np.array(2, np.float32))], "h", (601,))
    net.output(net.add("ADD", [net.input("wide", (601,)), larger], "third", (601,)))
    run_passes(net.model, passes)
    assert kinds(net.model).count("FILL") == 1
    assert not any(result.modified for result in run_passes(net.model, passes))


def test_what_stands_behind_weights_that_stay_is_computed(twice: list[Part]) -> None:
    net = dequantized()
    added = net.add("NEG", [net.constant("c", np.ones((2, 4), np.float32))], "turned", (2, 4))
    net.output(net.add("ADD", [net.graph.outputs[0], added], "sum", (2, 4)))
    assert folded(net).modified and kinds(net.model) == ["DEQUANTIZE", "FULLY_CONNECTED", "ADD"]


def test_a_runtime_that_is_not_there_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_text: str) -> None:
        raise UnsupportedError("it is not installed", remedy="install it")

    monkeypatch.setattr(RuntimeChoice, "parse", missing)
    result = folded(chained())
    assert not result.modified and "it is not installed" in result.skips[0].reason


def test_what_cannot_be_computed_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_model: Model, _part: Part) -> list[np.ndarray]:
        raise NotComputedError("no runtime is installed")

    monkeypatch.setattr(fold_constants, "computed", nobody)
    result = folded(chained())
    assert not result.modified
    assert [skip.rule for skip in result.skips] == ["runtime"]
    assert "no runtime is installed" in result.skips[0].reason


def dequantized() -> Net:
    net = Net()
    source = net.input("in", (2, 8))
    weight = net.half("w", np.ones((4, 8), np.float32))
    net.output(net.dense(source, weight, "out"))
    return net


def test_weights_stay_small_unless_asked(twice: list[Part]) -> None:
    assert not folded(dequantized()).modified
    assert folded(dequantized(), weights=True).modified


def test_computed_weights_stay(twice: list[Part]) -> None:
    net = Net()
    source = net.input("in", (2, 8))
    weight = net.add("NEG", [net.weights("w", (4, 8))], "turned", (4, 8))
    net.output(net.dense(source, weight, "out"))
    result = folded(net)
    assert not result.modified and [skip.rule for skip in result.skips] == ["weights"]


@pytest.mark.parametrize("kind", ["RANDOM_UNIFORM", "CALL", "VAR_HANDLE"])
def test_what_is_more_than_numbers_stays(kind: str, twice: list[Part]) -> None:
    net = Net()
    source = net.input("in", (4,))
    made = net.add(kind, [ints(net, 4)] if kind != "VAR_HANDLE" else [], "made", (4,))
    net.output(net.add("ADD", [source, made], "out", (4,)))
    assert not folded(net).modified


def test_a_bound_below_zero_is_refused() -> None:
    with pytest.raises(UsageError):
        FoldConstants(max_growth=-1)


@pytest.mark.runtime
def test_the_runtime_computes(tmp_path: Path) -> None:
    net = Net()
    source = net.input("in", (4, 6))
    told = net.add("SHAPE", [source], "told", (2,), dtype=np.int32, out_type=2)
    product = net.add("REDUCE_PROD", [told, ints(net, 0)], "all", (1,), dtype=np.int32, keep_dims=True)
    flat = net.add("RESHAPE", [source, product], "flat", (24,))
    rows = net.add("NEG", [net.constant("c", np.linspace(1, 2, 24, dtype=np.float32))], "rows", (24,))
    net.output(net.add("ADD", [flat, rows], "out", (24,)))
    path, made = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(net.model, path)
    report = rewrite(path, made, [FoldConstants()])
    assert report.verdict is not None and report.verdict.passed
    model = load(made)
    assert kinds(model) == ["RESHAPE", "ADD"]
    target = model.subgraphs[0].operators[0].inputs[1]
    assert target is not None and list(target.values) == [24]


@pytest.mark.runtime
def test_the_runtime_expands_weights_as_they_are() -> None:
    net = dequantized()
    values = np.linspace(-3, 3, 32).astype(np.float16).reshape(4, 8)
    net.graph.operators[0].inputs[0] = net.constant("odd", values)
    assert folded(net, weights=True).modified and kinds(net.model) == ["FULLY_CONNECTED"]
    weight = net.graph.operators[0].inputs[1]
    assert weight is not None and np.array_equal(weight.values, values.astype(np.float32))


@pytest.mark.runtime
def test_a_part_that_the_runtime_refuses_stays(tmp_path: Path) -> None:
    net = Net()
    source = net.input("in", (4,))
    # There are no such rows; what else there is is folded all the same.
    wrong = net.add(
        "GATHER", [net.constant("t", np.ones(3, np.float32)), ints(net, 7, 8, 9, 9)], "wrong", (4,)
    )
    right = net.add("NEG", [net.constant("c", np.ones(4, np.float32))], "right", (4,))
    net.output(net.add("ADD", [net.add("ADD", [source, wrong], "sum", (4,)), right], "out", (4,)))
    result = folded(net)
    assert kinds(net.model) == ["GATHER", "ADD", "ADD"]
    assert [skip.rule for skip in result.skips] == ["runtime"]
