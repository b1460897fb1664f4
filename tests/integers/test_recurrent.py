"""Operators that keep a state: their integer form, and what keeps them float; no runtime."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from tests.kernels.integer_cases import Recurrent, filtered
from tests.nets import Net, nearest, parameters
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.integers.recurrent import form_of
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Model, Operator, Tensor

Range = tuple[float, float]


def plan_of(model: Model, **held: Range) -> IntegerPlan:
    """A plan where all that a call computes is between -1 and 1, or as said of a name."""
    graph = model.subgraphs[0]
    found = [item for item in graph.tensors if not item.is_constant]
    return IntegerPlan(model, lambda _: 8, {id(item): held.get(item.name, (-1.0, 1.0)) for item in found})


def converted(model: Model, **held: Range) -> Operator:
    plan, editor = plan_of(model, **held), Editor(model)
    operator = model.subgraphs[0].operators[0]
    assert plan.modes.widths and not plan.modes.reasons
    plan.convert(editor, nearest)
    editor.finish()
    assert broken(model) == []
    return operator


def operand(operator: Operator, position: int) -> Tensor:
    tensor = operator.inputs[position]
    assert tensor is not None
    return tensor


def scale_of(operator: Operator, position: int) -> float:
    return parameters(operand(operator, position))[0]


def test_an_lstm_has_the_types_and_scales_that_its_kernel_wants() -> None:
    operator = converted(Recurrent(peephole=True).build()[0], cells=(-3.0, 5.0))
    types = [None if item is None else item.dtype_name for item in operator.inputs]
    weights, biases = ["INT8"] * 8, ["INT32"] * 4
    assert types == [
        *("INT8", *weights, *["INT16"] * 3, *biases, None, None),
        *("INT8", "INT16", *[None] * 4),
    ]
    for bias, weight in zip(range(12, 16), range(1, 5), strict=True):
        product = scale_of(operator, 0) * scale_of(operator, weight)
        assert scale_of(operator, bias) == pytest.approx(product)
    # 5.0 with its margin of 2 fits below 16, which is a power of two.
    assert parameters(operand(operator, 19)) == (16 / 2**15, 0)
    assert parameters(operand(operator, 18)) == parameters(operator.outputs[0])
    types = [None if item is None else item.dtype_name for item in operator.intermediates]
    assert types == ["INT16"] * 4 + ["INT8"]
    assert parameters(operator.intermediates[4]) == parameters(operator.outputs[0])
    assert operator.code.version == 2


def test_what_is_projected_is_symmetric_and_within_one() -> None:
    """Kernels have taken its zero point with either sign."""
    operator = converted(Recurrent(outputs=5).build()[0])
    scale, zero = parameters(operator.intermediates[4])
    assert zero == 0 and 127 * scale == pytest.approx(math.tanh(1.0))
    assert scale_of(operator, 17) == pytest.approx(scale * scale_of(operator, 16))


def test_sums_that_are_normalized_have_scales_of_their_own() -> None:
    operator = converted(Recurrent(normalized=True).build()[0])
    steps = [parameters(item)[0] for item in operator.intermediates[:4]]
    assert len({*steps, 2.0**-12}) == 5
    for bias, norm in zip(range(12, 16), range(20, 24), strict=True):
        assert scale_of(operator, bias) == pytest.approx(scale_of(operator, norm) / 1024)


def test_a_weight_is_as_coarse_as_its_bias_needs() -> None:
    model = Recurrent().build()[0]
    tensor = operand(model.subgraphs[0].operators[0], 2)
    tensor.set_values(tensor.values * np.float32(1e-9))
    operator = converted(model)
    bias = operand(operator, 13).values
    assert 2**29 < np.abs(bias).max() <= 2**30


def test_the_range_of_a_filter_begins_at_zero() -> None:
    """Its kernel asks for RELU, and does not compute it."""
    operator = converted(filtered()[0], out=(-1.0, 3.0))
    assert parameters(operator.outputs[0]) == (pytest.approx(3.0 * 1.5 / 255), -128)
    types = [item.dtype_name for item in operator.inputs if item is not None]
    assert types == ["INT8", "INT8", "INT16", "INT32", "INT16"]
    assert np.abs(operand(operator, 2).values).max() == 511
    assert operator.intermediates == [] and operator.code.version == 3


def test_a_projection_is_clipped_by_the_range() -> None:
    model = Recurrent(outputs=5, options={"proj_clip": 0.5}).build()[0]
    operator = converted(model, out=(-0.5, 0.4))
    scale, zero = parameters(operator.outputs[0])
    assert (-128 - zero) * scale == pytest.approx(-0.5, abs=scale)
    assert operator.option("proj_clip") == 0.0


def test_each_weight_is_rounded_by_itself_with_one_scale() -> None:
    model = Recurrent(outputs=5).build()[0]
    works = plan_of(model).works()
    assert sorted(position for _, position in works) == [*range(1, 9), 16]
    assert all(work.axis is None and work.channels.channels == 1 for work in works.values())


def test_integers_that_are_given_stay() -> None:
    model = Recurrent().build()[0]
    (operator,) = model.subgraphs[0].operators
    plan = plan_of(model)
    given = np.full((8, 7), -127, np.int8), 0.015625
    dtype, integers, step = form_of(operator, plan.groups_of(model.subgraphs[0])).constants({2: given})[2]
    assert dtype == "INT8" and step == given[1] and np.array_equal(integers, given[0])


def basic() -> Model:
    model = Recurrent("LSTM", options={"kernel_type": 1}).build()[0]
    return model


def diagonal() -> Model:
    model = Recurrent().build()[0]
    for position in range(5, 9):
        operand(model.subgraphs[0].operators[0], position).shape = (64,)
    return model


def shared() -> Model:
    model = Recurrent().build()[0]
    model.subgraphs[0].outputs.append(operand(model.subgraphs[0].operators[0], 19))
    return model


def stored() -> Model:
    model = Recurrent().build()[0]
    operand(model.subgraphs[0].operators[0], 19).is_variable = False
    return model


def infinite() -> Model:
    model = Recurrent().build()[0]
    tensor = operand(model.subgraphs[0].operators[0], 14)
    tensor.set_values(np.full(8, np.inf, np.float32))
    return model


def odd_rank() -> Model:
    model = filtered(rank=2)[0]
    (operator,) = model.subgraphs[0].operators
    assert operator.options is not None
    operator.options = operator.options.replace(rank=5)
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (basic, "the BASIC kernel of LSTM takes no such integers"),
        (diagonal, "recurrent weights are diagonals"),
        (shared, "others read the state"),
        (stored, "input 19 of UNIDIRECTIONAL_SEQUENCE_LSTM is no plain variable"),
        (infinite, "not finite in input 14"),
        (odd_rank, "the shapes of the constants of SVDF do not fit"),
    ],
)
def test_what_no_integer_kernel_computes_stays_float(build: Callable[[], Model], reason: str) -> None:
    (told,) = plan_of(build()).modes.reasons.values()
    assert reason in told


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        ({"cells": (-65.0, 1.0)}, "has no room for a state of 65"),
        ({"cells": (-math.inf, 1.0)}, "has no room for a state of inf"),
        ({"cells": (math.nan, math.nan)}, "has no room for a state of nan"),
        ({"in": (-1e9, 1.0)}, "too many steps"),
        ({"out": (0.0, 1e-12)}, "too many steps"),
    ],
)
def test_what_the_kernel_has_no_room_for_stays_float(held: dict[str, Range], reason: str) -> None:
    (told,) = plan_of(Recurrent().build()[0], **held).modes.reasons.values()
    assert reason in told


def test_a_state_that_no_sample_shows_stays_float() -> None:
    model = Recurrent().build()[0]
    graph = model.subgraphs[0]
    ranges = {id(item): (-1.0, 1.0) for item in (*graph.inputs, *graph.outputs)}
    (told,) = IntegerPlan(model, lambda _: 8, ranges).modes.reasons.values()
    assert told == "no sample says what 'cells' holds"


def test_what_is_read_a_step_later_is_kept_whole_whoever_else_reads_it() -> None:
    """A RELU tells negative numbers not apart, and the gates of the next step do."""
    net = Net()
    net.model = Recurrent().build()[0]
    net.graph = net.model.subgraphs[0]
    (last,) = net.graph.outputs
    net.graph.outputs[:] = [net.add("RELU", [last], "cut", last.shape or ())]
    converted(net.model, out=(-1.0, 0.5), cut=(0.0, 0.5))
    scale, zero = parameters(last)
    assert (-128 - zero) * scale == pytest.approx(-1.0, abs=scale)


def test_what_reads_another_one_becomes_integers_with_it() -> None:
    net = Net()
    net.model = Recurrent(units=7).build()[0]
    net.graph = net.model.subgraphs[0]
    first, (made,) = net.graph.operators[0], net.graph.outputs
    states = [net.variable(f"second{at}", (2, 7)) for at in range(2)]
    inputs = [made, *first.inputs[1:18], *states, *[None] * 4]
    shape = made.shape or ()
    net.graph.outputs[:] = [net.add(first.code.name, inputs, "two", shape, fused_activation_function=4)]
    converted(net.model, second1=(-3.0, 3.0))
    one, other = (item for item in net.graph.operators if item.intermediates)
    assert one.outputs[0] is other.inputs[0] and one.inputs[1] is other.inputs[1]
    assert scale_of(one, 19) == 2.0**-13 and scale_of(other, 19) == 2.0**-12
