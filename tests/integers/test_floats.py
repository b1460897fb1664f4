"""What computes in integers computes in floats then: constants, border, ends of ranges, and what stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.kernels.integer_cases import WITH_STATE
from tests.nets import (
    Net,
    UnsignedNet,
    codes,
    data_of,
    named,
    nearest,
    parameters,
    unsigned_layers,
    with_grid,
)
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.flatbuf.record import FLOAT32, INT64, ScalarVector
from tfl_rewrite.integers.floats import Floated, make_floats
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Operator, OperatorCode, Quantization, Tensor

Grid = tuple[float, int]


def floated(net: Net) -> Floated:
    editor = Editor(net.model)
    done = make_floats(net.model, editor)
    editor.finish()
    assert broken(net.model) == []
    return done


def names(net: Net) -> list[str]:
    return [name for name, _ in codes(net.model)]


def gives(net: Net, kind: str, inputs: list[Tensor], name: str, grid: Grid, version: int = 2) -> Tensor:
    """Adds an operator that gives int8."""
    shape = inputs[0].shape or ()
    return with_grid(net.add(kind, inputs, name, shape, dtype=np.int8, version=version), *grid)


def source(net: Net, grid: Grid = (0.5, 3)) -> Tensor:
    return with_grid(net.input("in", (1, 4), np.int8), *grid)


def test_weights_and_biases_are_what_the_kernel_takes_them_for() -> None:
    net = UnsignedNet()
    weights = np.array([[[[0, 255]]], [[[100, 140]]]])
    net.output(net.convolution(net.source(), weights, 60))
    bias = named(net.model, "b")
    with_grid(bias, 77.0, 0)
    done = floated(net)
    (operator,) = net.graph.operators
    read, weight, floats = operator.inputs
    assert read is not None and weight is not None and floats is not None
    assert data_of(weight).ravel().tolist() == [-15.0, 48.75, 10.0, 20.0]
    assert data_of(floats).tolist() == [10 * 0.5 * 0.25, 11 * 0.5 * 0.25], "of input and weight, not its own"
    assert bias not in net.graph.tensors and bias.buffer.nbytes == 0
    assert [item.dtype_name for item in (*net.graph.inputs, *net.graph.outputs)] == ["FLOAT32"] * 2
    assert [item.name for item in done.border] == ["in", "out"]
    assert all(item.quantization is None for item in net.graph.tensors)


def test_scales_by_channel_count_for_weights_and_biases() -> None:
    net = Net()
    weight = net.constant("w", np.array([[2, 4, 6, 8], [1, 1, 1, 1]], np.int8))
    scales, zeros = ScalarVector.of(FLOAT32, [0.5, 2.0]), ScalarVector.of(INT64, [0, 0])
    weight.quantization = Quantization(scales, zeros, 0)
    bias = with_grid(net.constant("b", np.array([10, 10], np.int32)), 1.0, 0)
    out = net.add("FULLY_CONNECTED", [source(net), weight, bias], "out", (1, 2), dtype=np.int8, version=4)
    net.output(with_grid(out, 1.0, -5))
    floated(net)
    assert codes(net.model) == [("FULLY_CONNECTED", 1)]
    _, weight_floats, bias_floats = net.graph.operators[0].inputs
    assert weight_floats is not None and bias_floats is not None
    assert data_of(weight_floats).tolist() == [[1, 2, 3, 4], [2, 2, 2, 2]]
    assert data_of(bias_floats).tolist() == [10 * 0.5 * 0.5, 10 * 0.5 * 2.0]


def test_conversions_at_the_border_go_and_names_stay() -> None:
    net = Net()
    integers = gives(net, "QUANTIZE", [net.input("in", (1, 4))], "integers", (0.5, 3), 1)
    inner = gives(net, "ABS", [integers], "inner", (0.5, 2))
    net.output(net.add("DEQUANTIZE", [inner], "out", (1, 4), version=2))
    net.sign("serve")
    done = floated(net)
    assert codes(net.model) == [("ABS", 1)] and done.gone == 2 and not done.border
    (operator,) = net.graph.operators
    assert operator.inputs == net.graph.inputs and operator.outputs == net.graph.outputs
    assert net.model.signatures[0].outputs[0][1] is net.graph.outputs[0]
    assert [item.name for item in net.graph.tensors] == ["in", "out"]


def test_conversions_between_scales_go() -> None:
    net = Net()
    coarse = gives(net, "QUANTIZE", [source(net)], "coarse", (0.7, 3))
    net.output(gives(net, "ABS", [coarse], "out", (0.5, 2)))
    assert floated(net).gone == 1 and names(net) == ["ABS"]


@pytest.mark.parametrize(
    ("grid", "made"),
    [((6 / 255, -128), "RELU6"), ((1.0, -128), "RELU"), ((6 / 255, -127), None)],
)
def test_a_range_that_ends_at_0_cuts_off(grid: Grid, made: str | None) -> None:
    net = Net()
    source_ = source(net)
    out = net.add("ADD", [source_, source_], "sum", (1, 4), dtype=np.int8, version=2)
    out = with_grid(out, *grid)
    net.output(gives(net, "QUANTIZE", [source_], "out", grid))
    net.output(out)
    assert floated(net).clamps == (2 if made else 0)
    add = net.graph.operators[0]
    assert add.option("fused_activation_function") == {None: 0, "RELU": 1, "RELU6": 3}[made]
    assert names(net)[1:] == ([made] if made else ["QUANTIZE", "DEQUANTIZE"])


def test_what_has_an_activation_function_or_copies_gets_none() -> None:
    net = UnsignedNet()
    options = {"fused_activation_function": 3}
    one = net.gives("ADD", [net.source(), net.source()], "one", (6 / 255, 0), **options)
    net.output(net.gives("RESHAPE", [one], "out", (6 / 255, 0)))
    assert floated(net).clamps == 0
    assert net.graph.operators[0].option("fused_activation_function") == 3


def test_what_may_know_integers_only_reads_and_gives_them() -> None:
    net = UnsignedNet()
    inner = net.gives("ABS", [net.source()], "inner", (0.25, 3))
    out = with_grid(net.tensor("out", (1, 4, 4, 2), np.uint8), 0.25, 3)
    code = OperatorCode(32, "Strange")
    net.model.operator_codes.append(code)
    net.graph.operators.append(Operator(code, [inner], [out]))
    net.output(out)
    net.output(net.gives("ABS", [out], "end", (0.25, 3)))
    done = floated(net)
    assert names(net) == ["ABS", "QUANTIZE", "Strange", "DEQUANTIZE", "ABS"]
    strange = net.graph.operators[2]
    assert parameters(strange.inputs[0]) == parameters(strange.outputs[0]) == (0.25, 3)
    assert [item.dtype_name for item in net.graph.outputs] == ["FLOAT32"] * 2
    assert list(done.reasons.values()) == ["the custom operator Strange need not know floats"]


def test_bodies_keep_the_types_that_their_caller_gives() -> None:
    net = Net()
    begin = source(net)
    code, body = net.code("CALL_ONCE", 1), net.next_subgraph("body")
    given = source(net)
    net.output(gives(net, "ABS", [given], "absolute", (0.5, 2)))
    net.graph = net.model.subgraphs[0]
    net.output(gives(net, "ABS", [begin], "out", (0.5, 2)))
    from tfl_rewrite.model.ir import new_record

    options = new_record("CallOnceOptions").replace(init_subgraph_index=body)
    net.graph.operators.append(Operator(code, [], [], options=options))
    floated(net)
    assert [item.code.name for item in body.operators] == ["DEQUANTIZE", "ABS", "QUANTIZE"]
    assert [item.dtype_name for item in (*body.inputs, *body.outputs)] == ["INT8"] * 2
    assert [item.dtype_name for item in (*net.graph.inputs, *net.graph.outputs)] == ["FLOAT32"] * 2


def test_constants_of_all_kinds_are_read_by_their_own_scale() -> None:
    net = Net()
    other = with_grid(net.constant("other", np.array([[0, 1, 2, 3]], np.int8)), 0.5, 1)
    net.output(with_grid(net.add("MUL", [source(net), other], "out", (1, 4), dtype=np.int8), 1.0, 3))
    floated(net)
    held = net.graph.operators[0].inputs[1]
    assert held is not None and data_of(held).tolist() == [[-0.5, 0.0, 0.5, 1.0]]


def test_an_svdf_takes_its_state_along() -> None:
    net = Net()
    feature = with_grid(net.constant("feature", np.ones((2, 4), np.int8)), 0.5, 0)
    time = with_grid(net.constant("time", np.ones((2, 3), np.int16)), 0.25, 0)
    bias = with_grid(net.constant("bias", np.ones(2, np.int32)), 0.125, 0)
    state = with_grid(net.tensor("state", (1, 6), np.int16), 0.01, 0)
    state.is_variable = True
    inputs = [source(net), feature, time, bias, state]
    net.output(with_grid(net.add("SVDF", inputs, "out", (1, 2), dtype=np.int8, version=3), 1.0, 3))
    assert not floated(net).reasons
    assert codes(net.model) == [("SVDF", 1)] and state.dtype == dtypes.FLOAT32.value
    held = net.graph.operators[0].inputs[3]
    assert held is not None and data_of(held).tolist() == [0.125, 0.125]


@pytest.mark.parametrize("label", WITH_STATE)
def test_what_keeps_a_state_comes_back_from_integers(label: str) -> None:
    model, wanted = WITH_STATE[label]()[0], WITH_STATE[label]()[0]
    graph = model.subgraphs[0]
    (operator,), (before,) = graph.operators, wanted.subgraphs[0].operators
    states = [item for item in graph.tensors if item.is_variable]
    ranges = {id(item): (-1.0, 1.0) for item in (*graph.inputs, *graph.outputs, *states)}
    editor = Editor(model)
    IntegerPlan(model, lambda _: 8, ranges).convert(editor, nearest)
    assert operator.inputs[1] is None or operator.inputs[1].dtype_name == "INT8"
    assert not make_floats(model, editor).reasons
    editor.finish()
    assert [name for name, _ in codes(model)] == [before.code.name] and not operator.intermediates
    assert len(graph.tensors) == len(wanted.subgraphs[0].tensors)
    for one, other in zip(operator.inputs, before.inputs, strict=True):
        assert (one is None) is (other is None)
        if one is not None and other is not None and other.is_constant:
            assert np.allclose(one.values, other.values, atol=np.abs(other.values).max() / 200)
        assert one is None or one.dtype_name == "FLOAT32"


def test_an_lstm_of_another_integer_form_stays() -> None:
    model = WITH_STATE["LSTM"]()[0]
    graph = model.subgraphs[0]
    states = [item for item in graph.tensors if item.is_variable]
    ranges = {id(item): (-1.0, 1.0) for item in (*graph.inputs, *graph.outputs, *states)}
    editor = Editor(model)
    IntegerPlan(model, lambda _: 8, ranges).convert(editor, nearest)
    operator = next(item for item in graph.operators if item.intermediates)
    operator.intermediates *= 2
    reason = make_floats(model, editor).reasons[id(operator)]
    assert reason == "LSTM has another integer form, with 10 intermediate tensors"


def test_hybrid_weights_and_raw_integers_are_none_of_its_business() -> None:
    net = Net()
    weight = with_grid(net.constant("w", np.ones((4, 4), np.int8)), 0.5, 0)
    net.output(net.dense(net.input("in", (1, 4)), weight, "out"))
    raw = net.input("raw", (1, 4), np.int8)
    net.output(net.add("CAST", [raw], "cast", (1, 4)))
    assert not floated(net).operators and names(net) == ["FULLY_CONNECTED", "CAST"]
    assert raw.dtype_name == "INT8"


def test_integers_of_a_shape_are_no_real_numbers_whatever_scale_is_with_them() -> None:
    net = Net()
    shape = with_grid(net.constant("shape", np.array([2, 2], np.int32)), 0.5, 0)
    net.output(
        gives(net, "RESHAPE", [gives(net, "RELU", [source(net)], "a", (0.5, 3)), shape], "out", (0.5, 3), 1)
    )
    floated(net)
    assert net.graph.operators[-1].inputs[1] is shape and data_of(shape).tolist() == [2, 2]


def test_an_input_that_is_an_output_through_conversions_alone_stays_a_copy() -> None:
    net = Net()
    integers = gives(net, "QUANTIZE", [net.input("in", (1, 4))], "integers", (0.5, 3), 1)
    net.output(net.add("DEQUANTIZE", [integers], "out", (1, 4), version=2))
    floated(net)
    assert names(net) == ["QUANTIZE", "DEQUANTIZE"]
    assert net.graph.operators[1].outputs == net.graph.outputs


def sparse_weight(net: UnsignedNet) -> None:
    weight = named(net.model, "w")
    from tfl_rewrite.model.ir import new_record

    weight.rest = weight.rest.replace(sparsity=new_record("SparsityParameters"))


def wrong_axis(net: UnsignedNet) -> None:
    scales, zeros = ScalarVector.of(FLOAT32, [1.0, 2.0, 3.0]), ScalarVector.of(INT64, [1, 1, 1])
    named(net.model, "w").quantization = Quantization(scales, zeros, 0)


def no_scale(net: UnsignedNet) -> None:
    net.graph.outputs[0].quantization = None


def long_bias(net: UnsignedNet) -> None:
    named(net.model, "b").dtype = dtypes.BY_NAME["INT16"].value


def no_filter(net: UnsignedNet) -> None:
    net.graph.operators[0].inputs[1] = None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (sparse_weight, "a form that is not read"),
        (wrong_axis, "a form that is not read"),
        (no_scale, "one scale and zero point"),
        (long_bias, "no constant that is read as one"),
        (no_filter, "input 1 is absent"),
    ],
)
def test_what_is_not_plain_stays_and_is_named(damage: Callable[[UnsignedNet], None], reason: str) -> None:
    net = UnsignedNet()
    net.output(net.convolution(net.source(), np.ones((2, 1, 1, 2)), 60))
    damage(net)
    done = floated(net)
    assert not done.operators and reason in next(iter(done.reasons.values()))


def test_a_whole_uint8_model_has_float_kernels_alone() -> None:
    net = unsigned_layers()
    done = floated(net)
    assert not done.reasons and done.made == 0
    assert {version for _, version in codes(net.model)} == {1}
    types = {item.dtype_name for item in net.graph.tensors}
    assert types == {"FLOAT32", "INT32"}, "axes of the mean alone are no floats"
