"""Which grids uint8 tensors have, and what cannot compute in int8."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.nets import UnsignedNet, named, with_grid
from tfl_rewrite.flatbuf.record import FLOAT32, INT64, ScalarVector
from tfl_rewrite.integers.unsigned import chosen_operators, grid_of
from tfl_rewrite.kernels.integer import Target
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.model.ir import Quantization


def no_constant(net: UnsignedNet) -> None:
    weight = net.graph.operators[0].inputs[1]
    assert weight is not None
    net.graph.inputs.append(weight)


def many_scales(net: UnsignedNet) -> None:
    details = Quantization(ScalarVector.of(FLOAT32, [1.0, 2.0]), ScalarVector.of(INT64, [1, 1]))
    named(net.model, "w").quantization = details


def short_bias(net: UnsignedNet) -> None:
    named(net.model, "b").shape = (1,)


def no_scale(net: UnsignedNet) -> None:
    net.graph.outputs[0].quantization = None


def zero_scale(net: UnsignedNet) -> None:
    with_grid(named(net.model, "w"), 0.0, 0)


def short_data(net: UnsignedNet) -> None:
    named(net.model, "w").shape = (2, 1, 1, 3)


def no_filter(net: UnsignedNet) -> None:
    net.graph.operators[0].inputs[1] = None


def wide_output(net: UnsignedNet) -> None:
    net.graph.outputs[0].dtype = 7


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_constant, "no uint8 constant for the weight"),
        (many_scales, "one scale and zero point"),
        (zero_scale, "one scale and zero point"),
        (short_bias, "no int32 constant of one value a channel"),
        (short_data, "no uint8 constant for the weight"),
        (no_scale, "one scale and zero point"),
        (no_filter, "input 1 is absent"),
        (wide_output, "another width"),
    ],
)
def test_what_is_not_plain_stays_and_is_named(damage: Callable[[UnsignedNet], None], reason: str) -> None:
    net = UnsignedNet()
    net.output(net.convolution(net.source(), np.array([[[[0, 255]]], [[[100, 140]]]]), 60))
    damage(net)
    reasons: dict[int, str] = {}
    chosen = chosen_operators(net.graph, Graph.of(net.model), lambda _: False, reasons)
    assert not chosen and reason in next(iter(reasons.values()))


def test_the_grid_of_a_tensor_is_that_of_its_int8_twin() -> None:
    net = UnsignedNet()
    found = grid_of(net.source(zero=0))
    assert found is not None and (found.scale, found.zero_point) == (0.5, -128)
    assert grid_of(net.input("floats", (1,))) is None and grid_of(None) is None
    assert grid_of(with_grid(net.tensor("odd", (1,), np.uint8), 0.5, 300)) is None


def test_what_the_target_has_no_kernel_of_stays() -> None:
    for target, told in ((Target.LITERT, {}), (Target.OLD, {"runtime 2.14 has no int8 kernel of DIV"})):
        net = UnsignedNet()
        net.output(net.gives("DIV", [net.source((1, 4)), net.source((1, 4))], "out"))
        reasons: dict[int, str] = {}
        chosen_operators(net.graph, Graph.of(net.model), lambda _: False, reasons, target)
        assert set(reasons.values()) == set(told)
