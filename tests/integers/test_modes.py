"""What stays float together: the whole of a decomposed norm, whatever shapes its operators give, and
what cuts or joins unlike parts at the border."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite.integers.modes import normed_by
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.integers.recipe import Recipe
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Operator, Tensor


def normed(net: Net, source: Tensor, *, shaped: bool) -> Tensor:
    """A layer norm as converters decompose it: with RESHAPE where means lost their axis, or without."""
    count = 0

    def add(kind: str, *inputs: Tensor, shape: tuple[int, ...] = (4, 1)) -> Tensor:
        nonlocal count
        count += 1
        return net.add(kind, list(inputs), f"{kind.lower()}{count}", shape)

    def again(tensor: Tensor) -> Tensor:
        return add("RESHAPE", tensor, net.constant("shape", np.array([4, 1], np.int32))) if shaped else tensor

    axis = net.constant("axis", np.array([1], np.int32))
    small = net.constant("small", np.array([1e-5], np.float32))
    beta = net.constant("beta", np.array([0.5], np.float32))
    mean = add("MEAN", source, axis)
    variance = add("MEAN", add("SQUARED_DIFFERENCE", source, again(mean), shape=(4, 8)), axis)
    root = add("RSQRT", add("ADD", variance, small))
    back = add("SUB", beta, add("MUL", root, mean))
    scaled = add("MUL", source, again(root), shape=(4, 8))
    return add("ADD", scaled, again(back), shape=(4, 8))


def reached(net: Net) -> list[str]:
    graph = Graph.of(net.model)
    root = next(item for item in net.graph.operators if item.code.name == "RSQRT")
    found = {id(item) for item in normed_by(graph, root)}

    def name(operator: Operator) -> str:
        assert operator.outputs[0] is not None
        return operator.outputs[0].name

    return [name(item) for item in net.graph.operators if id(item) in found]


@pytest.mark.parametrize("shaped", [False, True])
def test_a_norm_is_reached_as_a_whole_and_nothing_beyond(shaped: bool) -> None:
    net = Net()
    first = net.dense(net.input("in", (4, 8)), net.weights("w", (8, 8)), "first")
    other = net.dense(first, net.weights("v", (8, 8)), "other")
    residual = net.add("ADD", [first, other], "residual", (4, 8))
    made = normed(net, residual, shaped=shaped)
    net.output(net.dense(made, net.weights("u", (8, 8)), "last"))
    whole = [item.outputs[0].name for item in net.graph.operators if item.outputs[0] is not None]
    beyond = {"first", "other", "residual", "last", "rsqrt4" if not shaped else "rsqrt5"}
    roots = {name for name in whole if name.startswith("rsqrt")}
    assert reached(net) == [name for name in whole if name not in beyond | roots]


def test_a_recipe_says_from_which_deviations_a_norm_stays_float() -> None:
    net = Net()
    net.output(normed(net, net.input("in", (4, 8)), shaped=True))
    # Variances of 0.01 to 1, which is little.
    ranges = {id(item): (0.01, 1.0) for item in net.graph.tensors if item.dtype_name == "FLOAT32"}

    def integers(recipe: Recipe) -> list[str]:
        plan = IntegerPlan(net.model, lambda _: 8, ranges, recipe)
        assert len(plan.grids()) == len(plan.modes.widths)
        return [item.code.name for item in net.graph.operators if plan.modes.width(item)]

    assert "RSQRT" in integers(Recipe()) and "MEAN" in integers(Recipe())
    assert integers(Recipe(deviations=1.0)) == []


def recurrent(net: Net) -> Tensor:
    """A step of a net with a memory: a small part and a large one in one input, and in one output."""

    def at(name: str, *values: int) -> Tensor:
        return net.constant(name, np.array(values, np.int32))

    state, parts = net.input("state", (2, 4)), []
    for name, row in (("small", 0), ("large", 1)):
        ends = at(f"{name}_begin", row, 0), at(f"{name}_end", row + 1, 4), at(f"{name}_by", 1, 1)
        cut = net.add("STRIDED_SLICE", [state, *ends], f"{name}_cut", (1, 4))
        parts.append(net.add("ABS", [cut], f"{name}_made", (1, 4)))
    made = net.add("CONCATENATION", parts, "made", (2, 4), axis=0)
    net.output(made)
    return made


LARGE = (-100.0, 100.0)


@pytest.mark.parametrize(
    ("recipe", "small", "floats"),
    [
        (Recipe(), 1.0, ["STRIDED_SLICE", "STRIDED_SLICE", "CONCATENATION"]),
        (Recipe(parts=math.inf), 1.0, []),
        (Recipe(), 50.0, []),
    ],
)
def test_unlike_parts_at_the_border_are_cut_and_joined_as_floats(
    recipe: Recipe, small: float, floats: list[str]
) -> None:
    net = Net()
    recurrent(net)
    held = {"state": LARGE, "large_cut": LARGE, "large_made": LARGE, "made": LARGE}
    tensors = [item for item in net.graph.tensors if item.dtype_name == "FLOAT32"]
    ranges = {id(item): held.get(item.name, (-small, small)) for item in tensors}
    plan = IntegerPlan(net.model, lambda _: 8, ranges, recipe)
    kept = [item for item in net.graph.operators if not plan.modes.width(item)]
    assert [item.code.name for item in kept] == floats
    assert all("unlike" in plan.modes.reasons[id(item)] for item in kept)


def test_unlike_parts_inside_share_their_scale() -> None:
    net = Net()
    made = recurrent(net)
    net.graph.outputs.clear()
    net.output(net.add("ABS", [made], "last", (2, 4)))
    held = {"state": LARGE, "large_cut": LARGE, "large_made": LARGE, "made": LARGE, "last": LARGE}
    tensors = [item for item in net.graph.tensors if item.dtype_name == "FLOAT32"]
    ranges = {id(item): held.get(item.name, (-1.0, 1.0)) for item in tensors}
    plan = IntegerPlan(net.model, lambda _: 8, ranges)
    assert [item.code.name for item in net.graph.operators if plan.modes.width(item)][-2:] == [
        "CONCATENATION",
        "ABS",
    ]


def test_what_is_the_same_in_all_samples_is_no_range() -> None:
    """A gate that no sample opens: as integers it would stay all but shut for whoever opens it."""
    net = Net()
    source = net.input("in", (1, 4))
    gate = net.add("RELU", [source], "gate", (1, 4))
    gated = net.add("MUL", [gate, source], "gated", (1, 4))
    net.output(net.add("ADD", [gated, source], "out", (1, 4)))
    net.output(net.add("LOGISTIC", [source], "plain", (1, 4)))
    seen = {
        "in": (-2.0, -1.0),
        "gate": (0.0, 0.0),
        "gated": (0.0, 0.0),
        "out": (-2.0, -1.0),
        "plain": (0.1, 0.3),
    }
    ranges = {id(item): seen[item.name] for item in net.model.subgraphs[0].tensors}
    modes = IntegerPlan(net.model, lambda _: 8, ranges).modes
    kinds = [item.code.name for item in net.graph.operators if modes.width(item)]
    assert kinds == ["LOGISTIC"]
    told = "'gate' is 0 in all samples: what else it may hold is not known"
    assert modes.reasons[id(net.graph.operators[0])] == told
