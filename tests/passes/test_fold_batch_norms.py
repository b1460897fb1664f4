"""What is folded into the weights and biases of layers: in every place, form and shape, and what stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite.editing.base import PassResult, run_passes
from tfl_rewrite.files.source import save
from tfl_rewrite.flatbuf.record import FLOAT32, INT64, ScalarVector
from tfl_rewrite.model.ir import Quantization, Tensor
from tfl_rewrite.passes.fold_batch_norms import FoldBatchNorms

from ..nets import Array, Net, codes, data_of, decibels, named, run

C, K = 4, 3
"""Channels in and out."""


def fold(net: Net, **options: Any) -> PassResult:
    """Runs the pass, and sees that a second run changes nothing."""
    (result,) = run_passes(net.model, [FoldBatchNorms(**options)])
    assert not run_passes(net.model, [FoldBatchNorms(**options)])[0].modified
    used = {id(item.code) for item in net.graph.operators}
    assert {id(item) for item in net.model.operator_codes} == used
    return result


def kinds(net: Net) -> list[str]:
    return [name for name, _ in codes(net.model)]


def number(net: Net, name: str, shape: tuple[int, ...]) -> Tensor:
    return net.constant(name, net.random.uniform(0.5, 2.0, shape).astype(np.float32))


def layer(
    net: Net,
    kind: str,
    source: Tensor,
    name: str = "layer",
    *,
    weight: Tensor | None = None,
    bias: bool = True,
    padding: int = 1,
    side: int = 2,
    **more: Any,
) -> Tensor:
    """A layer of K channels over C; a depthwise one of two for each."""
    stride = {"stride_h": 1, "stride_w": 1, "padding": padding}
    channels = 2 * C if kind == "DEPTHWISE_CONV_2D" else K
    added = number(net, f"{name}_b", (channels,)) if bias else None
    shape = source.shape or ()
    if kind == "FULLY_CONNECTED":
        weight = weight or net.weights(f"{name}_w", (K, shape[-1]))
        return net.add(kind, [source, weight, added], name, (shape[0], K), **more)
    if kind == "TRANSPOSE_CONV":
        weight = weight or net.weights(f"{name}_w", (K, side, side, C))
        size = (1, shape[1] + side - 1, shape[2] + side - 1, K)
        wanted = net.constant(f"{name}_size", np.array(size, np.int32))
        inputs = [wanted, weight, source, *([added] if bias else [])]
        return net.add(kind, inputs, name, size, version=3 if bias else 1, **stride, **more)
    if kind == "DEPTHWISE_CONV_2D":
        weight = weight or net.weights(f"{name}_w", (1, side, side, channels))
        more = {"depth_multiplier": 2, **more}
    else:
        weight = weight or net.weights(f"{name}_w", (channels, side, side, C))
    less = 0 if padding == 0 else side - 1
    made = (1, shape[1] - less, shape[2] - less, channels)
    return net.add(kind, [source, weight, added], name, made, **stride, **more)


LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")


def source(net: Net, kind: str) -> Tensor:
    return net.input("x", (2, C) if kind == "FULLY_CONNECTED" else (1, 5, 5, C))


def by_numbers(net: Net, tmp_path: Path, change: Callable[[], PassResult], least: float = 120) -> PassResult:
    """Runs the model before and after a change on three resolvers."""
    before, after = tmp_path / "before.tflite", tmp_path / "after.tflite"
    given = {
        item.name: net.random.standard_normal(item.shape or ()).astype(np.float32)
        for item in net.graph.inputs
    }
    save(net.model, before, force=True)
    result = change()
    save(net.model, after, force=True)
    for reference in (False, True):
        old, new = run(before, given, reference=reference), run(after, given, reference=reference)
        assert old.keys() == new.keys()
        for name, values in old.items():
            assert values.shape == new[name].shape
            assert decibels(values, new[name]) >= least
    return result


def by_structure(
    _net: Net, _folder: Path, change: Callable[[], PassResult], _least: float = 120
) -> PassResult:
    """Makes the change alone."""
    return change()


Check = Callable[..., PassResult]
in_both_ways = pytest.mark.parametrize(
    "check", [by_structure, pytest.param(by_numbers, marks=pytest.mark.runtime)]
)
"""What becomes of a model is looked at in the quick tests, and what it computes in those on the runtime."""


@in_both_ways
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_batch_norm_behind_a_layer(kind: str, bias: bool, tmp_path: Path, check: Check) -> None:
    if not bias and kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        pytest.skip("its kernel needs a bias")
    net = Net(1)
    made = layer(net, kind, source(net, kind), bias=bias)
    shape, channels = made.shape or (), (made.shape or ())[-1]
    made = net.add("MUL", [number(net, "gamma", (channels,)), made], "m", shape)
    made = net.add("SUB", [made, number(net, "mean", (1, channels))], "s", shape)
    made = net.add("DIV", [made, number(net, "one", (1,))], "d", shape)
    made = net.add("SUB", [number(net, "beta", (channels,)), made], "n", shape)
    net.output(net.add("ADD", [made, number(net, "b2", ())], "y", shape, fused_activation_function=1))
    if kind == "TRANSPOSE_CONV":
        net.graph.operators[-1].options = net.graph.operators[-1].options.replace(  # type: ignore[union-attr]
            fused_activation_function=0
        )
    result = check(net, tmp_path, lambda: fold(net))
    assert kinds(net) == [kind] and len(result.changes) == 5 and not result.skips
    assert net.graph.operators[0].option("fused_activation_function") == (kind != "TRANSPOSE_CONV")
    # One weight and one bias are left, and the size that a transposed convolution makes.
    assert len(net.graph.tensors) == 4 + (kind == "TRANSPOSE_CONV")


@in_both_ways
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("shape", [(C,), (1,)])
def test_what_normalizes_the_input_goes_into_the_layer(
    kind: str, shape: tuple[int, ...], tmp_path: Path, check: Check
) -> None:
    net = Net(2)
    given = source(net, kind)
    made = net.add("SUB", [given, number(net, "mean", shape)], "s", given.shape or ())
    made = net.add("MUL", [made, number(net, "scale", shape)], "m", given.shape or ())
    made = net.add("DIV", [made, number(net, "deviation", shape)], "d", given.shape or ())
    net.output(layer(net, kind, made, "y"))
    result = check(net, tmp_path, lambda: fold(net))
    # A transposed convolution adds up another part of its taps at each place.
    stays = ["SUB"] if kind == "TRANSPOSE_CONV" else []
    assert kinds(net) == [*stays, kind]
    assert [skip.rule for skip in result.skips] == ["padding"] * len(stays)


@in_both_ways
@pytest.mark.parametrize(
    ("side", "stride", "rest"), [(1, 1, []), (2, 2, []), (3, 1, ["ADD"]), (3, 2, ["ADD"])]
)
@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D"])
def test_what_is_added_before_padding_stays(
    kind: str, side: int, stride: int, rest: list[str], tmp_path: Path, check: Check
) -> None:
    net = Net(3)
    given = net.input("x", (1, 6, 6, C))
    made = net.add("ADD", [given, number(net, "mean", (C,))], "a", given.shape or ())
    made = layer(net, kind, made, "y", padding=0, side=side)
    operator = net.graph.operators[-1]
    assert operator.options is not None
    operator.options = operator.options.replace(stride_h=stride, stride_w=stride)
    made.shape = (1, 6 // stride, 6 // stride, (made.shape or ())[-1])
    net.output(made)
    result = check(net, tmp_path, lambda: fold(net))
    assert kinds(net) == [*rest, kind] and [skip.rule for skip in result.skips] == ["padding"] * len(rest)


@in_both_ways
def test_a_factor_before_padding_and_for_groups(tmp_path: Path, check: Check) -> None:
    net = Net(4)
    given = net.input("x", (1, 6, 6, C))
    made = net.add("MUL", [given, number(net, "scale", (1, 1, 1, C))], "m", given.shape or ())
    made = net.add("ADD", [made, number(net, "mean", (C,))], "a", given.shape or ())
    weight = net.weights("w", (6, 2, 2, 2))
    bias = number(net, "b", (6,))
    options = {"stride_h": 1, "stride_w": 1, "padding": 1}
    net.output(net.add("CONV_2D", [made, weight, bias], "y", (1, 5, 5, 6), **options))
    check(net, tmp_path, lambda: fold(net))
    assert kinds(net) == ["CONV_2D"]


def padded(net: Net, kind: str, constant: Tensor, sides: list[list[int]]) -> None:
    """Arithmetic with a constant, zeros around what it gives, and a layer without pads of its own."""
    made = net.add(kind, [net.input("x", (1, 4, 4, C)), constant], "m", (1, 4, 4, C))
    shape = tuple(size + sum(side) for size, side in zip(made.shape or (), sides, strict=True))
    made = net.add("PAD", [made, net.constant("sides", np.array(sides, np.int32))], "p", shape)
    weight = net.weights("w", (K, 3, 3, shape[-1]))
    net.output(layer(net, "CONV_2D", made, "y", weight=weight, side=3))


@in_both_ways
@pytest.mark.parametrize("shape", [(C,), (1,)])
def test_a_factor_goes_past_zeros(shape: tuple[int, ...], tmp_path: Path, check: Check) -> None:
    net = Net(5)
    # One number for all goes past zeros along its axis, too.
    padded(net, "MUL", number(net, "scale", shape), [[0, 0], [1, 1], [2, 0], [0, shape[0] == 1]])
    check(net, tmp_path, lambda: fold(net))
    assert kinds(net) == ["PAD", "CONV_2D"]


@pytest.mark.parametrize(("kind", "sides", "rule"), [("ADD", [1, 1], "padding"), ("MUL", [0, 2], "channels")])
def test_what_would_change_zeros_or_channels_stays(kind: str, sides: list[int], rule: str) -> None:
    net = Net(5)
    padded(net, kind, number(net, "c", (C,)), [[0, 0], [1, 1], [1, 1], sides if kind == "MUL" else [0, 0]])
    result = fold(net)
    assert not result.modified and [skip.rule for skip in result.skips] == [rule]


@in_both_ways
@pytest.mark.parametrize("shape", [(2,), (3, 2), (1, 3, 2), (1, 1, 3, 2)])
def test_a_dense_layer_that_flattens_its_input(shape: tuple[int, ...], tmp_path: Path, check: Check) -> None:
    net = Net(5)
    given = net.input("x", (2, 3, 2))
    made = net.add("MUL", [given, number(net, "scale", shape)], "m", (2, 3, 2))
    made = net.add("ADD", [number(net, "mean", shape), made], "a", (2, 3, 2))
    net.output(net.add("FULLY_CONNECTED", [made, net.weights("w", (K, 6))], "y", (2, K)))
    check(net, tmp_path, lambda: fold(net))
    # A constant of more axes gives its output more axes.
    assert kinds(net) == ["MUL"] * (len(shape) > 3) + ["FULLY_CONNECTED"]


@in_both_ways
@pytest.mark.parametrize("kind", ["ADD", "SUB"])
def test_what_is_added_to_a_sum_of_layers_goes_into_one_of_them(
    kind: str, tmp_path: Path, check: Check
) -> None:
    """As an unrolled LSTM does."""
    net = Net(6)
    one, two = net.input("x", (1, C)), net.input("h", (1, C))
    first = layer(net, "FULLY_CONNECTED", one, "first", bias=False)
    second = layer(net, "FULLY_CONNECTED", two, "second", fused_activation_function=1)
    total = net.add(kind, [second, first], "sum", (1, K))
    net.output(net.add("ADD", [total, number(net, "b", (K,))], "y", (1, K), fused_activation_function=3))
    check(net, tmp_path, lambda: fold(net))
    assert kinds(net) == ["FULLY_CONNECTED", "FULLY_CONNECTED", kind]
    assert net.graph.operators[-1].option("fused_activation_function") == 3
    assert len(net.graph.operators[0].inputs) == 3 and net.graph.operators[0].inputs[2] is not None


@pytest.mark.parametrize("kind", ["ADD", "SUB"])
@pytest.mark.parametrize("seen", ["", "first"])
def test_what_is_added_to_a_sum_has_the_sign_of_the_part_that_takes_it(kind: str, seen: str) -> None:
    net = Net(6)
    parts = [
        layer(net, "FULLY_CONNECTED", net.input(f"x{name}", (1, C)), name, bias=False)
        for name in ("first", "second")
    ]
    added = number(net, "b", (K,))
    values = added.values.copy()
    net.output(net.add("ADD", [net.add(kind, parts, "sum", (1, K)), added], "y", (1, K)))
    if seen:
        # What others see cannot take it.
        net.output(parts[0])
    assert fold(net).modified and kinds(net) == ["FULLY_CONNECTED", "FULLY_CONNECTED", kind]
    first, second = ([*item.inputs, None][2] for item in net.graph.operators[:2])
    taken, other, sign = (second, first, -1 if kind == "SUB" else 1) if seen else (first, second, 1)
    assert other is None and taken is not None and np.allclose(taken.values, sign * values, rtol=1e-6)


@pytest.mark.parametrize("what", ["factor", "activation", "product"])
def test_a_sum_takes_only_what_is_added_to_it_as_it_is(what: str) -> None:
    net = Net(6)
    parts = [
        layer(net, "FULLY_CONNECTED", net.input(f"x{name}", (1, C)), name, bias=False)
        for name in ("first", "second")
    ]
    act = {"fused_activation_function": 1} if what == "activation" else {}
    total = net.add("MUL" if what == "product" else "ADD", parts, "sum", (1, K), **act)
    net.output(net.add("MUL" if what == "factor" else "ADD", [total, number(net, "b", (K,))], "y", (1, K)))
    assert not fold(net).modified


def test_a_constant_of_a_sum_is_no_layer() -> None:
    """The sum takes what is added as its own constant would; a layer beside it takes it, too."""
    net = Net(6)
    made = layer(net, "FULLY_CONNECTED", net.input("x", (1, C)), "first", bias=False)
    total = net.add("SUB", [number(net, "a", (K,)), made], "sum", (1, K))
    net.output(net.add("ADD", [total, number(net, "b", (K,))], "y", (1, K)))
    assert fold(net).modified and kinds(net) == ["FULLY_CONNECTED"]


def half_layer(net: Net, factor: Array, *, shared: bool = False) -> Tensor:
    given = net.input("x", (2, C))
    weight = net.half("w", net.random.standard_normal((K, C)))
    bias = net.half("b", net.random.standard_normal(K))
    made = net.add("FULLY_CONNECTED", [given, weight, bias], "f", (2, K))
    if shared:
        net.output(net.add("FULLY_CONNECTED", [given, weight, bias], "other", (2, K)))
    made = net.add("MUL", [made, net.constant("m", factor.astype(np.float32))], "p", (2, K))
    net.output(net.add("ADD", [made, number(net, "c", (K,))], "y", (2, K)))
    return weight


@in_both_ways
@pytest.mark.parametrize("shared", [True, False])
def test_float16_weights_are_scaled_where_nothing_is_rounded(
    shared: bool, tmp_path: Path, check: Check
) -> None:
    net = Net(7)
    half_layer(net, np.array([2, -0.5, 4]), shared=shared)
    old = data_of(named(net.model, "w_half")).copy()
    check(net, tmp_path, lambda: fold(net))
    name = "w_half_folded" if shared else "w_half"
    assert (data_of(named(net.model, name)) == old * np.array([[2], [-0.5], [4]], np.float16)).all()
    assert kinds(net).count("MUL") == kinds(net).count("ADD") == 0
    if shared:
        assert (data_of(named(net.model, "w_half")) == old).all()
    assert kinds(net).count("DEQUANTIZE") == (3 if shared else 1)


@in_both_ways
def test_float16_weights_are_not_rounded_again(tmp_path: Path, check: Check) -> None:
    net = Net(8)
    half_layer(net, np.array([1, 1.1, 1]))
    result = check(net, tmp_path, lambda: fold(net))
    assert [skip.rule for skip in result.skips] == ["float16"] and not result.modified
    # What is added to the product goes nowhere, since the product stays.
    assert kinds(net)[-2:] == ["MUL", "ADD"]
    net = Net(9)
    half_layer(net, np.array([1, 1, 1]))
    check(net, tmp_path, lambda: fold(net))
    assert named(net.model, "b").dtype_name == "FLOAT32", "the bias takes what is added for free"


def hybrid_layer(net: Net, scales: list[float], low: int = -127) -> Tensor:
    given = net.input("x", (2, C))
    integers = net.random.integers(-127, 128, (K, C)).astype(np.int8)
    integers[0, 0] = low
    weight = net.constant("w", integers)
    vector = ScalarVector.of(FLOAT32, scales)
    weight.quantization = Quantization(vector, ScalarVector.of(INT64, [0] * len(scales)), 0)
    version = 12 if len(scales) > 1 else 9
    return net.add(
        "FULLY_CONNECTED",
        [given, weight, number(net, "b", (K,))],
        "f",
        (2, K),
        version=version,
        asymmetric_quantize_inputs=True,
    )


@in_both_ways
@pytest.mark.parametrize(
    ("scales", "factor", "low", "folds"),
    [
        ([0.01, 0.02, 0.03], [2, 3, 5], -127, True),
        ([0.01, 0.02, 0.03], [2, -3, 5], -127, True),
        ([0.01, 0.02, 0.03], [2, -3, 5], -128, False),
        ([0.01, 0.02, 0.03], [2, 0, 5], -127, False),
        ([0.01, 0.02, 0.04], [4, 2, 1], -127, False),
        ([0.01], [2, 3, 5], -127, False),
        ([0.01], [3], -127, True),
    ],
)
def test_hybrid_weights_keep_their_integers(
    scales: list[float], factor: list[float], low: int, folds: bool, tmp_path: Path, check: Check
) -> None:
    net = Net(10)
    made = hybrid_layer(net, scales, low)
    made = net.add("MUL", [made, net.constant("m", np.array(factor, np.float32))], "p", (2, K))
    net.output(net.add("ADD", [made, number(net, "c", (K,))], "y", (2, K)))
    result = check(net, tmp_path, lambda: fold(net))
    assert kinds(net) == (["FULLY_CONNECTED"] if folds else ["FULLY_CONNECTED", "MUL", "ADD"])
    assert named(net.model, "w").dtype_name == "INT8"
    assert [skip.rule for skip in result.skips] == ([] if folds else ["hybrid"])


def test_nothing_goes_into_a_hybrid_layer_from_before() -> None:
    net = Net(11)
    given = net.input("x", (2, C))
    hybrid_layer(net, [0.01, 0.02, 0.03])
    net.graph.operators[0].inputs[0] = net.add("MUL", [given, number(net, "m", (C,))], "p", (2, C))
    net.graph.operators.reverse()
    net.output(named(net.model, "f"))
    result = fold(net)
    assert [skip.rule for skip in result.skips] == ["hybrid"] and not result.modified


@in_both_ways
def test_constants_that_others_read_stay(tmp_path: Path, check: Check) -> None:
    net = Net(12)
    given = net.input("x", (2, C))
    weight, bias = net.weights("w", (K, C)), number(net, "b", (K,))
    one, two = (net.add("FULLY_CONNECTED", [given, weight, bias], name, (2, K)) for name in ("one", "two"))
    net.output(net.add("MUL", [one, number(net, "m", (K,))], "y", (2, K)))
    net.output(two)
    before = data_of(weight).copy(), data_of(bias).copy()
    check(net, tmp_path, lambda: fold(net))
    assert (data_of(weight) == before[0]).all() and (data_of(bias) == before[1]).all()
    assert kinds(net) == ["FULLY_CONNECTED"] * 2


@in_both_ways
def test_a_bias_beside_computed_weights(tmp_path: Path, check: Check) -> None:
    net = Net(13)
    given, weight = net.input("x", (2, C)), net.input("w", (K, C))
    made = net.add("FULLY_CONNECTED", [given, weight, number(net, "b", (K,))], "f", (2, K))
    made = net.add("ADD", [made, number(net, "c", (K,))], "a", (2, K))
    net.output(net.add("MUL", [made, number(net, "m", (K,))], "y", (2, K)))
    result = check(net, tmp_path, lambda: fold(net))
    assert kinds(net) == ["FULLY_CONNECTED", "MUL"] and [skip.rule for skip in result.skips] == ["weights"]


def simple(net: Net, **more: Any) -> Tensor:
    return layer(net, "CONV_2D", net.input("x", (1, 5, 5, C)), **more)


def fused(net: Net) -> None:
    made = simple(net, fused_activation_function=1)
    net.output(net.add("MUL", [made, number(net, "m", (K,))], "y", made.shape or ()))


def read_twice(net: Net) -> None:
    made = simple(net)
    net.output(net.add("MUL", [made, number(net, "m", (K,))], "y", made.shape or ()))
    net.output(net.add("ABS", [made], "z", made.shape or ()))


def exposed(net: Net) -> None:
    made = simple(net)
    net.output(net.add("MUL", [made, number(net, "m", (K,))], "y", made.shape or ()))
    net.output(made)


def tanh(net: Net) -> None:
    made = simple(net)
    m = number(net, "m", (K,))
    net.output(net.add("MUL", [made, m], "y", made.shape or (), fused_activation_function=4))


def along_width(net: Net) -> None:
    made = simple(net)
    net.output(net.add("MUL", [made, number(net, "m", (4, 1))], "y", made.shape or ()))


def higher_rank(net: Net) -> None:
    made = simple(net)
    net.output(net.add("MUL", [made, number(net, "m", (1, 1, 1, 1, K))], "y", (1, *(made.shape or ()))))


def spread(net: Net) -> None:
    given = net.input("x", (1, 5, 5, 1))
    weight = net.weights("w", (1, 1, 1, 1))
    options = {"stride_h": 1, "stride_w": 1}
    made = net.add("CONV_2D", [given, weight, number(net, "b", (1,))], "f", (1, 5, 5, 1), **options)
    net.output(net.add("MUL", [made, number(net, "m", (K,))], "y", (1, 5, 5, K)))


def infinite(net: Net) -> None:
    made = simple(net)
    huge = net.constant("m", np.full(K, 3e38, np.float32))
    made = net.add("MUL", [made, huge], "p", made.shape or ())
    net.output(net.add("MUL", [made, huge], "y", made.shape or ()))


def zero_divisor(net: Net) -> None:
    made = simple(net)
    net.output(net.add("DIV", [made, net.constant("m", np.zeros(K, np.float32))], "y", made.shape or ()))


def dividend(net: Net) -> None:
    made = simple(net)
    net.output(net.add("DIV", [number(net, "m", (K,)), made], "y", made.shape or ()))


def spread_before(net: Net) -> None:
    """One channel that a constant makes C of."""
    given = net.input("x", (1, 5, 5, 1))
    net.output(layer(net, "CONV_2D", net.add("MUL", [given, number(net, "m", (C,))], "p", (1, 5, 5, C)), "y"))


def active_before(net: Net) -> None:
    given = net.input("x", (1, 5, 5, C))
    m = number(net, "m", (C,))
    made = net.add("MUL", [given, m], "p", (1, 5, 5, C), fused_activation_function=1)
    net.output(layer(net, "CONV_2D", made, "y"))


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (fused, "activation"),
        (read_twice, "shared"),
        (exposed, "shared"),
        (tanh, "activation"),
        (along_width, "channels"),
        (higher_rank, "channels"),
        (spread, "channels"),
        (infinite, "range"),
        (zero_divisor, ""),
        (dividend, ""),
        (spread_before, "channels"),
        (active_before, "activation"),
    ],
)
def test_what_stays_is_named(build: Callable[[Net], None], rule: str) -> None:
    net = Net(14)
    build(net)
    result = fold(net)
    assert not [change for change in result.changes if build is not infinite]
    assert [skip.rule for skip in result.skips] == [rule] * bool(rule)


def test_what_stands_before_stays_where_that_is_asked_for() -> None:
    net = Net(15)
    given = net.input("x", (2, C))
    made = net.add("ADD", [given, number(net, "mean", (C,))], "a", (2, C))
    net.output(net.dense(made, net.weights("w", (K, C)), "y"))
    assert [skip.rule for skip in fold(net, before=False).skips] == ["before"]
    assert fold(net).modified
    assert FoldBatchNorms().stricter(1.0) == FoldBatchNorms(before=False)
    assert FoldBatchNorms(before=False).stricter(1.0) is None
