"""What matches a pattern, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tfl_rewrite.editing.patterns import Constant, Either, Match, Matcher, Op, Value, op
from tfl_rewrite.kernels.table import ADD, MUL, NEG, RELU, SUB
from tfl_rewrite.model.ir import Model

from ..nets import Net, named

X = Value("x")
NEGATIVE = op(NEG, op(RELU, op(NEG, X), name="inner"))
SCALED = op(ADD, op(RELU, X), op(MUL, Constant("alpha"), NEGATIVE))


def leaky(alpha: float | None = 0.5) -> Net:
    """RELU of what comes in, plus a multiple of the rest."""
    net = Net()
    x = net.input("x", (1, 4))
    part = net.add("RELU", [net.add("NEG", [x], "n", (1, 4))], "r", (1, 4))
    part = net.add("NEG", [part], "negative", (1, 4))
    factor = part
    if alpha is not None:
        factor = net.constant("alpha", np.full(4, alpha, np.float32))
    scaled = net.add("MUL", [part, factor], "scaled", (1, 4))
    positive = net.add("RELU", [x], "positive", (1, 4))
    net.output(net.add("ADD", [scaled, positive], "y", (1, 4), fused_activation_function=0))
    return net


def found(model: Model, pattern: Op) -> list[Match]:
    matcher = Matcher(model)
    each = [matcher.match(pattern, graph, item) for graph in model.subgraphs for item in graph.operators]
    return [item for item in each if item is not None]


def test_captures_are_told_whatever_the_order_of_operands() -> None:
    (match,) = found(leaky().model, SCALED)
    assert match.output.name == "y" and match.tensors["x"].name == "x"
    assert match.nodes["inner"].outputs[0] is not None and match.nodes["inner"].outputs[0].name == "r"
    assert match.arrays["alpha"].tolist() == [0.5] * 4
    assert [item.code.name for item in match.operators] == ["NEG", "RELU", "NEG", "MUL", "RELU", "ADD"]


def test_what_does_not_commute_keeps_its_order() -> None:
    net = Net()
    x = net.input("x", (1, 4))
    net.output(net.add("SUB", [net.constant("c", np.ones(4, np.float32)), x], "y", (1, 4)))
    assert not found(net.model, op(SUB, X, Constant()))
    assert found(net.model, op(SUB, Constant(), X))


def test_one_name_is_one_tensor() -> None:
    net = Net()
    x, z = net.input("x", (1, 4)), net.input("z", (1, 4))
    net.output(net.add("MUL", [x, z], "y", (1, 4)))
    assert not found(net.model, op(MUL, X, X))
    assert found(net.model, op(MUL, X, Value("z")))


def test_a_constant_of_float16_is_expanded() -> None:
    net = Net()
    x = net.input("x", (1, 4))
    net.output(net.add("MUL", [x, net.half("c", np.full((4,), 0.25))], "y", (1, 4)))
    (match,) = found(net.model, op(MUL, X, Constant("c")))
    assert match.arrays["c"].dtype == np.float32 and match.arrays["c"].tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("value", "shape", "fits"), [(0.5, (), True), (0.5, (1,), True), (0.5, (1, 1), True), (0.5, (4,), False)]
)
@pytest.mark.parametrize(("off", "close"), [(0.0, True), (1e-7, True), (1e-4, False)])
def test_a_number_is_met_within_float32(
    value: float, shape: tuple[int, ...], fits: bool, off: float, close: bool
) -> None:
    net = Net()
    x = net.input("x", (1, 4))
    number = net.constant("c", np.full(shape, value + off, np.float32))
    net.output(net.add("MUL", [x, number], "y", (1, 4)))
    assert bool(found(net.model, op(MUL, X, Constant(near=0.5)))) is (fits and close)


def read_elsewhere(net: Net) -> None:
    net.output(net.add("ABS", [named(net.model, "negative")], "z", (1, 4)))


def expose(net: Net) -> None:
    net.output(named(net.model, "n"))


def activate(net: Net) -> None:
    operator = net.graph.operators[-3]
    assert operator.code.name == "MUL" and operator.options is not None
    operator.options = operator.options.replace(fused_activation_function=1)


def make_variable(net: Net) -> None:
    named(net.model, "x").is_variable = True


def make_twice(net: Net) -> None:
    operators = net.graph.operators
    assert operators[1].code.name == "RELU"
    net.add("ABS", [named(net.model, "x")], "spare", (1, 4))
    operators.insert(0, operators.pop())
    operators[0].outputs = [named(net.model, "r")]


def compute_alpha(net: Net) -> None:
    named(net.model, "alpha").buffer = net.model.buffers[0]
    net.graph.inputs.append(named(net.model, "alpha"))


@pytest.mark.parametrize(
    "change",
    [read_elsewhere, expose, activate, make_variable, make_twice, compute_alpha],
    ids=lambda c: c.__name__,
)
def test_what_others_see_or_do_more_does_not_match(change: Callable[[Net], None]) -> None:
    net = leaky()
    assert found(net.model, SCALED)
    change(net)
    assert not found(net.model, SCALED)


def test_alternatives_are_tried_until_the_whole_fits() -> None:
    pattern = op(ADD, Either((op(RELU, Value("z")), op(MUL, X, Value("f")))), op(RELU, X))
    # The first choice takes the RELU that only the second one leaves for the other side.
    (match,) = found(leaky_of_itself().model, pattern)
    assert match.tensors["f"].name == "f"


def leaky_of_itself() -> Net:
    net = Net()
    x, factor = net.input("x", (1, 4)), net.input("f", (1, 4))
    scaled = net.add("MUL", [x, factor], "scaled", (1, 4))
    net.output(net.add("ADD", [net.add("RELU", [x], "r", (1, 4)), scaled], "y", (1, 4)))
    return net


def test_a_custom_operator_is_known_by_its_name() -> None:
    net = leaky_of_itself()
    code = net.graph.operators[0].code
    code.custom, code.builtin = "Squash", 32
    assert found(net.model, op("Squash", X, Value("f"), types=()))
    assert not found(net.model, op(MUL, X, Value("f")))
