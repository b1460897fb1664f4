"""Loops, branches and signatures: what no sample enters stays float and is named, and the rest is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net, decibels, nearest, run
from tfl_rewrite import save
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import SubGraph, Tensor

BRANCHES = ("RELU", "ABS")


def body(net: Net, kind: str) -> SubGraph:
    """A subgraph of one operator."""
    graph = net.next_subgraph(kind)
    net.output(net.add(kind, [net.input(f"{kind}_in", (1, 4))], f"{kind}_out", (1, 4)))
    return graph


def layered(net: Net, name: str) -> Tensor:
    bias = net.constant(f"{name}_bias", np.zeros(4, np.float32))
    return net.dense(net.input(f"{name}_in", (1, 4)), net.weights(f"{name}_w", (4, 4)), name, bias)


def branching() -> Net:
    """FULLY_CONNECTED, an IF that runs RELU or ABS, and TANH."""
    net = Net()
    main = net.graph
    chosen = {name: body(net, kind) for name, kind in zip(("then", "else"), BRANCHES, strict=True)}
    net.graph = main
    wish = net.input("wish", (1,), np.bool_)
    options = {f"{name}_subgraph_index": graph for name, graph in chosen.items()}
    between = net.add("IF", [wish, layered(net, "layer")], "between", (1, 4), **options)
    net.output(net.add("TANH", [between], "out", (1, 4)))
    return net


def looping() -> Net:
    """FULLY_CONNECTED, and a WHILE that adds 1 while the first number is below 3."""
    net = Net()
    main, graph = net.graph, net.next_subgraph("cond")
    start = net.constant("start", np.zeros(2, np.int32))
    size = net.constant("size", np.ones(2, np.int32))
    first = net.add("SLICE", [net.input("cond_in", (1, 4)), start, size], "first", (1, 1))
    flat = net.add("RESHAPE", [first, net.constant("flat_shape", np.ones(1, np.int32))], "flat", (1,))
    limit = net.constant("limit", np.array([3.0], np.float32))
    net.output(net.add("LESS", [flat, limit], "again", (1,), dtype=np.bool_))
    inner = net.next_subgraph("body")
    one = net.constant("one", np.ones((1, 4), np.float32))
    net.output(net.add("ADD", [net.input("body_in", (1, 4)), one], "body_out", (1, 4)))
    net.graph = main
    options = {"cond_subgraph_index": graph, "body_subgraph_index": inner}
    net.output(net.add("WHILE", [layered(net, "layer")], "out", (1, 4), **options))
    return net


def ranges_of(graphs: list[SubGraph], size: float) -> dict[int, tuple[float, float]]:
    """Those of floats, such as samples that enter these subgraphs leave."""
    tensors = [item for graph in graphs for item in graph.tensors if item.dtype_name == "FLOAT32"]
    found = {id(item): (-size, size) for item in tensors}
    held = [item for item in tensors if item.is_constant]
    return found | {id(item): (float(item.values.min()), float(item.values.max())) for item in held}


def told(net: Net, plan: IntegerPlan) -> dict[str, str]:
    """By operator type, why it stays float."""
    reasons = plan.modes.reasons
    return {item.code.name: reasons[id(item)] for _, item in net.model.operators() if id(item) in reasons}


@pytest.mark.runtime
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("build", [branching, looping])
def test_bodies_stay_float_and_what_stands_around_them_is_right(
    build: Callable[[], Net], reference: bool, tmp_path: Path
) -> None:
    net, caller = build(), "IF" if build is branching else "WHILE"
    save(net.model, tmp_path / "before.tflite")
    # Bodies are entered by others alone; as if a sample had shown what they hold.
    plan = IntegerPlan(net.model, lambda _: 8, ranges_of(net.model.subgraphs, 4.0))
    outside = {"FULLY_CONNECTED", "TANH"}
    inside = {item.code.name for graph in net.model.subgraphs[1:] for item in graph.operators}
    reasons = told(net, plan)
    assert {item.code.name for _, item in net.model.operators() if plan.modes.width(item)} <= outside
    assert plan.modes.widths and set(reasons) == inside | {caller}
    assert {reasons[kind] for kind in inside} == {f"it is in a subgraph that {caller} calls"}
    editor = Editor(net.model)
    plan.convert(editor, nearest)
    editor.finish()
    assert broken(net.model) == []
    (called,) = (item for _, item in net.model.operators() if item.code.name == caller)
    inner = [item for graph in net.model.subgraphs[1:] for item in graph.tensors]
    passed = [item for item in (*called.inputs, *called.outputs, *inner) if item is not None]
    assert {item.dtype_name for item in passed} <= {"FLOAT32", "BOOL", "INT32"}
    save(net.model, tmp_path / "after.tflite")
    values = {"layer_in": np.array([[1.0, -0.5, 0.25, 2.0]], np.float32)}
    for wish in (True, False):
        given = values | ({"wish": np.array([wish])} if build is branching else {})
        before = run(tmp_path / "before.tflite", given, reference=reference)["out"]
        after = run(tmp_path / "after.tflite", given, reference=reference)["out"]
        assert decibels(before, after) > 25


def test_a_signature_that_no_sample_runs_stays_float_and_is_named() -> None:
    net = Net()
    for name in ("seen", "unseen"):
        if name == "unseen":
            net.next_subgraph(name)
        net.output(layered(net, name))
        net.sign(name)
    plan = IntegerPlan(net.model, lambda _: 8, ranges_of(net.model.subgraphs[:1], 1.0))
    (seen,), (unseen,) = (graph.operators for graph in net.model.subgraphs)
    assert plan.modes.width(seen) == 8 and plan.modes.width(unseen) is None
    assert "no sample runs" in plan.modes.reasons[id(unseen)]
    before = [item.dtype_name for item in net.model.subgraphs[1].tensors]
    editor = Editor(net.model)
    plan.convert(editor, nearest)
    editor.finish()
    assert [item.dtype_name for item in net.model.subgraphs[1].tensors] == before
    assert net.model.subgraphs[1].operators == [unseen] and broken(net.model) == []
