"""What computes in uint8 computes in int8 then, and what cannot stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net, UnsignedNet, codes, data_of, named, parameters, unsigned_layers, with_grid
from tfl_rewrite import save
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.integers.signed import Signed, convert_copies, make_signed
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Operator, OperatorCode

WEIGHTS = np.array([[[[0, 255]]], [[[100, 140]]]])
"""Two channels; less a zero point of 60 the first is wide, and the second is not."""


def signed(net: Net, keeps: Callable[[Operator], bool] = lambda _: False) -> Signed:
    editor = Editor(net.model)
    done = make_signed(net.model, keeps, editor)
    editor.finish()
    assert broken(net.model) == []
    return done


def names(net: Net) -> list[str]:
    return [name for name, _ in codes(net.model)]


def test_channels_that_fit_keep_their_integers_and_wide_ones_get_a_scale_of_their_own() -> None:
    net = UnsignedNet()
    net.output(net.convolution(net.source(), WEIGHTS, 60))
    done = signed(net)
    assert (done.channels, done.rounded, done.conversions, done.unequal) == (2, 1, 2, False)
    assert codes(net.model) == [("QUANTIZE", 1), ("CONV_2D", 3), ("QUANTIZE", 1)]
    source, weight, bias = net.graph.operators[1].inputs
    assert source is not None and weight is not None and bias is not None
    assert source.dtype_name == "INT8" and parameters(source) == (0.5, 0)
    assert parameters(net.graph.operators[1].outputs[0]) == (1.0, -28)
    assert weight.quantization is not None and weight.quantization.scale is not None
    scales = np.array(list(weight.quantization.scale))
    assert data_of(weight)[1].ravel().tolist() == [40, 80] and scales[1] == 0.25
    real = data_of(weight)[0].ravel() * scales[0]
    assert real == pytest.approx([-15.0, 48.75], abs=scales[0]) and scales[0] > 48.75 / 128
    assert data_of(bias).tolist() == [round(10 * 0.25 / scales[0]), 11]
    assert bias.quantization is not None and bias.quantization.scale is not None
    assert list(bias.quantization.scale) == pytest.approx(0.5 * scales)


def test_weights_that_fit_keep_one_scale_and_their_bias() -> None:
    net = UnsignedNet()
    net.output(net.convolution(net.source(), WEIGHTS[1:], 120))
    before = named(net.model, "b")
    assert signed(net).rounded == 0
    _, weight, bias = net.graph.operators[1].inputs
    assert weight is not None and data_of(weight).ravel().tolist() == [-20, 20]
    assert parameters(weight) == (0.25, 0) and bias is before


def test_a_convolution_gets_the_bias_that_its_int8_kernel_wants() -> None:
    net = UnsignedNet()
    net.output(net.convolution(net.source(), WEIGHTS, 60, bias=False))
    signed(net)
    bias = net.graph.operators[1].inputs[2]
    assert bias is not None and bias.dtype_name == "INT32" and data_of(bias).tolist() == [0, 0]


def test_the_interface_stays_and_what_lies_between_is_shifted_in_place() -> None:
    net = UnsignedNet()
    source = net.source()
    inner = net.gives("RELU", [source], "inner", (0.25, 0))
    net.output(net.gives("RELU", [inner], "out", (0.25, 3)))
    net.output(inner)
    net.sign("serve")
    done = signed(net)
    assert [item.dtype_name for item in (*net.graph.inputs, *net.graph.outputs)] == ["UINT8"] * 3
    assert parameters(net.graph.outputs[0]) == (0.25, 3)
    assert names(net) == ["QUANTIZE", "RELU", "RELU", "QUANTIZE", "QUANTIZE"] and done.conversions == 3
    assert net.graph.operators[2].inputs[0] is net.graph.operators[1].outputs[0]


def test_constants_are_shifted_and_those_that_nothing_reads_are_dropped() -> None:
    net = UnsignedNet()
    other = with_grid(net.constant("other", np.array([0, 128, 255], np.uint8)), 0.1, 7)
    net.output(net.gives("ADD", [net.source((1, 3)), other], "out"))
    signed(net)
    held = net.graph.operators[1].inputs[1]
    assert held is not None and data_of(held).tolist() == [-128, 0, 127]
    assert parameters(held) == (pytest.approx(0.1), -121)
    assert other not in net.graph.tensors and other.buffer.nbytes == 0


def test_a_concatenation_gets_its_inputs_on_the_scale_of_its_output() -> None:
    net = UnsignedNet()
    source = net.source((1, 4))
    wide = net.gives("RELU", [source], "wide", (2.0, 0))
    held = with_grid(net.constant("held", np.array([[7, 9]], np.uint8)), 1.0, 8)
    net.output(net.gives("CONCATENATION", [source, wide, held], "out", (0.5, 128), shape=(1, 10)))
    done = signed(net)
    assert names(net) == ["QUANTIZE", "RELU", "QUANTIZE", "CONCATENATION", "QUANTIZE"]
    assert not done.unequal, "the uint8 kernel converts as well"
    joined = net.graph.operators[3]
    assert {parameters(item) for item in (*joined.inputs, *joined.outputs)} == {(0.5, 0)}
    third = joined.inputs[2]
    assert third is not None and data_of(third).tolist() == [[-2, 2]]


def resized() -> UnsignedNet:
    net = UnsignedNet()
    inner = net.gives("RELU", [net.source((1, 1, 1, 2))], "inner", (0.25, 0))
    size = net.constant("size", np.array([4, 4], np.int32))
    grown = net.gives("RESIZE_BILINEAR", [inner, size], "grown", (0.5, 3), shape=(1, 4, 4, 2))
    net.output(net.gives("RELU", [grown], "out", (0.5, 3)))
    return net


def test_what_copies_between_unequal_scales_is_converted_in_both_types() -> None:
    net, unsigned = resized(), resized()
    assert signed(net).unequal
    convert_copies(unsigned.model, Editor(unsigned.model))
    assert names(net) == ["QUANTIZE", "RELU", "RESIZE_BILINEAR", "QUANTIZE", "RELU", "QUANTIZE"]
    assert names(unsigned) == ["RELU", "RESIZE_BILINEAR", "QUANTIZE", "RELU"]
    resize, after = net.graph.operators[2:4]
    assert parameters(resize.inputs[0]) == parameters(resize.outputs[0]) == (0.25, -128)
    assert parameters(after.outputs[0]) == (0.5, -125)
    assert [parameters(item.outputs[0]) for item in unsigned.graph.operators[1:3]] == [(0.25, 0), (0.5, 3)]


def test_what_shares_a_scale_already_is_not_converted() -> None:
    net = UnsignedNet()
    pooled = net.gives("MAX_POOL_2D", [net.source()], "pooled")
    net.output(net.gives("SOFTMAX", [pooled], "out", (1 / 256, 0), beta=1.0))
    done = signed(net)
    assert not done.unequal and names(net) == ["QUANTIZE", "MAX_POOL_2D", "SOFTMAX", "QUANTIZE"]
    assert parameters(net.graph.operators[2].outputs[0]) == (1 / 256, -128)
    convert_copies(net.model, Editor(net.model))
    assert names(net).count("QUANTIZE") == 2


def test_a_fixed_output_on_another_scale_is_converted() -> None:
    net = UnsignedNet()
    net.output(net.gives("TANH", [net.source()], "out", (1 / 64, 100)))
    signed(net)
    last = net.graph.operators[-1]
    assert parameters(last.inputs[0]) == (1 / 128, 0) and last.outputs == net.graph.outputs


def test_what_may_know_uint8_only_reads_uint8() -> None:
    net = UnsignedNet()
    inner = net.gives("RELU", [net.source()], "inner", (0.25, 3))
    out = with_grid(net.tensor("out", (1, 4, 4, 2), np.uint8), 0.25, 3)
    code = OperatorCode(32, "Strange")
    net.model.operator_codes.append(code)
    net.graph.operators.append(Operator(code, [inner], [out]))
    net.output(net.gives("RELU", [out], "end"))
    done = signed(net)
    assert names(net) == ["QUANTIZE", "RELU", "QUANTIZE", "Strange", "QUANTIZE", "RELU", "QUANTIZE"]
    strange = net.graph.operators[3]
    assert strange.inputs[0] is not None and strange.inputs[0].dtype_name == "UINT8"
    assert parameters(strange.inputs[0]) == (0.25, 3) and strange.outputs == [out]
    assert list(done.reasons.values()) == ["the custom operator Strange need not know int8"]


def test_floats_become_int8_and_int8_floats_at_once() -> None:
    net = UnsignedNet()
    integers = net.gives("QUANTIZE", [net.input("in", (1, 4))], "integers")
    net.output(net.add("DEQUANTIZE", [net.gives("RELU", [integers], "inner")], "out", (1, 4)))
    assert signed(net).conversions == 0
    assert codes(net.model) == [("QUANTIZE", 1), ("RELU", 2), ("DEQUANTIZE", 2)]
    assert named(net.model, "integers").dtype_name == "INT8"


@pytest.mark.parametrize("kind", ["RESHAPE", "DEQUANTIZE", "CAST"])
def test_what_only_moves_or_converts_is_left_alone(kind: str) -> None:
    net = UnsignedNet()
    source = net.source()
    if kind == "RESHAPE":
        source = net.gives("RESHAPE", [source], "flat", shape=(1, 32))
    net.output(net.add("CAST" if kind == "RESHAPE" else kind, [source], "out", source.shape or ()))
    done, before = signed(net), len(net.graph.tensors)
    assert not done.operators and len(net.graph.operators) == (2 if kind == "RESHAPE" else 1)
    assert len(net.graph.tensors) == before


def test_a_hybrid_weight_is_no_activation() -> None:
    net = UnsignedNet()
    weight = with_grid(net.constant("w", np.ones((4, 8), np.uint8)), 0.5, 128)
    net.output(net.dense(net.input("in", (1, 8)), weight, "out"))
    assert not signed(net).operators and net.graph.operators[0].inputs[1] is weight


def test_what_is_kept_stays_between_conversions() -> None:
    net = UnsignedNet()
    inner = net.gives("RELU", [net.source()], "inner")
    net.output(net.gives("RELU", [net.gives("HARD_SWISH", [inner], "kept")], "out"))
    done = signed(net, lambda operator: operator.code.name == "HARD_SWISH")
    assert list(done.reasons.values()) == ["kept, as asked"] and done.conversions == 4
    kept = next(item for item in net.graph.operators if item.code.name == "HARD_SWISH")
    assert [item.dtype_name for item in (*kept.inputs, *kept.outputs) if item is not None] == ["UINT8"] * 2


@pytest.mark.runtime
@pytest.mark.parametrize("resolver", ["AUTO", "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "BUILTIN_REF"])
def test_every_resolver_computes_the_same_but_for_roundings(resolver: str, tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    values = np.random.default_rng(3).integers(0, 256, (1, 8, 8, 4)).astype(np.uint8)
    found = []
    for name, net in (("before", unsigned_layers()), ("after", unsigned_layers())):
        if name == "after":
            done = signed(net)
            assert 0 < done.rounded < done.channels and not done.reasons
        save(net.model, tmp_path / name)
        kind = getattr(OpResolverType, resolver)
        interpreter = Interpreter(str(tmp_path / name), experimental_op_resolver_type=kind, num_threads=1)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
        interpreter.invoke()
        rows = interpreter.get_output_details()
        found.append([interpreter.get_tensor(row["index"]).astype(np.int32) for row in rows])
    for before, after in zip(*found, strict=True):
        assert np.ptp(before) > 15 and np.abs(before - after).max() <= 2
