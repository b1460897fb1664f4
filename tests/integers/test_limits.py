"""What integer kernels would compute wrong on their grids stays float, and weights keep to limits."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from tests.nets import Net, nearest
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.kernels.operands import scales_of

Range = tuple[float, float]


def plan_of(net: Net, width: int = 8, **known: Range) -> IntegerPlan:
    ranges = {id(item): known.get(item.name, (-1.0, 1.0)) for item in net.model.subgraphs[0].tensors}
    return IntegerPlan(net.model, lambda _: width, ranges)


def reason(plan: IntegerPlan) -> str:
    return next(iter(plan.modes.reasons.values()), "")


def of_two(kind: str, **options: object) -> Net:
    net = Net()
    pair = [net.input("a", (1, 4)), net.input("b", (1, 4))]
    net.output(net.add(kind, pair, "out", (1, 4), **options))
    return net


def of_one(kind: str, **options: object) -> Net:
    net = Net()
    net.output(net.add(kind, [net.input("a", (1, 4))], "out", (1, 4), **options))
    return net


def of_nothing_to_reduce() -> Net:
    net = Net()
    axes = net.constant("axes", np.zeros(1, np.int32))
    net.output(net.add("REDUCE_PROD", [net.input("a", (1, 4)), axes], "out", (1, 4), keep_dims=True))
    return net


def dense(weight: float, bias: float) -> Net:
    net = Net()
    weights = net.constant("w", np.full((2, 4), weight, np.float32))
    biases = net.constant("b", np.full(2, bias, np.float32))
    net.output(net.dense(net.input("a", (1, 4)), weights, "out", biases))
    return net


SMALL = (0.0, 1e-8)


@pytest.mark.parametrize(
    ("net", "width", "known", "why"),
    [
        (of_two("ADD"), 8, {"out": (-1e-3, 1e-3)}, "too far apart"),
        (of_two("ADD"), 8, {"out": (-0.1, 0.1)}, ""),
        (of_two("SQUARED_DIFFERENCE"), 8, {"out": (0.0, 1e-7)}, "too far apart"),
        (of_two("MUL"), 8, {"out": (-1e-5, 1e-5)}, "far smaller steps"),
        (of_two("BATCH_MATMUL"), 16, {"out": (-1e-9, 1e-9)}, "far smaller steps"),
        (of_two("LESS"), 8, {"a": (0.0, 0.01)}, "multiples of 1/256"),
        (of_two("DIV"), 8, {"b": (-1.0, 1.0)}, "may round to 0"),
        (of_two("DIV"), 8, {"b": (0.5, 1.0), "out": (-100.0, 100.0)}, "too coarse"),
        (of_two("DIV"), 8, {"b": (0.5, 1.0), "out": (-2.0, 2.0)}, ""),
        (of_one("RELU6"), 8, {"a": SMALL, "out": SMALL}, "its bounds"),
        (of_one("AVERAGE_POOL_2D", fused_activation_function=3), 8, {"a": SMALL}, ""),
        (of_two("ADD", fused_activation_function=3), 8, {"a": SMALL, "b": SMALL, "out": SMALL}, "its bounds"),
        (of_one("TANH"), 16, {"a": (-1e6, 1e6)}, "too large"),
        (of_one("TANH"), 16, {"a": (-1e-9, 1e-9)}, "too small"),
        (of_one("GELU"), 16, {"a": (-1e3, 1e3)}, "too large"),
        (of_one("HARD_SWISH"), 8, {"a": (-1e9, 1e9), "out": (-1e9, 1e9)}, "too large"),
        (of_one("L2_NORMALIZATION"), 8, {"a": (0.0, 1e-4)}, "so small"),
        (of_one("LOG"), 8, {"a": (1e-6, 1.0)}, "orders of magnitude"),
        (of_one("SQRT"), 16, {"a": (0.0, 1.0)}, "orders of magnitude"),
        (of_nothing_to_reduce(), 8, {}, "nothing to reduce"),
        (of_one("ABS"), 8, {"a": (-1e35, 1.0)}, "above 2^100"),
    ],
)
def test_what_a_kernel_computes_wrong_stays_float(
    net: Net, width: int, known: dict[str, Range], why: str
) -> None:
    plan = plan_of(net, width, **known)
    assert why in reason(plan) and bool(reason(plan)) == bool(why)
    assert bool(plan.modes.widths) != bool(why)


@pytest.mark.parametrize(
    ("weight", "bias", "out"),
    [
        # Far larger than what a fused function lets through, in sums or in one bias.
        (1e10, 0.0, 1.0),
        (1.0, 1e10, 1.0),
        # A multiplier that XNNPACK refuses.
        (1.0, 0.0, 1e-6),
    ],
)
@pytest.mark.parametrize("width", [8, 16])
def test_sums_that_overflow_stay_float(weight: float, bias: float, out: float, width: int) -> None:
    if width == 16 and out < 1:
        out /= 256
    plan = plan_of(dense(weight, bias), width, out=(-out, out))
    assert not plan.modes.widths and "steps of its output" in reason(plan)


@pytest.mark.parametrize(("weight", "size"), [(1e-25, 1.0), (0.0, 1.0), (0.0, 1e-12)])
def test_scales_of_weights_keep_to_what_kernels_take(weight: float, size: float) -> None:
    net = dense(weight, size / 2)
    plan = plan_of(net, out=(-size, size))
    assert plan.modes.widths, reason(plan)
    editor = Editor(net.model)
    plan.convert(editor, nearest)
    editor.finish()
    (operator,) = (item for _, item in net.model.operators() if item.code.name == "FULLY_CONNECTED")
    source, weights, bias = operator.inputs
    (made,) = operator.outputs
    assert source is not None and weights is not None and bias is not None and made is not None
    multiplier = scales_of(bias)[0] / scales_of(made)[0]
    assert 2.0**-31 <= multiplier < 256
    assert scales_of(bias)[0] * bias.values[0] == pytest.approx(size / 2, rel=1e-3)


def test_a_grid_of_zeros_that_no_float32_holds_is_no_warning() -> None:
    net = dense(0.0, 0.0)
    plan = plan_of(net, a=(-1e-20, 1e-20), out=(-3e18, 3e18))
    assert plan.modes.widths, reason(plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan.convert(Editor(net.model), nearest)


def test_additions_beside_int16_say_that_scales_are_any() -> None:
    net = of_two("ADD", pot_scale_int16=True)
    editor = Editor(net.model)
    plan_of(net, 16).convert(editor, nearest)
    editor.finish()
    (operator,) = (item for _, item in net.model.operators() if item.code.name == "ADD")
    assert operator.option("pot_scale_int16") is False
