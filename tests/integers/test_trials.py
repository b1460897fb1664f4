"""Copies that round some tensors and compute with rounded weights."""

from __future__ import annotations

import numpy as np

from tests.nets import Net, codes, data_of, named, nearest
from tfl_rewrite.integers.convert import IntegerWeight
from tfl_rewrite.integers.groups import Grid
from tfl_rewrite.integers.trials import operators_by_place, rounding, weighing
from tfl_rewrite.model.invariants import broken

GRID = Grid(8, 1 / 64, 3)


def small() -> Net:
    net = Net()
    hidden = net.dense(net.input("in", (1, 4)), net.weights("w", (4, 4)), "hidden")
    net.output(net.add("ADD", [hidden, net.constant("c", np.ones(4, np.float32))], "out", (1, 4)))
    return net


def test_only_the_tensors_of_a_group_are_rounded() -> None:
    net, copy = small(), small()
    dense, add = net.graph.operators
    grids = {id(named(net.model, name)): GRID for name in ("hidden", "c")}
    places = rounding(net.model, grids, {id(dense), id(add)})(copy.model)
    assert broken(copy.model) == []
    assert [name for name, _ in codes(copy.model)] == [
        *("FULLY_CONNECTED", "QUANTIZE", "DEQUANTIZE"),
        *("QUANTIZE", "DEQUANTIZE", "ADD"),
    ]
    assert places[0, 1].code.name == "ADD"
    first, second = places[0, 1].inputs
    assert first is named(copy.model, "hidden"), "others know it by its name"
    assert second is not None and second is not named(copy.model, "c")
    assert [name for name, _ in codes(net.model)] == ["FULLY_CONNECTED", "ADD"], "the model itself stays"


def test_an_output_that_is_rounded_stays_the_output() -> None:
    net, copy = small(), small()
    rounding(net.model, {id(named(net.model, "out")): GRID}, ())(copy.model)
    assert copy.graph.outputs == [named(copy.model, "out")]
    assert copy.graph.operators[-1].outputs == copy.graph.outputs
    assert copy.graph.operators[-1].code.name == "DEQUANTIZE"


def test_who_reads_floats_reads_them_as_they_are() -> None:
    net, copy = small(), small()
    rounding(net.model, {id(named(net.model, "in")): GRID}, ())(copy.model)
    assert [name for name, _ in codes(copy.model)] == ["FULLY_CONNECTED", "ADD"]


def test_weights_are_the_numbers_that_integers_stand_for() -> None:
    net, copy = small(), small()
    dense = net.graph.operators[0]
    made = nearest(dense, 1)
    weight = IntegerWeight(made.values, made.scale, made.axis, np.arange(4.0))
    places = weighing(net.model, {(id(dense), 1): weight}, operators_by_place)(copy.model)
    _, values, bias = places[0, 0].inputs
    assert values is not None and bias is not None
    assert np.array_equal(data_of(values), made.values * made.scale[:, None])
    assert data_of(bias).tolist() == [0.0, 1.0, 2.0, 3.0]
    assert broken(copy.model) == []
