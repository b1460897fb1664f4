"""simplify: rounds of passes until none finds anything, how it is judged, and where other passes offer it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import tfl_rewrite
from tfl_rewrite.editing.base import expanded, run_passes
from tfl_rewrite.files.source import load, save
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.passes.quantize import Quantize
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.simplify import Simplify
from tfl_rewrite.pipeline.report import Report

from ..nets import Net, codes

C = 32


def kinds(net: Net) -> list[str]:
    return [name for name, _ in codes(net.model)]


def structural() -> Net:
    """What goes without a change of a bit: RELU behind a convolution, a whole slice, an equal operator."""
    net = Net(1)
    given = net.input("x", (1, 4, 4, C))
    begin, size = (
        net.constant(name, np.array(value, np.int32))
        for name, value in (("begin", (0, 0, 0, 0)), ("size", (-1, -1, -1, -1)))
    )
    whole = net.add("SLICE", [given, begin, size], "whole", (1, 4, 4, C))
    weights = net.weights("w", (C, 1, 1, C))
    bias = net.constant("b", np.ones(C, np.float32))
    parts = []
    for name, source in (("one", whole), ("two", given)):
        made = net.add("CONV_2D", [source, weights, bias], name, (1, 4, 4, C), stride_h=1, stride_w=1)
        parts.append(net.add("RELU", [made], f"{name}_relu", (1, 4, 4, C)))
    net.output(net.add("ADD", parts, "y", (1, 4, 4, C)))
    return net


def batch_norm() -> Net:
    """The same, and what is computed in another order then."""
    net = structural()
    made = net.graph.outputs.pop()
    weights = net.weights("v", (3, 1, 1, C))
    bias = net.constant("b2", np.ones(3, np.float32))
    made = net.add("CONV_2D", [made, weights, bias], "z", (1, 4, 4, 3), stride_h=1, stride_w=1)
    gamma = net.constant("gamma", np.array([0.3, 1.7, 3.1], np.float32))
    net.output(net.add("MUL", [made, gamma], "scaled", (1, 4, 4, 3)))
    return net


def test_rounds_go_on_until_nothing_is_left() -> None:
    net = batch_norm()
    (result,) = run_passes(net.model, [Simplify()])
    # The slice has to go before the convolutions are equal.
    assert kinds(net) == ["CONV_2D", "ADD", "CONV_2D"]
    by = Counter(change.to_dict()["by"] for change in result.changes)
    assert set(by) >= {"remove-noops", "fuse", "fold-batch-norms", "dedup"}
    assert result.notes[0] == "changes: " + ", ".join(f"{count} by {name}" for name, count in by.items())
    assert f"of {len(result.changes)} changes win no time where XNNPACK computes" in result.notes[1]
    assert result.grows and not result.exact
    (again,) = run_passes(net.model, [Simplify()])
    assert not again.modified and again.exact and again.idle


def test_what_is_computed_in_another_order_can_be_left() -> None:
    net = batch_norm()
    (result,) = run_passes(net.model, [Simplify(fold=False, grow=False)])
    assert kinds(net) == ["CONV_2D", "ADD", "CONV_2D", "MUL"] and result.exact and not result.grows
    assert Simplify().stricter(1.0) == Simplify(fold=False) and Simplify(fold=False).stricter(1.0) is None


def rewritten(net: Net, folder: Path, tolerance: Tolerance | None = None) -> Report:
    save(net.model, folder / "in.tflite")
    judging = Judging(samples=1, mode="require", tolerance=tolerance or Tolerance())
    return tfl_rewrite.rewrite(folder / "in.tflite", folder / "out.tflite", [Simplify()], judging=judging)


@pytest.mark.runtime
def test_it_is_judged_by_what_it_did(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for net, folder, rule in ((structural(), "a", "exact"), (batch_norm(), "b", "snr")):
        report = rewritten(net, tmp_path / folder, Tolerance(min_snr=1))
        assert report.verdict is not None and {item.rule for item in report.verdict.outputs} == {rule}


def cancelling() -> Net:
    """What is added before the layer takes nearly all away again, so a bias keeps less of the rest."""
    net = structural()
    made = net.graph.outputs.pop()
    far = net.constant("far", np.full(C, 3e5, np.float32))
    made = net.add("ADD", [made, far], "there", (1, 4, 4, C))
    made = net.add("MAXIMUM", [made, net.constant("zero", np.zeros(C, np.float32))], "m", (1, 4, 4, C))
    made = net.add("SUB", [made, far], "back", (1, 4, 4, C))
    weights = net.weights("v", (3, 1, 1, C))
    bias = net.constant("b2", np.ones(3, np.float32))
    net.output(net.add("CONV_2D", [made, weights, bias], "z", (1, 4, 4, 3), stride_h=1, stride_w=1))
    return net


@pytest.mark.runtime
def test_where_a_fold_loses_too_much_only_what_is_exact_is_done(tmp_path: Path) -> None:
    report = rewritten(cancelling(), tmp_path)
    assert report.verdict is not None and {item.rule for item in report.verdict.outputs} == {"exact"}
    names = [operator.code.name for _, operator in load(tmp_path / "out.tflite").operators()]
    assert names.count("CONV_2D") == 2 and "RELU" not in names and names.count("SUB") == 1


@pytest.mark.runtime
def test_what_is_the_same_in_every_run_goes_with_what_asked_for_it(tmp_path: Path) -> None:
    """RESHAPE to the shape that the input has is seen to change nothing once that is a constant."""
    net = Net(2)
    given = net.input("x", (2, C))
    shape = net.add("SHAPE", [given], "shape", (2,), dtype=np.int32, out_type=2)
    same = net.add("RESHAPE", [given, shape], "same", (2, C))
    net.output(net.add("ABS", [same], "y", (2, C)))
    report = rewritten(net, tmp_path)
    names = [operator.code.name for _, operator in load(tmp_path / "out.tflite").operators()]
    assert names == ["ABS"] and report.results[0].exact


def test_others_offer_it() -> None:
    for item in (Quantize(simplify=True), QuantizeWeights(simplify=True)):
        first, second = expanded([item])
        assert first == Simplify() and type(second) is type(item) and second.parts() == (second,)
    assert len(expanded([Quantize(), QuantizeWeights()])) == 2


@pytest.mark.runtime
def test_what_is_rounded_is_what_it_left(tmp_path: Path) -> None:
    save(batch_norm().model, tmp_path / "in.tflite")
    item = QuantizeWeights(simplify=True, min_elements=1)
    report = tfl_rewrite.rewrite(tmp_path / "in.tflite", tmp_path / "out.tflite", [item])
    assert [result.name for result in report.results] == ["simplify", "quantize-weights"]
    assert all(result.modified for result in report.results)
    assert report.verdict is not None and report.verdict.passed
    names = [operator.code.name for _, operator in load(tmp_path / "out.tflite").operators()]
    assert names == ["CONV_2D", "ADD", "CONV_2D"]
