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

from ..nets import Array, Net, decibels, named

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


def run_fused(net: Net, least: float = np.inf, **options: Any) -> PassResult:
    before = outputs(net.model)
    result = fused(net, **options)
    assert result.modified and result.exact is (least == np.inf)
    compare(before, outputs(net.model), least)
    return result


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


@pytest.mark.runtime
@pytest.mark.parametrize("clamp", [row.name for row in CLAMPS if row.name in ACTIVATIONS])
def test_kernels_that_fuse_do_what_the_clamp_did(clamp: str) -> None:
    net = Net()
    x = net.input("x", IMAGE)
    for row in FUSING:
        net.output(net.add(clamp, [host(net, row.name, x)], f"clamped {row.name}", IMAGE))
    result = run_fused(net)
    assert len(result.changes) == len(FUSING) and clamp not in kinds(net.model)
    hosts = [item for item in net.graph.operators if item.code.name != "EXPAND_DIMS"]
    assert {item.option("fused_activation_function") for item in hosts} == {ACTIVATIONS[clamp]}


@pytest.mark.runtime
def test_a_hybrid_layer_does_it_too() -> None:
    from tfl_rewrite import QuantizeWeights

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


@pytest.mark.runtime
def test_clamps_that_were_spelled_out_become_one() -> None:
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


@pytest.mark.runtime
@pytest.mark.parametrize("spelled", [gelu_of_powers, gelu_of_products, gelu_of_squares])
def test_gelu(spelled: Callable[[Spelled, Tensor], Tensor]) -> None:
    net = Spelled()
    x = net.input("x", IMAGE)
    y = spelled(net, x)
    net.output(y)
    result = run_fused(net, 120)
    assert kinds(net.model) == ["GELU"] and net.graph.tensors == [x, y]
    assert net.graph.operators[0].option("approximate") is True
    (change,) = result.changes
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


def test_kinds_are_chosen() -> None:
    net = Spelled()
    x = net.input("x", IMAGE)
    net.output(net.over("RELU", net.over("ADD", gelu_of_powers(net, x), x)))
    assert not fused(net, skip=("gelu", "activation")).modified
    fused(net, only=("activation",))
    assert "GELU" not in kinds(net.model) and "RELU" not in kinds(net.model)
    fused(net, skip=("activation",))
    assert kinds(net.model) == ["GELU", "ADD"]
