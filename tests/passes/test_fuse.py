"""What is fused gives the same on every resolver; what must stay stays, with the reason."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import save
from tfl_rewrite.editing.base import PassResult, run_passes
from tfl_rewrite.kernels.table import CLAMPS, FUSING
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Model, Tensor, schema
from tfl_rewrite.passes.fuse import Fuse

from ..nets import Array, Net, decibels, named, with_grid

ACTIVATIONS = schema().enums["ActivationFunctionType"].values
IMAGE = (1, 6, 6, 4)


def kinds(model: Model) -> list[str]:
    return [operator.code.name for _, operator in model.operators()]


def fused(net: Net, **options: Any) -> PassResult:
    (result,) = run_passes(net.model, [Fuse(**options)])
    assert not broken(net.model)
    before = kinds(net.model)
    assert not run_passes(net.model, [Fuse(**options)])[0].modified
    assert kinds(net.model) == before
    return result


def outputs(model: Model) -> dict[str, list[Array]]:
    """What a model gives for the same numbers on each resolver."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.tflite")
        save(model, path)
        for kind in (
            OpResolverType.AUTO,
            OpResolverType.BUILTIN_REF,
            OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        ):
            random = np.random.default_rng(1)
            interpreter = Interpreter(str(path), experimental_op_resolver_type=kind, num_threads=1)
            interpreter.allocate_tensors()
            for row in interpreter.get_input_details():
                values = random.uniform(-9, 9, row["shape"]).astype(np.float32)
                interpreter.set_tensor(row["index"], values.astype(row["dtype"]))
            interpreter.invoke()
            found[kind.name] = [
                interpreter.get_tensor(row["index"]) for row in interpreter.get_output_details()
            ]
    return found


def compare(before: dict[str, list[Array]], after: dict[str, list[Array]], least: float) -> None:
    for name, arrays in before.items():
        for old, new in zip(arrays, after[name], strict=True):
            assert old.shape == new.shape and old.dtype == new.dtype
            assert np.ptp(old) > 0, "says nothing"
            if least == np.inf:
                assert np.array_equal(old, new), name
            assert decibels(old, new) >= least, name


def by_structure(net: Net, least: float = np.inf, **options: Any) -> PassResult:
    """Fuses, and sees that it is told whether outputs stay equal to the bit."""
    result = fused(net, **options)
    assert result.modified and result.exact is (least == np.inf)
    return result


def by_numbers(net: Net, least: float = np.inf, **options: Any) -> PassResult:
    """Fuses, and compares what the runtime computes before and after."""
    before = outputs(net.model)
    result = by_structure(net, least, **options)
    compare(before, outputs(net.model), least)
    return result


Run = Callable[..., PassResult]
in_both_ways = pytest.mark.parametrize(
    "run_fused", [by_structure, pytest.param(by_numbers, marks=pytest.mark.runtime)]
)
"""What becomes of a model is looked at in the quick tests, and what it computes in those on the runtime."""


# -- Activations go into the operator before -----------------------------------------------------------------

WINDOW = {"stride_h": 1, "stride_w": 1}
FILTERED = {**WINDOW, "dilation_h_factor": 1, "dilation_w_factor": 1}
POOLED = {**WINDOW, "filter_height": 2, "filter_width": 2}


def host(net: Net, kind: str, x: Tensor, shape: tuple[int, ...] = IMAGE) -> Tensor:
    """An operator of a kind, over an image; it gives out one."""
    name, channels = f"of {kind}", shape[-1]
    bias = net.constant(f"{name} b", np.ones(channels, np.float32))
    if kind == "CONV_2D":
        filters = net.weights(f"{name} w", (channels, 3, 3, channels))
        return net.add(kind, [x, filters, bias], name, shape, **FILTERED)
    if kind == "DEPTHWISE_CONV_2D":
        filters = net.weights(f"{name} w", (1, 3, 3, channels))
        return net.add(kind, [x, filters, bias], name, shape, depth_multiplier=1, **FILTERED)
    if kind == "FULLY_CONNECTED":
        weights = net.weights(f"{name} w", (channels, channels))
        return net.add(kind, [x, weights, None], name, shape, version=6, keep_num_dims=True)
    if kind == "CONV_3D":
        deep = net.add(
            "EXPAND_DIMS", [x, net.constant(f"{name} axis", np.int32([1]))], f"{name} in", (1, *shape)
        )
        filters = net.weights(f"{name} w", (1, 1, 1, channels, channels))
        depth = {"stride_d": 1, "dilation_d_factor": 1}
        return net.add(kind, [deep, filters, bias], name, (1, *shape), **FILTERED, **depth)
    if "POOL" in kind:
        return net.add(kind, [x], name, shape, **POOLED)
    return net.add(kind, [x, net.weights(f"{name} c", (channels,))], name, shape)


@in_both_ways
@pytest.mark.parametrize("clamp", [row.name for row in CLAMPS if row.name in ACTIVATIONS])
def test_kernels_that_fuse_do_what_the_clamp_did(clamp: str, run_fused: Run) -> None:
    net = Net()
    x = net.input("x", IMAGE)
    for row in FUSING:
        net.output(net.add(clamp, [host(net, row.name, x)], f"clamped {row.name}", IMAGE))
    result = run_fused(net)
    assert len(result.changes) == len(FUSING) and clamp not in kinds(net.model)
    hosts = [item for item in net.graph.operators if item.code.name != "EXPAND_DIMS"]
    assert {item.option("fused_activation_function") for item in hosts} == {ACTIVATIONS[clamp]}


@in_both_ways
def test_a_hybrid_layer_does_it_too(run_fused: Run) -> None:
    from tfl_rewrite.passes import QuantizeWeights

    net = Net()
    x = net.input("x", IMAGE)
    for kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        net.output(net.add("RELU_N1_TO_1", [host(net, kind, x)], f"clamped {kind}", IMAGE))
    run_passes(net.model, [QuantizeWeights(min_elements=1)])
    run_fused(net)
    assert "RELU_N1_TO_1" not in kinds(net.model)


@pytest.mark.parametrize(
    ("own", "clamp", "both"),
    [
        ("NONE", "RELU6", "RELU6"),
        ("RELU", "RELU6", "RELU6"),
        ("RELU6", "RELU", "RELU6"),
        ("RELU6", "RELU6", "RELU6"),
        ("RELU", "RELU_N1_TO_1", None),
        ("TANH", "RELU", None),
        ("SIGN_BIT", "RELU", None),
        ("NONE", "RELU_0_TO_1", None),
    ],
)
def test_two_clamps_are_one_where_there_is_such_a_one(own: str, clamp: str, both: str | None) -> None:
    net = Net()
    x = net.input("x", IMAGE)
    made = net.add("ADD", [x, x], "sum", IMAGE, fused_activation_function=ACTIVATIONS[own])
    net.output(net.add(clamp, [made], "y", IMAGE))
    result = fused(net)
    assert kinds(net.model) == (["ADD"] if both else ["ADD", clamp])
    assert result.modified is bool(both)
    number = net.graph.operators[0].option("fused_activation_function")
    assert number == ACTIVATIONS[both or own]
    assert net.graph.operators[-1].outputs == [named(net.model, "y")]


@pytest.mark.parametrize("kind", ["CONCATENATION", "L2_NORMALIZATION", "TRANSPOSE_CONV", "LOGISTIC"])
def test_other_operators_keep_what_is_behind_them(kind: str) -> None:
    net = Net()
    x = net.input("x", IMAGE)
    net.output(net.add("RELU", [net.add(kind, [x, x, x], "made", IMAGE)], "y", IMAGE))
    assert not fused(net).modified


def test_integers_are_not_fused() -> None:
    net = Net()
    x = net.input("x", IMAGE, np.int8)
    made = net.add("ADD", [x, x], "sum", IMAGE, dtype=np.int8)
    net.output(net.add("RELU", [made], "y", IMAGE, dtype=np.int8))
    assert not fused(net).modified


@in_both_ways
def test_clamps_that_were_spelled_out_become_one(run_fused: Run) -> None:
    net = Net()
    x = net.input("x", IMAGE)

    def bound(kind: str, value: Tensor, at: float) -> Tensor:
        number = net.constant(f"{at} of {value.name}", np.float32(at))
        return net.add(kind, [number, value], f"{kind} {at} {value.name}", IMAGE)

    net.output(bound("MAXIMUM", x, 0))
    net.output(bound("MINIMUM", bound("MAXIMUM", x, 0), 6))
    net.output(bound("MAXIMUM", bound("MINIMUM", x, 6), 0))
    net.output(bound("MINIMUM", bound("MAXIMUM", x, -1), 1))
    net.output(bound("MINIMUM", net.add("RELU", [x], "r", IMAGE), 6))
    net.output(bound("MAXIMUM", x, 1))
    run_fused(net)
    assert kinds(net.model) == ["RELU", "RELU6", "RELU6", "RELU_N1_TO_1", "RELU6", "MAXIMUM"]
    assert [item.name for item in net.graph.tensors if item.is_constant] == ["1 of x"]


# -- Activation functions that were spelled out --------------------------------------------------------------


class Spelled(Net):
    """Adds products and sums over images."""

    def over(self, kind: str, *operands: Tensor | float) -> Tensor:
        name = f"t{len(self.graph.tensors)}"
        inputs = [
            item if isinstance(item, Tensor) else self.constant(f"{name} {at}", np.float32(item))
            for at, item in enumerate(operands)
        ]
        return self.add(kind, inputs, name, IMAGE)


def gelu_of_powers(net: Spelled, x: Tensor) -> Tensor:
    inner = net.over("ADD", x, net.over("MUL", 0.044715, net.over("POW", x, 3.0)))
    step = net.over("TANH", net.over("MUL", inner, np.sqrt(2 / np.pi)))
    return net.over("MUL", net.over("MUL", 0.5, x), net.over("ADD", 1.0, step))


def gelu_of_products(net: Spelled, x: Tensor) -> Tensor:
    cube = net.over("MUL", net.over("MUL", x, x), x)
    inner = net.over("MUL", net.over("ADD", net.over("MUL", cube, 0.044715), x), np.sqrt(2 / np.pi))
    return net.over("MUL", x, net.over("MUL", net.over("ADD", net.over("TANH", inner), 1.0), 0.5))


def gelu_of_squares(net: Spelled, x: Tensor) -> Tensor:
    square = net.over("ADD", 1.0, net.over("MUL", net.over("SQUARE", x), 0.044715))
    step = net.over("TANH", net.over("MUL", net.over("MUL", x, np.sqrt(2 / np.pi)), square))
    return net.over("MUL", 0.5, net.over("MUL", x, net.over("ADD", step, 1.0)))


@in_both_ways
@pytest.mark.parametrize("spelled", [gelu_of_powers, gelu_of_products, gelu_of_squares])
def test_gelu(spelled: Callable[[Spelled, Tensor], Tensor], run_fused: Run) -> None:
    net = Spelled()
    x = net.input("x", IMAGE)
    y = spelled(net, x)
    net.output(y)
    result = run_fused(net, 120)
    assert kinds(net.model) == ["GELU"] and net.graph.tensors == [x, y]
    assert net.graph.operators[0].option("approximate") is True
    (change,) = result.changes
    # TFLite Micro has no POW either, so nothing is lost to it there.
    told = ["TFLite Micro has no GELU, but all of what became it; fuse --skip gelu leaves that"]
    assert list(result.notes) == ([] if spelled is gelu_of_powers else told)
    assert change.to_dict()["kind"] == "gelu" and change.to_dict()["after"] == ["GELU"]
    assert not any(item.nbytes for item in net.model.buffers)


def test_the_error_function_of_the_flex_delegate_inside_of_gelu_goes() -> None:
    net = Spelled()
    x = net.input("x", IMAGE)
    erf = net.over("ABS", net.over("MUL", x, np.sqrt(0.5)))
    net.graph.operators[-1].code.custom = "FlexErf"
    net.output(net.over("MUL", net.over("MUL", 0.5, x), net.over("ADD", erf, 1.0)))
    fused(net)
    assert kinds(net.model) == ["GELU"] and not net.graph.operators[0].option("approximate")


def test_a_near_miss_is_no_gelu() -> None:
    net = Spelled()
    x = net.input("x", IMAGE)
    inner = net.over("ADD", x, net.over("MUL", 0.0447, net.over("POW", x, 3.0)))
    step = net.over("TANH", net.over("MUL", inner, np.sqrt(2 / np.pi)))
    net.output(net.over("MUL", net.over("MUL", 0.5, x), net.over("ADD", 1.0, step)))
    assert not fused(net).modified


def test_a_number_that_adds_an_axis_stays() -> None:
    net = Spelled()
    x = net.input("x", (4,))
    half = net.constant("half", np.full((1, 1), 0.5, np.float32))
    step = net.over(
        "TANH",
        net.over(
            "MUL", net.over("ADD", x, net.over("MUL", 0.044715, net.over("POW", x, 3.0))), np.sqrt(2 / np.pi)
        ),
    )
    net.output(net.over("MUL", net.over("MUL", half, x), net.over("ADD", 1.0, step)))
    assert not fused(net).modified
    x.shape = (4, 4)
    assert fused(net).modified


def of_two_relus(net: Spelled, x: Tensor, alpha: Tensor) -> Tensor:
    below = net.over("NEG", net.over("RELU", net.over("NEG", x)))
    return net.over("ADD", net.over("RELU", x), net.over("MUL", alpha, below))


def of_negated_slopes(net: Spelled, x: Tensor, alpha: Tensor) -> Tensor:
    below = net.over("RELU", net.over("NEG", x))
    return net.over("ADD", net.over("MUL", below, alpha), net.over("RELU", x))


def of_a_difference(net: Spelled, x: Tensor, alpha: Tensor) -> Tensor:
    below = net.over("RELU", net.over("NEG", x))
    return net.over("SUB", net.over("RELU", x), net.over("MUL", below, alpha))


def of_a_negated_product(net: Spelled, x: Tensor, alpha: Tensor) -> Tensor:
    below = net.over("MUL", net.over("RELU", net.over("NEG", x)), alpha)
    return net.over("ADD", net.over("RELU", x), net.over("NEG", below))


def of_bounds(net: Spelled, x: Tensor, alpha: Tensor) -> Tensor:
    below = net.over("MUL", alpha, net.over("MINIMUM", x, 0.0))
    return net.over("ADD", net.over("MAXIMUM", x, 0.0), below)


def of_the_absolute_value(net: Spelled, x: Tensor, alpha: Tensor) -> Tensor:
    below = net.over("MUL", alpha, net.over("SUB", x, net.over("ABS", x)))
    return net.over("ADD", net.over("RELU", x), net.over("MUL", below, 0.5))


def of_half_slopes(net: Spelled, x: Tensor, alpha: Tensor) -> Tensor:
    return net.over(
        "ADD", net.over("RELU", x), net.over("MUL", net.over("SUB", x, net.over("ABS", x)), alpha)
    )


# By what the constant is multiplied.
PRELUS = {
    of_two_relus: 1,
    of_negated_slopes: -1,
    of_a_difference: 1,
    of_a_negated_product: 1,
    of_bounds: 1,
    of_the_absolute_value: 1,
    of_half_slopes: 2,
}
SLOPES = np.float32([0.25, -0.5, 1.5, 0.0])


@in_both_ways
@pytest.mark.parametrize("spelled", PRELUS, ids=lambda made: made.__name__)
@pytest.mark.parametrize("shape", [(4,), (1, 1, 4), (1, 1, 1, 4)], ids=str)
def test_prelu(
    spelled: Callable[[Spelled, Tensor, Tensor], Tensor], shape: tuple[int, ...], run_fused: Run
) -> None:
    net = Spelled()
    x = net.input("x", IMAGE)
    net.output(spelled(net, x, net.constant("alpha", SLOPES.reshape(shape))))
    run_fused(net, 120)
    assert kinds(net.model) == ["PRELU"]
    slopes = net.graph.operators[0].inputs[1]
    assert slopes is not None and slopes.shape == (1, 1, 4)
    assert slopes.values.reshape(-1).tolist() == (PRELUS[spelled] * SLOPES).tolist()
    assert [item.nbytes for item in net.model.buffers if item.nbytes] == [16]


@in_both_ways
@pytest.mark.parametrize("spelled", PRELUS, ids=lambda made: made.__name__)
def test_a_slope_that_is_shared_makes_leaky_relu(
    spelled: Callable[[Spelled, Tensor, Tensor], Tensor], run_fused: Run
) -> None:
    net = Spelled()
    net.output(spelled(net, net.input("x", IMAGE), net.half("alpha", np.full((1, 1, 1), 0.25))))
    run_fused(net, 120)
    assert kinds(net.model) == ["LEAKY_RELU"] and len(net.graph.tensors) == 2
    assert net.graph.operators[0].option("alpha") == 0.25 * PRELUS[spelled]


@in_both_ways
@pytest.mark.parametrize(("most", "kind"), [(1.0, "PRELU"), (1.5, "MAXIMUM")])
def test_the_larger_of_a_number_and_a_part_of_it(most: float, kind: str, run_fused: Run) -> None:
    net = Spelled()
    x = net.input("x", IMAGE)
    net.output(net.over("MAXIMUM", net.over("MUL", x, net.constant("a", np.float32([0.1, -2, 0, most]))), x))
    if kind == "PRELU":
        run_fused(net)
    assert not fused(net).modified and kinds(net.model)[-1] == kind


@pytest.mark.parametrize(
    ("shape", "alpha", "rule"),
    [
        ((1, 6, 6, 4), (6, 1, 4), "slopes"),
        ((1, 1, 6, 6, 4), (4,), "axes"),
        ((6, 1), (4,), None),
        ((4,), (1, 4), None),
    ],
)
def test_slopes_that_prelu_does_not_have(
    shape: tuple[int, ...], alpha: tuple[int, ...], rule: str | None
) -> None:
    net = Spelled()
    x = net.input("x", shape)
    net.output(of_two_relus(net, x, net.constant("alpha", np.ones(alpha, np.float32) / 2)))
    result = fused(net)
    assert not result.modified and [item.rule for item in result.skips] == [rule] * bool(rule)


def test_a_zero_that_adds_axes_is_no_part_of_prelu() -> None:
    for zero, is_prelu in (((1, 1, 1), False), ((1, 1), True), ((4,), False)):
        net = Net()
        x = net.input("x", (1, 4))
        nothing, slopes = net.constant("zero", np.zeros(zero, np.float32)), net.constant("slopes", SLOPES)
        shape = (1,) * (len(zero) - 1) + (4,)
        above, below = (net.add(kind, [x, nothing], kind, shape) for kind in ("MAXIMUM", "MINIMUM"))
        net.output(net.add("ADD", [above, net.add("MUL", [below, slopes], "s", shape)], "y", shape))
        assert fused(net).modified is is_prelu


def softmax(net: Net, x: Tensor, axis: float, *, keeps: bool = True, dtype: Any = np.int32) -> Tensor:
    shape = x.shape or ()
    less = tuple(1 if at == axis % len(shape) else size for at, size in enumerate(shape))
    over = net.constant("axis", np.array(axis, dtype))
    top = net.add("REDUCE_MAX", [x, over], "top", less, keep_dims=keeps)
    power = net.add("EXP", [net.add("SUB", [x, top], "low", shape)], "power", shape)
    total = net.add(
        "SUM", [power, net.constant("axes", np.array([axis], dtype))], "total", less, keep_dims=keeps
    )
    return net.add("DIV", [power, total], "y", shape)


@in_both_ways
@pytest.mark.parametrize(("shape", "axis"), [((3, 4), -1), ((3, 4), 1), ((1, 2, 3, 2, 4), 4)])
def test_softmax(shape: tuple[int, ...], axis: int, run_fused: Run) -> None:
    net = Net()
    net.output(softmax(net, net.input("x", shape), axis))
    run_fused(net, 120)
    assert kinds(net.model) == ["SOFTMAX"] and net.graph.operators[0].option("beta") == 1.0


@pytest.mark.parametrize(("axis", "keeps"), [(0, True), (1, False)])
def test_a_sum_over_another_axis_is_no_softmax(axis: int, keeps: bool) -> None:
    net = Net()
    net.output(softmax(net, net.input("x", (4, 4)), axis, keeps=keeps))
    assert not fused(net).modified


@pytest.mark.parametrize("axis", [1.0, np.nan])
def test_axes_are_integers(axis: float) -> None:
    """The runtime reads the bits of others; what a file says is not always valid."""
    net = Net()
    x = net.input("x", (4, 4))
    net.output(softmax(net, x, axis, dtype=np.float32))
    total = net.add("SUM", [x, net.constant("over", np.float32([axis]))], "sum", (4,))
    net.output(net.add("DIV", [total, net.constant("count", np.float32(4))], "mean", (4,)))
    assert not fused(net).modified
    net = Net()
    net.output(padded(net, "CONV_2D", 5, (1, 1)))
    sides = net.graph.operators[0].inputs[1]
    assert sides is not None
    sides.dtype = x.dtype
    assert not fused(net).modified


# -- Around layers -------------------------------------------------------------------------------------------


def padded(
    net: Net, kind: str, size: int, pads: tuple[int, int], dtype: Any = np.float32, **options: int
) -> Tensor:
    """A VALID layer behind a PAD of height and width."""
    settings = {"kernel": 3, "stride": 1, "dilation": 1, **options}
    x = net.input("x", (1, size, size, 4), dtype)
    sides = np.int32([[0, 0], pads, pads, [0, 0]])
    large = size + sum(pads)
    wide = net.add("PAD", [x, net.constant("pads", sides)], "wide", (1, large, large, 4), dtype=dtype)
    kernel, stride, dilation = settings.values()
    left = (large - (kernel - 1) * dilation - 1) // stride + 1
    given = {"stride_h": stride, "stride_w": stride, "padding": 1}
    if kind == "MAX_POOL_2D":
        given |= {"filter_height": kernel, "filter_width": kernel}
        inputs: list[Tensor | None] = [wide]
    else:
        given |= {"dilation_h_factor": dilation, "dilation_w_factor": dilation}
        shape = (4, kernel, kernel, 4) if kind == "CONV_2D" else (1, kernel, kernel, 4)
        given |= {"depth_multiplier": 1} if kind == "DEPTHWISE_CONV_2D" else {}
        inputs = [wide, net.weights("w", shape), net.constant("b", np.ones(4, np.float32))]
    return net.add(kind, inputs, "y", (1, left, left, 4), dtype=dtype, fused_activation_function=3, **given)


@in_both_ways
@pytest.mark.parametrize(
    ("kind", "size", "pads", "options"),
    [
        ("CONV_2D", 6, (1, 1), {}),
        ("DEPTHWISE_CONV_2D", 6, (0, 1), {"stride": 2}),
        ("CONV_2D", 7, (1, 1), {"stride": 2}),
        ("CONV_2D", 8, (2, 2), {"dilation": 2}),
        ("DEPTHWISE_CONV_2D", 6, (0, 2), {"stride": 2}),
        ("CONV_2D", 6, (0, 1), {"kernel": 2}),
    ],
)
def test_padding_that_same_does(
    kind: str, size: int, pads: tuple[int, int], options: dict[str, int], run_fused: Run
) -> None:
    net = Net()
    net.output(padded(net, kind, size, pads, **options))
    run_fused(net)
    assert kinds(net.model) == [kind] and net.graph.operators[0].option("padding") == 0


@pytest.mark.parametrize(
    ("kind", "size", "pads", "options", "rule"),
    [
        ("CONV_2D", 6, (1, 1), {"stride": 2}, "padding"),
        ("CONV_2D", 6, (1, 0), {"kernel": 2}, "padding"),
        ("CONV_2D", 6, (2, 2), {}, "padding"),
        ("MAX_POOL_2D", 6, (1, 1), {}, "pool"),
    ],
)
def test_padding_that_same_does_not(
    kind: str, size: int, pads: tuple[int, int], options: dict[str, int], rule: str
) -> None:
    net = Net()
    net.output(padded(net, kind, size, pads, **options))
    result = fused(net)
    assert not result.modified and [item.rule for item in result.skips] == [rule]


def test_padding_of_what_is_resized_stays() -> None:
    net = Net()
    net.output(padded(net, "CONV_2D", 6, (1, 1)))
    named(net.model, "x").signature = (1, -1, -1, 4)
    assert [item.rule for item in fused(net).skips] == ["shape"]


@in_both_ways
def test_a_pool_of_what_is_not_negative_is_padded_by_itself(run_fused: Run) -> None:
    net = Net()
    y = padded(net, "MAX_POOL_2D", 6, (1, 1))
    cut = net.add("RELU", [named(net.model, "x")], "cut", (1, 6, 6, 4))
    net.graph.operators.insert(0, net.graph.operators.pop())
    net.graph.operators[1].inputs[0] = cut
    net.output(y)
    run_fused(net)
    assert kinds(net.model) == ["RELU", "MAX_POOL_2D"]


@in_both_ways
@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_integers_are_padded_with_their_zero_point(scale: float, run_fused: Run) -> None:
    net = Net()
    y = padded(net, "CONV_2D", 6, (1, 1), np.int8)
    with_grid(named(net.model, "x"), 0.5, 3)
    with_grid(named(net.model, "wide"), scale, 3)
    with_grid(y, 4.0, -5)
    operator, (weights, bias) = net.graph.operators[1], (named(net.model, "w"), named(net.model, "b"))
    operator.inputs[1:] = [
        with_grid(net.constant("iw", np.rint(9 * weights.values).astype(np.int8)), 0.1, 0),
        with_grid(net.constant("ib", bias.values.astype(np.int32)), 0.05, 0),
    ]
    net.output(y)
    if scale == 0.5:
        run_fused(net)
    assert [item.rule for item in fused(net).skips] == ([] if scale == 0.5 else ["scales"])


def layered(net: Net, shape: tuple[int, ...], target: tuple[int, ...], columns: int = 4) -> Tensor:
    """FULLY_CONNECTED and a RESHAPE behind it."""
    x = net.input("x", shape)
    flat = net.add("FULLY_CONNECTED", [x, net.weights("w", (5, columns)), None], "flat", (6, 5), version=6)
    return net.add("RESHAPE", [flat, net.constant("to", np.int32(target))], "y", target)


@in_both_ways
@pytest.mark.parametrize(("shape", "target"), [((2, 3, 4), (2, 3, 5)), ((1, 2, 3, 4), (1, 2, -1, 5))])
def test_a_layer_keeps_its_axes(shape: tuple[int, ...], target: tuple[int, ...], run_fused: Run) -> None:
    net = Net()
    net.output(layered(net, shape, target))
    named(net.model, "y").shape = (*shape[:-1], 5)
    run_fused(net)
    assert kinds(net.model) == ["FULLY_CONNECTED"]
    (operator,) = net.graph.operators
    assert operator.option("keep_num_dims") is True and operator.code.version == 6


@pytest.mark.parametrize(
    ("shape", "target", "columns"),
    [((2, 3, 4), (3, 2, 5), 4), ((2, 3, 4), (2, 1, 5), 12), ((6, 4), (6, 5), 4)],
)
def test_other_axes_behind_a_layer_stay(
    shape: tuple[int, ...], target: tuple[int, ...], columns: int
) -> None:
    net = Net()
    net.output(layered(net, shape, target, columns))
    assert not fused(net).modified


@pytest.mark.parametrize(
    ("signature", "target", "goes"),
    [
        ((-1, 3, 4), (-1, 3, 5), True),
        ((2, -1, 4), (2, -1, 5), True),
        ((-1, -1, 4), (-1, 3, 5), False),
        ((2, 3, -1), (2, 3, 5), False),
    ],
)
def test_one_axis_of_any_size_before_a_layer_is_kept(
    signature: tuple[int, ...], target: tuple[int, ...], goes: bool
) -> None:
    """The number of elements settles one; of two, or of the columns, nothing is known."""
    net = Net()
    net.output(layered(net, (2, 3, 4), target))
    net.graph.inputs[0].signature = signature
    assert fused(net).modified is goes
    assert kinds(net.model) == (["FULLY_CONNECTED"] if goes else ["FULLY_CONNECTED", "RESHAPE"])


@pytest.mark.parametrize("adj_y", [False, True])
def test_the_matrix_of_a_layer_is_that_of_the_product_turned(adj_y: bool) -> None:
    net = Net()
    weights = net.weights("w", (5, 4) if adj_y else (4, 5))
    values = weights.values if adj_y else weights.values.T
    made = net.add("BATCH_MATMUL", [net.input("x", (2, 3, 4)), weights], "y", (2, 3, 5), adj_y=adj_y)
    net.output(made)
    assert fused(net).modified
    (layer,) = net.graph.operators
    matrix = layer.inputs[1]
    assert matrix is not None and matrix.shape == (5, 4) and np.array_equal(matrix.values, values)
    assert layer.option("keep_num_dims") is True and layer.outputs == [made]


@in_both_ways
@pytest.mark.parametrize("adj_y", [False, True])
@pytest.mark.parametrize(
    ("shape", "lead"), [((3, 4), ()), ((2, 3, 4), ()), ((2, 3, 4), (1,)), ((1, 2, 3, 4), (1, 1))]
)
def test_a_constant_matrix_makes_a_layer(
    shape: tuple[int, ...], lead: tuple[int, ...], adj_y: bool, run_fused: Run
) -> None:
    net = Net()
    x = net.input("x", shape)
    matrix = (5, 4) if adj_y else (4, 5)
    first = net.weights("w", (*lead, *matrix))
    for position, weights in enumerate((first, net.weights("again", (*lead, *matrix), first.buffer))):
        made = (*shape[:-1], 5)
        net.output(net.add("BATCH_MATMUL", [x, weights], f"y{position}", made, adj_y=adj_y))
    run_fused(net, 120)
    assert kinds(net.model) == ["FULLY_CONNECTED"] * 2
    assert {item.code.version for item in net.graph.operators} == {6}
    assert sum(item.nbytes for item in net.model.buffers) == 80


@pytest.mark.parametrize(
    ("shape", "matrix", "adj_x"),
    [((2, 3, 4), (2, 4, 5), False), ((4, 3), (4, 5), True), ((3, 4), (1, 4, 5), False)],
)
def test_other_products_stay(shape: tuple[int, ...], matrix: tuple[int, ...], adj_x: bool) -> None:
    net = Net()
    x = net.input("x", shape)
    net.output(net.add("BATCH_MATMUL", [x, net.weights("w", matrix)], "y", (3, 5), adj_x=adj_x))
    assert not fused(net).modified


def test_a_matrix_that_others_read_stays() -> None:
    net = Net()
    x, weights = net.input("x", (3, 4)), net.weights("w", (4, 5))
    net.output(net.add("BATCH_MATMUL", [x, weights], "y", (3, 5)))
    net.output(net.add("ABS", [weights], "z", (4, 5)))
    assert [item.rule for item in fused(net).skips] == ["shared"]


@in_both_ways
@pytest.mark.parametrize(("kind", "count"), [("DIV", 12), ("MUL", 1 / 12)])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_sum_by_their_number_is_a_mean(kind: str, count: float, keeps: bool, run_fused: Run) -> None:
    net = Net()
    x = net.input("x", (2, 3, 4, 5))
    shape = (2, 1, 1, 5) if keeps else (2, 5)
    total = net.add("SUM", [x, net.constant("axes", np.int32([1, -2]))], "total", shape, keep_dims=keeps)
    net.output(net.add(kind, [total, net.constant("count", np.float32(count))], "y", shape))
    run_fused(net, 120)
    assert kinds(net.model) == ["MEAN"]


@pytest.mark.parametrize(
    ("signature", "axes", "count", "goes"),
    [
        ((-1, 3, 4, 5), (1, 2), np.float32(12), True),
        ((2, -1, 4, 5), (1, 2), np.float32(12), False),
        ((2, 3, 4, 5), (1, 1), np.float32(9), False),
        ((2, 3, 4, 5), (1, 2), np.full(5, 12, np.float32), False),
    ],
)
def test_a_mean_is_over_as_many_as_are_known(
    signature: tuple[int, ...], axes: tuple[int, ...], count: Array, goes: bool
) -> None:
    net = Net()
    x = net.input("x", (2, 3, 4, 5))
    x.signature = signature
    total = net.add("SUM", [x, net.constant("axes", np.int32(axes))], "total", (2, 5))
    net.output(net.add("DIV", [total, net.constant("count", count)], "y", (2, 5)))
    assert fused(net).modified is goes


def test_a_sum_by_another_number_is_none() -> None:
    net = Net()
    x = net.input("x", (2, 3, 4, 5))
    total = net.add("SUM", [x, net.constant("axes", np.int32([1, 2]))], "total", (2, 5))
    net.output(net.add("DIV", [total, net.constant("count", np.float32(13))], "y", (2, 5)))
    assert not fused(net).modified


def test_kinds_are_chosen() -> None:
    net = Spelled()
    x = net.input("x", IMAGE)
    net.output(net.over("RELU", net.over("ADD", gelu_of_powers(net, x), x)))
    assert not fused(net, skip=("gelu", "activation")).modified
    fused(net, only=("activation",))
    assert "GELU" not in kinds(net.model) and "RELU" not in kinds(net.model)
    fused(net, skip=("activation",))
    assert kinds(net.model) == ["GELU", "ADD"]
