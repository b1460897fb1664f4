"""Biases that are corrected are those of one operator only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import load
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.kernels.products import before_steep
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Model, Operator, OperatorCode, SubGraph, Tensor, operator_number
from tfl_rewrite.weights.biases import Correction, correct, takes_bias

from ..nets import Net


def found(model: Model, name: str) -> list[tuple[SubGraph, Operator]]:
    return [(subgraph, item) for subgraph, item in model.operators() if item.code.name == name]


def values(operator: Operator, model: Model) -> np.ndarray:
    bias = operator.inputs[2]
    assert bias is not None
    if not bias.is_constant:
        bias = next(o for _, o in model.operators() if o.outputs[0] is bias).inputs[0]
        assert bias is not None
    assert bias.buffer.blob is not None
    kind = "<f4" if bias.dtype_name == "FLOAT32" else "<f2"
    return np.frombuffer(bias.buffer.blob.view(), kind).astype(np.float64)


@pytest.mark.parametrize("name", ["mtcnn_rnet", "digits_cnn_float16"])
def test_adds_to_the_constant(fixtures: Path, name: str) -> None:
    model = load(fixtures / f"{name}.tflite")
    subgraph, operator = found(model, "CONV_2D")[0]
    old = values(operator, model)
    change = np.linspace(-1, 1, len(old))
    assert takes_bias(subgraph, operator, weight_nbytes=0, outputs=len(old))
    assert not takes_bias(subgraph, operator, weight_nbytes=0, outputs=len(old) + 1)
    correct(Editor(model), [Correction(subgraph, operator, change)])
    np.testing.assert_allclose(values(operator, model), old + change, rtol=1e-3, atol=1e-3)
    assert not broken(model)


def test_a_shared_bias_is_copied(fixtures: Path) -> None:
    model = load(fixtures / "mtcnn_rnet.tflite")
    (subgraph, first), (_, second) = found(model, "CONV_2D")[:2]
    old = values(first, model)
    second.inputs[2] = first.inputs[2]
    correct(Editor(model), [Correction(subgraph, first, np.ones(len(old)))])
    np.testing.assert_allclose(values(first, model), old + 1, rtol=1e-6)
    np.testing.assert_allclose(values(second, model), old)
    assert not broken(model)


def test_the_last_operator_that_reads_a_shared_bias_changes_it(fixtures: Path) -> None:
    model = load(fixtures / "mtcnn_rnet.tflite")
    (subgraph, first), (_, second) = found(model, "CONV_2D")[:2]
    old, shared = values(first, model), first.inputs[2]
    second.inputs[2] = shared
    ones = np.ones(len(old))
    correct(Editor(model), [Correction(subgraph, first, ones), Correction(subgraph, second, 2 * ones)])
    np.testing.assert_allclose(values(first, model), old + 1, rtol=1e-6)
    np.testing.assert_allclose(values(second, model), old + 2, rtol=1e-6)
    assert second.inputs[2] is shared


def test_added_only_where_it_takes_little(fixtures: Path) -> None:
    model = load(fixtures / "mtcnn_rnet.tflite")
    subgraph, operator = found(model, "FULLY_CONNECTED")[0]
    count = len(values(operator, model))
    del operator.inputs[2:]
    assert not takes_bias(subgraph, operator, weight_nbytes=4 * count, outputs=count)
    assert takes_bias(subgraph, operator, weight_nbytes=1 << 20, outputs=count)
    correct(Editor(model), [Correction(subgraph, operator, np.arange(count, dtype=np.float64))])
    np.testing.assert_allclose(values(operator, model), np.arange(count))
    assert not broken(model)


def test_a_computed_bias_stays(fixtures: Path) -> None:
    model = load(fixtures / "mtcnn_rnet.tflite")
    subgraph, operator = found(model, "CONV_2D")[0]
    count = len(values(operator, model))
    operator.inputs[2] = subgraph.inputs[0]
    assert not takes_bias(subgraph, operator, weight_nbytes=1 << 20, outputs=count)


# -- Where a bias stays as it is --------------------------------------------------------------------------


def guarded(net: Net) -> list[str]:
    """The names of the weights of the guarded operators, in order."""
    found = before_steep(net.model)
    return [
        weight.name
        for _, operator in net.model.operators()
        if id(operator) in found and (weight := operator.inputs[1]) is not None
    ]


def dense(net: Net, source: Tensor, name: str) -> Tensor:
    return net.dense(source, net.weights(name, (8, 8)), f"{name}/y")


@pytest.mark.parametrize("kind", ["LOG", "SQRT", "RSQRT"])
def test_a_result_that_goes_into_a_logarithm_or_a_root(kind: str) -> None:
    net = Net()
    first = dense(net, net.input("x", (2, 8)), "first")
    second = dense(net, first, "second")
    shaped = net.add("RESHAPE", [net.add("ABS", [second], "abs", (2, 8))], "flat", (16,))
    steep = net.add(kind, [shaped], "steep", (16,))
    net.output(dense(net, net.add("RESHAPE", [steep], "back", (2, 8)), "last"))
    # Behind another weighted operator it is what that one gives out.
    assert guarded(net) == ["second"]


def test_a_result_without_such_an_operator_behind_it() -> None:
    net = Net()
    first = dense(net, net.input("x", (2, 8)), "first")
    net.output(net.add("EXP", [net.add("TANH", [first], "t", (2, 8))], "y", (2, 8)))
    assert guarded(net) == []


def test_division() -> None:
    net = Net()
    source = net.input("x", (2, 8))
    over = net.add("DIV", [dense(net, source, "above"), dense(net, source, "below")], "ratio", (2, 8))
    six = net.constant("six", np.full((1,), 6, np.float32))
    scaled = net.add("DIV", [dense(net, source, "scaled"), six], "sixth", (2, 8))
    inverse = net.add("DIV", [six, dense(net, source, "inverse")], "inverse/y", (2, 8))
    for tensor in (over, scaled, inverse):
        net.output(tensor)
    # Over a constant it is a straight line.
    assert guarded(net) == ["above", "below", "inverse"]


@pytest.mark.parametrize(("exponent", "steep"), [(0.5, True), (-1.0, True), (2.0, False), (1.0, False)])
def test_powers(exponent: float, steep: bool) -> None:
    net = Net()
    power = net.constant("power", np.full((1,), exponent, np.float32))
    net.output(net.add("POW", [dense(net, net.input("x", (2, 8)), "w"), power], "y", (2, 8)))
    assert guarded(net) == (["w"] if steep else [])
    net = Net()
    source = net.input("x", (2, 8))
    net.output(net.add("POW", [source, dense(net, source, "w")], "y", (2, 8)))
    assert guarded(net) == ["w"]


def test_through_a_branch(fixtures: Path) -> None:
    """The result of a body goes into LOG behind the IF, and the condition's operand into it before."""
    model = load(fixtures / "if_branches.tflite")
    main, *inner = model.subgraphs
    assert not before_steep(model)
    calls = next(operator for operator in main.operators if operator.code.name == "IF")
    output = calls.outputs[0]
    assert output is not None
    code = OperatorCode(operator_number("LOG"), None, 1)
    model.operator_codes.append(code)
    made = Tensor("log", output.shape, output.dtype, model.buffers[0])
    main.tensors.append(made)
    main.operators.append(Operator(code, [output], [made], []))
    main.outputs = [made]
    found = before_steep(model)
    in_bodies = [
        operator
        for subgraph in inner
        for operator in subgraph.operators
        if operator.code.name == "FULLY_CONNECTED"
    ]
    assert in_bodies and all(id(operator) in found for operator in in_bodies)


def test_a_product_of_activations_hands_on_what_it_gets() -> None:
    net = Net()
    source = net.input("x", (2, 8))
    left, right = (dense(net, source, name) for name in ("left", "right"))
    product = net.add("BATCH_MATMUL", [left, right], "product", (2, 2), adj_y=True)
    net.output(net.add("LOG", [product], "y", (2, 2)))
    assert guarded(net) == ["left", "right"]
    net = Net()
    source = net.input("x", (2, 8))
    product = net.add("BATCH_MATMUL", [dense(net, source, "before"), net.weights("w", (8, 4))], "p", (2, 4))
    net.output(net.add("LOG", [product], "y", (2, 4)))
    assert guarded(net) == ["w"]
