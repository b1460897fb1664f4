"""The types of inputs and outputs: which conversions go, which stand there, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.nets import Net, codes, named, nearest, readers
from tfl_rewrite.editing.editor import Editor
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.integers.border import FLOATS, Form, Retyped, computed_kinds, retype
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.kernels.integer import Target
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Operator, SubGraph, Tensor, new_record

INT8, INT16 = Form("INT8", 0.25, 3), Form("INT16", 0.25)


def integer_net(width: int = 8, make: Callable[[Net, Tensor], Tensor] | None = None) -> Net:
    """A model whose operators compute in integers between float inputs and outputs; EXP stays float."""
    net = Net()
    source = net.input("in", (1, 8))
    net.output((make or _dense)(net, source))
    net.sign("serve")
    convert(net, width)
    return net


def convert(net: Net, width: int = 8) -> None:
    ranges = {id(tensor): (-1.0, 2.0) for tensor in net.graph.tensors if tensor.dtype_name == "FLOAT32"}
    plan = IntegerPlan(net.model, lambda item: None if item.code.name == "EXP" else width, ranges)
    editor = Editor(net.model)
    plan.convert(editor, nearest)
    editor.finish()


def _dense(net: Net, source: Tensor) -> Tensor:
    return net.dense(source, net.weights("w", (4, 8)), "out", net.constant("b", np.ones(4, np.float32)))


def retyped(
    net: Net,
    given: str | None,
    gives: str | None = None,
    ranges: dict[int, tuple[float, float]] | None = None,
    target: Target = Target.LITERT,
) -> Retyped:
    editor = Editor(net.model)
    found = retype(net.model, editor, given, gives, ranges, target=target)
    editor.finish()
    assert broken(net.model) == []
    return found


def kinds(net: Net) -> list[str]:
    return [name for name, _ in codes(net.model)]


def form(tensor: Tensor) -> Form:
    found = Form.of(tensor)
    assert found is not None
    return found


def border(net: Net) -> list[tuple[str, str]]:
    graph = net.model.subgraphs[0]
    return [(item.name, item.dtype_name) for item in (*graph.inputs, *graph.outputs)]


def test_the_type_inside_takes_the_conversions_away_and_names_stay() -> None:
    net = integer_net()
    assert kinds(net) == ["QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"]
    inside = form(named(net.model, "in_int8")), form(named(net.model, "out_int8"))
    found = retyped(net, "int8", "int8")
    assert kinds(net) == ["FULLY_CONNECTED"]
    assert border(net) == [("in", "INT8"), ("out", "INT8")]
    graph, (signature,) = net.model.subgraphs[0], net.model.signatures
    assert (form(graph.inputs[0]), form(graph.outputs[0])) == inside
    assert [tensor for _, tensor in signature.inputs] == graph.inputs
    assert [tensor for _, tensor in signature.outputs] == graph.outputs
    assert {item.name for item in graph.tensors} == {"in", "w", "b", "out"}, "nothing is left over"
    assert found.exact and [edit.where for edit in found.edits] == ["input 'in'", "output 'out'"]
    assert found.edits[0].data == {
        "type": "int8",
        "scale": inside[0].scale,
        "zero_point": inside[0].zero_point,
    }


@pytest.mark.parametrize("first", ["int8", "uint8", "int16"])
def test_the_way_back_to_floats_leaves_one_conversion_a_side(first: str) -> None:
    net, plain = integer_net(), integer_net()
    retyped(net, first, first)
    found = retyped(net, "float", "float")
    assert codes(net.model) == codes(plain.model)
    assert border(net) == [("in", "FLOAT32"), ("out", "FLOAT32")]
    # Half a step of int8 is a value of int16: kernels round it one way or the other.
    assert found.exact == (first != "int16")
    assert not retyped(net, "float", "float").edits, "a second run changes nothing"


@pytest.mark.parametrize(
    ("kind", "scale", "zero"), [("uint8", 1.0, 128), ("int16", 1 / 128, None)], ids=["uint8", "int16"]
)
def test_another_type_holds_the_same_values_and_is_converted(
    kind: str, scale: float, zero: int | None
) -> None:
    net = integer_net()
    inside = form(named(net.model, "in_int8"))
    retyped(net, kind, kind)
    assert kinds(net) == ["QUANTIZE", "FULLY_CONNECTED", "QUANTIZE"]
    made = form(net.model.subgraphs[0].inputs[0])
    assert made.scale == inside.scale * scale
    assert made.zero_point == (0 if zero is None else inside.zero_point + zero)
    (source,) = net.model.subgraphs[0].operators[0].inputs
    assert source is net.model.subgraphs[0].inputs[0]


def test_only_the_side_that_is_asked_for_changes() -> None:
    net = integer_net()
    retyped(net, None, "int8")
    assert border(net) == [("in", "FLOAT32"), ("out", "INT8")]
    assert kinds(net) == ["QUANTIZE", "FULLY_CONNECTED"]


def test_a_float_island_reads_what_is_dequantized_behind_the_input() -> None:
    def both(net: Net, source: Tensor) -> Tensor:
        net.output(net.add("EXP", [source], "island", (1, 8)))
        return _dense(net, source)

    net = integer_net(make=both)
    ranges = {id(named(net.model, "island")): (0.0, 3.0)}
    assert not retyped(net, "int8", "int8", ranges).exact, "kernels dequantize to floats of other last bits"
    assert kinds(net) == ["DEQUANTIZE", "EXP", "FULLY_CONNECTED", "QUANTIZE"]
    assert form(named(net.model, "in")).kind == "INT8"
    low, high = (
        -128 - form(named(net.model, "island")).zero_point,
        127 - form(named(net.model, "island")).zero_point,
    )
    scale = form(named(net.model, "island")).scale
    assert low * scale <= 0 and high * scale >= 3.0


def test_what_is_float_inside_needs_a_range() -> None:
    def island(net: Net, source: Tensor) -> Tensor:
        return net.add("EXP", [_dense(net, source)], "after", (1, 4))

    with pytest.raises(UnsupportedError, match="output 'after' is float inside") as caught:
        retyped(integer_net(make=island), "int8", "int8")
    assert "--io-output float" in caught.value.remedy
    retyped(integer_net(make=island), "int8", "float")


def test_types_that_no_kernel_converts_are_refused_with_what_there_is() -> None:
    with pytest.raises(UnsupportedError, match="no kernel turns int16 into uint8") as caught:
        retyped(integer_net(16), None, "uint8")
    assert caught.value.remedy == "--io-output with one of float, int8, int16"
    retyped(integer_net(16), "uint8", None)


@pytest.mark.parametrize(
    ("target", "way"), [(Target.LITERT, ["QUANTIZE"]), (Target.OLD, ["DEQUANTIZE", "QUANTIZE"])]
)
def test_where_no_kernel_of_the_target_converts_floats_lie_between(target: Target, way: list[str]) -> None:
    net = integer_net(16)
    retyped(net, "int8", "int16", target=target)
    assert kinds(net) == [*way, "FULLY_CONNECTED"]
    assert border(net) == [("in", "INT8"), ("out", "INT16")]


def test_eight_bits_of_sixteen_are_the_fixed_ones_or_the_seen_ones_or_all() -> None:
    def squashed(net: Net, source: Tensor) -> Tensor:
        return net.add("SOFTMAX", [_dense(net, source)], "scores", (1, 4), beta=1.0)

    net = integer_net(16, squashed)
    found = retyped(net, "int8", "int8")
    assert form(net.model.subgraphs[0].outputs[0]) == Form("INT8", 1 / 256, -128)
    assert not found.exact, "an output of 16 bits is rounded"
    net = integer_net(16)
    inside = form(named(net.model, "out_int16"))
    retyped(net, None, "int8")
    assert form(net.model.subgraphs[0].outputs[0]) == Form("INT8", inside.scale * 256, 0)
    net = integer_net(16)
    retyped(net, "int8", None, {id(net.model.subgraphs[0].inputs[0]): (0.0, 1.0)})
    assert form(net.model.subgraphs[0].inputs[0]).zero_point == -128


def test_what_holds_no_real_numbers_keeps_its_type_and_is_named() -> None:
    net = Net()
    indices = net.input("indices", (1,), np.int32)
    rows = net.add("GATHER", [net.weights("table", (4, 8)), indices], "rows", (1, 8))
    net.output(_dense(net, rows))
    convert(net)
    found = retyped(net, "int8", "int8")
    assert border(net) == [("indices", "INT32"), ("out", "INT8")]
    assert [skip.where for skip in found.skips] == ["input 'indices'"]
    assert found.notes == [
        "input 'indices' keeps its type: no single scale tells what its int32 values mean",
    ]


def test_one_integer_tensor_behind_two_outputs_is_given_out_twice() -> None:
    net = integer_net()
    graph = net.model.subgraphs[0]
    (inside,) = graph.operators[-1].inputs
    assert inside is not None
    net.graph = graph
    net.output(net.add("DEQUANTIZE", [inside], "again", (1, 4), version=2))
    assert retyped(net, None, "int8").exact
    assert kinds(net) == ["QUANTIZE", "FULLY_CONNECTED", "QUANTIZE"]
    assert form(graph.outputs[0]) == form(graph.outputs[1])


def test_an_output_that_operators_read_goes_on_as_it_was() -> None:
    def twice(net: Net, source: Tensor) -> Tensor:
        hidden = _dense(net, source)
        net.output(net.add("EXP", [hidden], "island", (1, 4)))
        return hidden

    net = integer_net(make=twice)
    retyped(net, None, "int8", {id(named(net.model, "island")): (0.0, 3.0)})
    assert readers(net.model, named(net.model, "out")) == ["DEQUANTIZE"]
    assert kinds(net) == ["QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE", "EXP", "QUANTIZE"]


@pytest.mark.parametrize("role", ["handed through", "unread", "constant", "called"])
def test_odd_tensors_of_the_border_keep_their_type(role: str) -> None:
    net = integer_net()
    graph = net.model.subgraphs[0]
    net.graph = graph
    if role == "handed through":
        graph.outputs.append(graph.inputs[0])
    elif role == "unread":
        net.input("spare", (1, 8))
    elif role == "constant":
        net.output(net.constant("fixed", np.ones(2, np.float32)))
    else:
        net.next_subgraph("caller")
        net.graph.operators.append(_calling(net, graph))
    found = retyped(net, "int8", "int8")
    assert found.skips and broken(net.model) == []
    assert all(edit.where not in {skip.where for skip in found.skips} for edit in found.edits)


def _calling(net: Net, graph: SubGraph) -> Operator:
    record = new_record("CallOnceOptions").replace(init_subgraph_index=graph)
    return Operator(net.code("CALL_ONCE", 1), [], [], [], record)


def test_forms_hold_one_another_or_do_not() -> None:
    assert INT8.nested("UINT8") == Form("UINT8", 0.25, 131)
    assert INT8.nested("INT16") == Form("INT16", 0.25 / 128)
    assert INT16.nested("UINT8") == Form("UINT8", 64.0, 128)
    assert INT8.is_within(INT8.nested("INT16")) and not INT8.nested("INT16").is_within(INT8)
    assert INT16.nested("INT8").is_within(INT16)
    assert not INT8.is_within(Form("UINT8", 0.25, 130))
    assert FLOATS.told() == "float32"
    assert INT8.told() == "int8, real value = 0.25 * (integer - 3)"


def test_a_model_computes_in_integers_where_an_operator_does() -> None:
    assert computed_kinds(integer_net().model) == {"INT8"}
    net = Net()
    net.output(_dense(net, net.input("in", (1, 8))))
    assert not computed_kinds(net.model)


def test_several_scales_are_none() -> None:
    net = integer_net()
    weight = named(net.model, "w")
    assert weight.dtype_name == "INT8" and Form.of(weight) is None


def test_a_conversion_that_gives_nothing_is_none() -> None:
    net = integer_net()
    net.graph.operators[0].outputs.clear()
    with pytest.raises(UnsupportedError, match="nothing says its range"):
        retype(net.model, Editor(net.model), "int8", None)
