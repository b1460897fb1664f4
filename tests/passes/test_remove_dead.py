"""What goes, what stays and why, and what a cut leaves."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest

from tfl_rewrite import UnsupportedError, UsageError, load, save
from tfl_rewrite.cli import main
from tfl_rewrite.editing.base import PassResult, run_passes
from tfl_rewrite.editing.effects import Effects
from tfl_rewrite.files.source import is_changed
from tfl_rewrite.flatbuf.record import FLOAT32, Record, ScalarVector
from tfl_rewrite.kernels.operators import OperatorRow, SideEffect
from tfl_rewrite.kernels.table import ROWS
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import (
    Buffer,
    Metadata,
    Model,
    Operator,
    OperatorCode,
    Quantization,
    new_record,
    schema,
)
from tfl_rewrite.passes.dedup import Dedup
from tfl_rewrite.passes.remove_dead import RemoveDead

from ..nets import Array, Net, named, run

ONES = np.ones((1, 4), np.float32)


def removed(results: Sequence[PassResult]) -> list[str]:
    """What the last pass removed, as ``what: where``."""
    return [
        f"{change.to_dict()['what'].split(' removed')[0]}: {change.where}" for change in results[-1].changes
    ]


def names(model: Model) -> list[str]:
    return [tensor.name for tensor in model.subgraphs[0].tensors]


def chain() -> Net:
    """x -> a -> b -> y, and beside it what nobody needs."""
    net = Net()
    x = net.input("x", (1, 4))
    one = net.constant("one", ONES)
    a = net.add("ADD", [x, one], "a", (1, 4))
    b = net.add("MUL", [a, a], "b", (1, 4))
    dead = net.add("SUB", [a, net.constant("lone", 2 * ONES)], "dead", (1, 4))
    net.add("MUL", [dead, dead], "deader", (1, 4))
    net.output(net.add("ADD", [b, one], "y", (1, 4)))
    net.sign("serve")
    return net


def outputs(model: Model, folder: Path, **inputs: Array) -> dict[str, Array]:
    path = folder / "model.tflite"
    save(model, path, force=True)
    return run(path, inputs)


# -- What is dead --------------------------------------------------------------------------------------------


@pytest.mark.runtime
def test_operators_that_reach_no_output_go_with_all_that_they_needed(tmp_path: Path) -> None:
    net = chain()
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    before = outputs(net.model, tmp_path, x=x)
    results = run_passes(net.model, [RemoveDead()])
    assert removed(results) == [
        "operator: SUB -> dead",
        "operator: MUL -> deader",
        "tensor: lone",
        "tensor: dead",
        "tensor: deader",
        "buffer: buffers[2]",
        "operator code: SUB version 1",
    ]
    assert sum(change.to_dict()["saved"] for change in results[-1].changes) == 16
    assert names(net.model) == ["x", "one", "a", "b", "y"]
    assert outputs(net.model, tmp_path, x=x)["y"].tobytes() == before["y"].tobytes()
    assert not run_passes(net.model, [RemoveDead()])[-1].modified


def test_an_output_that_only_a_signature_names_is_needed() -> None:
    net = chain()
    signature = net.model.signatures[0]
    signature.outputs.append((new_record("TensorMap").replace(name="extra"), named(net.model, "dead")))
    assert removed(run_passes(net.model, [RemoveDead()])) == ["operator: MUL -> deader", "tensor: deader"]


def custom(net: Net, kind: str) -> Operator:
    """A custom operator whose output nobody reads."""
    code = OperatorCode(32, kind)
    net.model.operator_codes.append(code)
    operator = Operator(code, [net.graph.inputs[0]], [net.tensor(f"{kind}_out", (1, 4))])
    net.graph.operators.append(operator)
    return operator


def test_custom_operators_stay_unless_they_are_said_to_be_pure() -> None:
    net = chain()
    custom(net, "Logger")
    custom(net, "Halver")
    result = run_passes(net.model, [RemoveDead(pure_custom=["Halver"])])[-1]
    assert [code.name for code in net.model.operator_codes] == ["ADD", "MUL", "Logger"]
    assert [(skip.where, skip.rule) for skip in result.skips] == [("Logger -> Logger_out", "side-effect")]
    assert "--pure-custom" in result.skips[0].reason


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS.values() if row.effect is not SideEffect.NONE and row.name != "CUSTOM"],
    ids=lambda row: row.name,
)
def test_effectful_builtins_stay_and_random_ones_go(row: OperatorRow) -> None:
    net = chain()
    net.add(row.name, [], "effect", (1, 4))
    run_passes(net.model, [RemoveDead()])
    assert ("effect" in names(net.model)) == (row.effect is not SideEffect.RANDOM)


def test_every_row_names_an_operator_of_the_schema_once() -> None:
    effects = [row for row in ROWS.values() if row.effect is not SideEffect.NONE]
    assert len(effects) > 12 and all(row.effect_reason for row in effects)
    assert set(ROWS) <= set(schema().enums["BuiltinOperator"].values)


def test_an_operator_newer_than_the_schema_stays() -> None:
    net = chain()
    code = OperatorCode(100_000)
    net.model.operator_codes.append(code)
    net.graph.operators.append(Operator(code, [], [net.tensor("new", (1,))]))
    run_passes(net.model, [RemoveDead()])
    assert "new" in names(net.model)


def test_what_keeps_state_in_a_variable_tensor_stays() -> None:
    net = chain()
    state = net.tensor("state", (1, 4), buffer=Buffer())
    state.is_variable = True
    net.model.buffers.append(state.buffer)
    net.add("SVDF", [net.graph.inputs[0], state], "unread", (1, 4))
    lone = net.tensor("lone_state", (1, 4))
    lone.is_variable = True
    result = run_passes(net.model, [RemoveDead()])[-1]
    assert {"state", "unread", "lone_state"} <= set(names(net.model))
    assert state.buffer in net.model.buffers
    assert "state" in result.skips[0].reason


def test_control_flow_has_the_effects_of_what_it_runs() -> None:
    net = Net()
    net.input("x", (1, 4))
    for kind in ("quiet", "loud"):
        graph = net.next_subgraph(kind)
        x = net.input(f"{kind}_x", (1, 4))
        net.output(net.add("ADD", [x, x], f"{kind}_y", (1, 4)))
        if kind == "loud":
            net.add("ASSIGN_VARIABLE", [x, x], "loud_effect", (1,))
        options = new_record("CallOptions").replace(subgraph=graph)
        call = Operator(net.code("CALL", 1), [net.model.subgraphs[0].inputs[0]], [], [], options)
        net.model.subgraphs[0].operators.append(call)
    first, second = net.model.subgraphs[0].operators
    effects = Effects()
    assert effects.of(first)[0] is SideEffect.NONE
    assert effects.of(second) == (SideEffect.STATE, "runs ASSIGN_VARIABLE, which changes a resource variable")
    assert "subgraph: subgraphs[1] quiet" in removed(run_passes(net.model, [RemoveDead()]))
    assert [graph.name for graph in net.model.subgraphs] == ["main", "loud"]


def test_a_subgraph_that_runs_itself_is_followed_to_an_end() -> None:
    net = Net()
    graph = net.graph
    options = new_record("CallOptions").replace(subgraph=graph)
    graph.operators.append(Operator(net.code("CALL", 1), [net.input("x", (1,))], [], [], options))
    assert not run_passes(net.model, [RemoveDead()])[-1].modified


def test_subgraphs_that_nothing_runs_go_but_not_the_first_and_not_those_found_by_name() -> None:
    net = chain()
    for name in ("orphan", "VALIDATION:main"):
        net.next_subgraph(name)
        net.output(net.add("ADD", [net.input("p", (1, 4)), net.weights("w", (1, 4))], "q", (1, 4)))
    results = run_passes(net.model, [RemoveDead()])
    assert "subgraph: subgraphs[1] orphan" in removed(results)
    assert [graph.name for graph in net.model.subgraphs] == ["main", "VALIDATION:main"]
    assert not broken(net.model)


@pytest.mark.parametrize(
    "name", ["composite", "if_branches", "while_loop", "resource_variables", "blockwise_int4"]
)
def test_what_options_and_scales_refer_to_stays(fixtures: Path, name: str) -> None:
    before, after = load(fixtures / f"{name}.tflite"), load(fixtures / f"{name}.tflite")
    run_passes(after, [RemoveDead()])
    assert len(after.subgraphs) == len(before.subgraphs)
    assert len(after.operator_codes) <= len(before.operator_codes)
    assert [len(g.operators) for g in after.subgraphs] == [len(g.operators) for g in before.subgraphs]
    if name == "blockwise_int4":
        assert not is_changed(after)
        assert any(
            tensor.quantization and tensor.quantization.scales_tensor for tensor in after.subgraphs[0].tensors
        )


def test_the_scales_of_a_dead_blockwise_tensor_go_with_it() -> None:
    net = chain()
    scales = net.constant("scales", ONES)
    lone = named(net.model, "lone")
    lone.quantization = Quantization(scales_tensor=scales)
    named(net.model, "one").quantization = Quantization(scales_tensor=net.constant("kept_scales", 3 * ONES))
    run_passes(net.model, [RemoveDead()])
    assert "scales" not in names(net.model)
    assert "kept_scales" in names(net.model)


def test_the_sentinel_and_buffers_of_metadata_stay() -> None:
    net = chain()
    net.metadata("info", b"0123456789abcdef")
    old = net.buffer(b"old")
    net.model.metadata_buffers.append(old)
    net.buffer(b"nobody's")
    results = run_passes(net.model, [RemoveDead()])
    assert [buffer.nbytes for buffer in net.model.buffers] == [0, 16, 16, 3]
    assert sum(change.to_dict()["saved"] for change in results[-1].changes) == 16 + len(b"nobody's")


def test_the_first_buffer_stays_though_no_tensor_refers_to_it() -> None:
    net = chain()
    empty = Buffer()
    net.model.buffers.append(empty)
    for tensor in net.graph.tensors:
        tensor.buffer = empty if tensor.buffer is net.model.buffers[0] else tensor.buffer
    first = net.model.buffers[0]
    run_passes(net.model, [RemoveDead()])
    assert net.model.buffers[0] is first


def test_a_memory_plan_is_dropped_with_a_message() -> None:
    net = chain()
    net.metadata("OfflineMemoryAllocation", bytes(48))
    result = run_passes(net.model, [RemoveDead()])[-1]
    assert not net.model.metadata
    assert any("OfflineMemoryAllocation dropped" in note for note in result.notes)


def test_compressed_constants_are_refused_only_if_something_would_move() -> None:
    net = chain()
    net.metadata("COMPRESSION_METADATA", bytes(16))
    with pytest.raises(UnsupportedError, match="COMPRESSION_METADATA"):
        run_passes(net.model, [RemoveDead()])
    clean = Net()
    clean.output(clean.add("ABS", [clean.input("x", (1, 4))], "y", (1, 4)))
    clean.metadata("COMPRESSION_METADATA", bytes(16))
    assert not run_passes(clean.model, [RemoveDead()])[-1].modified


# -- Cuts ----------------------------------------------------------------------------------------------------


@pytest.mark.runtime
def test_outputs_become_inner_tensors_and_hold_what_they_held(tmp_path: Path) -> None:
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    net = chain()
    results = run_passes(net.model, [RemoveDead(outputs=["b,a"])])
    assert [result.name for result in results] == ["cut", "remove-dead"]
    assert names(net.model) == ["x", "one", "a", "b"]
    signature = net.model.signatures[0]
    assert [row.get("name") for row, _ in signature.outputs] == ["b", "a"]
    path = tmp_path / "cut.tflite"
    save(net.model, path)
    found = run(path, {"x": x})
    assert list(found) == ["b", "a"]
    np.testing.assert_array_equal(found["a"], x + 1)
    np.testing.assert_array_equal(found["b"], (x + 1) ** 2)
    np.testing.assert_array_equal(run(path, {"x": x}, signature="serve")["b"], found["b"])
    again = load(path)
    assert not any(result.modified for result in run_passes(again, [RemoveDead(outputs=["b", "a"])]))


@pytest.mark.runtime
def test_inputs_become_inner_tensors(tmp_path: Path) -> None:
    net = chain()
    results = run_passes(net.model, [RemoveDead(inputs=["b"])])
    assert [change.where for change in results[0].changes][:2] == ["input x", "input b"]
    assert names(net.model) == ["one", "b", "y"]
    assert [row.get("name") for row, _ in net.model.signatures[0].inputs] == ["b"]
    np.testing.assert_array_equal(outputs(net.model, tmp_path, b=3 * ONES)["y"], 4 * ONES)


def test_arguments_stay_as_they_are_where_the_inputs_do() -> None:
    net = chain()
    net.input("second", (1, 4))
    rows = list(net.model.signatures[0].inputs)
    run_passes(net.model, [RemoveDead(outputs=["b"])])
    assert net.model.signatures[0].inputs == rows


def test_operators_out_of_order_are_followed_in_good_time() -> None:
    net = Net()
    last = net.input("x", (1,))
    for index in range(5000):
        last = net.add("ABS", [last], f"t{index}", (1,))
    net.output(last)
    net.graph.operators.reverse()
    started = time.process_time()
    assert not run_passes(net.model, [RemoveDead()])[-1].modified
    assert time.process_time() - started < 2


@pytest.mark.runtime
def test_what_makes_a_new_input_goes_although_it_could_be_computed(tmp_path: Path) -> None:
    net = chain()
    run_passes(net.model, [RemoveDead(inputs=["x", "b"])])
    assert [operator.code.name for operator in net.graph.operators] == ["ADD"]
    assert names(net.model) == ["x", "one", "b", "y"]
    np.testing.assert_array_equal(outputs(net.model, tmp_path, x=ONES, b=3 * ONES)["y"], 4 * ONES)


def test_an_argument_of_the_signature_keeps_its_name() -> None:
    net = chain()
    signature = net.model.signatures[0]
    signature.outputs = [(new_record("TensorMap").replace(name="a"), named(net.model, "y"))]
    run_passes(net.model, [RemoveDead(outputs=["y", "dead"])])
    assert [row.get("name") for row, _ in signature.outputs] == ["a", "dead"]
    again = chain()
    again.model.signatures[0].outputs = [
        (new_record("TensorMap").replace(name="dead"), named(again.model, "y"))
    ]
    run_passes(again.model, [RemoveDead(outputs=["y", "#5"])])
    assert [row.get("name") for row, _ in again.model.signatures[0].outputs] == ["dead", "dead_1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": ["deaf"]}, "no tensor is named 'deaf'.*did you mean 'dead'"),
        ({"outputs": ["zzzzzzzz"]}, "no tensor is named.*such as 'a', 'b', 'dead', 'deader', 'y'"),
        ({"outputs": ["#99"]}, "there is no tensor #99"),
        ({"outputs": ["a", "a"]}, "named twice"),
        ({"outputs": ["a,,b"]}, "empty name"),
        ({"outputs": []}, "there are no outputs"),
        ({"inputs": ["one"]}, "'one' is a constant"),
        ({"inputs": ["dead"]}, "output 'y' also needs 'x'"),
        ({"inputs": ["b"], "outputs": ["y", "dead"]}, "output 'dead' also needs 'x'"),
    ],
)
def test_a_cut_that_makes_no_sense_says_what_would(options: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_passes(chain().model, [RemoveDead(**options)])


def test_a_name_alone_is_one_name_and_not_its_letters() -> None:
    net = chain()
    run_passes(net.model, [RemoveDead(outputs="b", inputs="a", strip="names", pure_custom="Halver")])
    assert [tensor.name for tensor in net.graph.outputs] == ["b"]
    assert names(net.model) == ["a", "b"]


def test_a_custom_operator_that_is_not_there_is_named_with_those_that_are() -> None:
    net = chain()
    net.model.operator_codes.append(OperatorCode(32, "Halver"))
    for results in (
        run_passes(net.model, [RemoveDead(pure_custom=["Havler"])]),
        [run_passes(net.model, [Dedup(pure_custom=["Havler"])])[0]],
    ):
        (note,) = results[-1].notes
        assert "'Havler'" in note and ("it has Halver" in note or "it has none" in note)


def test_what_no_operator_makes_cannot_become_an_output() -> None:
    net = chain()
    net.tensor("never made", (1, 4))
    with pytest.raises(UsageError, match="'never made' is made by no operator"):
        run_passes(net.model, [RemoveDead(outputs=["never made"])])


def remembers(read_name: str = "state") -> Net:
    """k is |x + what was there before|; y is k and what is there now."""
    net = Net()
    x = net.input("x", (1, 4))
    handles = []
    for name in ("state", read_name):
        handles.append(net.add("VAR_HANDLE", [], f"handle of {name}", (), dtype=np.int32))
        handles[-1].dtype = 13
        net.graph.operators[-1].options = Record(
            schema().tables["VarHandleOptions"], {"container": "c", "shared_name": name}
        )
    k = net.add("ABS", [net.add("ADD", [x, x], "sum", (1, 4))], "k", (1, 4))
    net.add("ASSIGN_VARIABLE", [handles[0], named(net.model, "sum")], "no result", (1, 4))
    net.graph.operators[-1].outputs = []
    read = net.add("READ_VARIABLE", [handles[1]], "read", (1, 4))
    net.output(net.add("ADD", [k, read], "y", (1, 4)))
    return net


def test_a_cut_that_parts_who_writes_a_variable_from_who_reads_it_is_refused() -> None:
    with pytest.raises(UsageError, match="READ_VARIABLE -> read reads what ASSIGN_VARIABLE -> nothing"):
        run_passes(remembers().model, [RemoveDead(inputs=["k"])])
    # Nothing is lost where another variable is read, where the read value is given, or is not needed.
    run_passes(remembers("another").model, [RemoveDead(inputs=["k"])])
    run_passes(remembers().model, [RemoveDead(inputs=["k", "read"])])
    net = remembers()
    net.output(net.add("NEG", [named(net.model, "k")], "z", (1, 4)))
    run_passes(net.model, [RemoveDead(inputs=["k"], outputs=["z"])])
    run_passes(remembers().model, [RemoveDead(outputs=["read"])])


def test_a_cut_between_two_users_of_a_variable_tensor_is_refused() -> None:
    net = Net()
    x, state = net.input("x", (1, 4)), net.tensor("state", (1, 4), buffer=Buffer())
    state.is_variable = True
    net.model.buffers.append(state.buffer)
    a = net.add("SVDF", [x, state], "a", (1, 4))
    net.output(net.add("SVDF", [a, state], "y", (1, 4)))
    with pytest.raises(UsageError, match="SVDF -> y reads what SVDF -> a changes"):
        run_passes(net.model, [RemoveDead(inputs=["a"])])


def test_a_name_that_stands_for_several_tensors_must_be_said_by_index() -> None:
    net = chain()
    named(net.model, "deader").name = "a"
    with pytest.raises(UsageError, match=r"2 tensors are named 'a'; name one: #2, #6"):
        run_passes(net.model, [RemoveDead(outputs=["a"])])
    run_passes(net.model, [RemoveDead(outputs=["#2"])])
    assert names(net.model) == ["x", "one", "a"]


def test_a_cut_below_one_of_two_outputs_of_an_operator_needs_both() -> None:
    net = Net()
    x = net.input("x", (2, 4))
    left = net.add("UNPACK", [x], "left", (4,))
    right = net.tensor("right", (4,))
    net.graph.operators[-1].outputs.append(right)
    net.output(net.add("ADD", [left, right], "y", (4,)))
    with pytest.raises(UsageError, match="output 'y' also needs 'right'"):
        run_passes(net.model, [RemoveDead(inputs=["left"])])
    run_passes(net.model, [RemoveDead(inputs=["left", "right"])])
    assert names(net.model) == ["left", "right", "y"]


def test_an_input_that_is_not_needed_any_more_stays_with_a_note() -> None:
    net = chain()
    net.input("spare", (1, 4))
    notes = run_passes(net.model, [RemoveDead(outputs=["a"])])[0].notes
    assert any("no output needs the input 'spare'" in note for note in notes)
    assert "spare" in names(net.model)


def described(inputs: Sequence[str], results: Sequence[str]) -> bytes:
    """A ``TFLITE_METADATA`` buffer: one subgraph, a description for each input and output."""
    builder = flatbuffers.Builder(0)

    def table(slots: dict[int, int], size: int) -> int:
        builder.StartObject(size)
        for slot, offset in slots.items():
            builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
        return int(builder.EndObject())

    def vector(items: Sequence[int]) -> int:
        builder.StartVector(4, len(items), 4)
        for item in reversed(items):
            builder.PrependUOffsetTRelative(item)
        return int(builder.EndVector())

    rows = [vector([table({0: builder.CreateString(n)}, 1) for n in group]) for group in (inputs, results)]
    subgraph = table({2: rows[0], 3: rows[1]}, 9)
    builder.Finish(table({3: vector([subgraph])}, 8), b"M001")
    return bytes(builder.Output())


def descriptions(data: bytes) -> list[list[str]]:
    """Reads the names back."""
    table = flatbuffers.table.Table

    def field(root: object, slot: int) -> int:
        return int(root.Offset(4 + 2 * slot))  # type: ignore[attr-defined]

    root = table(bytearray(data), flatbuffers.encode.Get(flatbuffers.packer.uoffset, data, 0))
    subgraph = table(root.Bytes, root.Indirect(root.Vector(field(root, 3))))
    found = []
    for slot in (2, 3):
        start = subgraph.Vector(field(subgraph, slot))
        count = subgraph.VectorLen(field(subgraph, slot))
        tables = [table(root.Bytes, root.Indirect(start + 4 * index)) for index in range(count)]
        found.append([item.String(item.Pos + field(item, 0)).decode() for item in tables])
    return found


def test_descriptions_follow_the_outputs_that_stay() -> None:
    net = chain()
    net.output(named(net.model, "dead"))
    net.output(named(net.model, "b"))
    data = described(["image"], ["scores", "dead ends", "squares"])
    assert descriptions(data) == [["image"], ["scores", "dead ends", "squares"]]
    net.metadata("TFLITE_METADATA", data)
    notes = run_passes(net.model, [RemoveDead(outputs=["b", "y"])])[0].notes
    blob = net.model.metadata[0].buffer.blob
    assert blob is not None
    assert descriptions(bytes(blob.view())) == [["image"], ["squares", "scores"]]
    assert any("TFLITE_METADATA" in note for note in notes)


@pytest.mark.parametrize("damage", ["new output", "too few", "too many", "cut short"])
def test_descriptions_that_cannot_follow_are_dropped_with_a_message(damage: str) -> None:
    net = chain()
    net.output(named(net.model, "b"))
    count = {"too few": 1, "too many": 3}.get(damage, 2)
    data = described(["image"], ["scores", "squares", "spare"][:count])
    net.metadata("TFLITE_METADATA", data[:20] if damage == "cut short" else data)
    notes = run_passes(net.model, [RemoveDead(outputs=["a"] if damage == "new output" else ["b"])])[0].notes
    assert not net.model.metadata
    assert any("TFLITE_METADATA dropped" in note for note in notes)


# -- What is stripped ----------------------------------------------------------------------------------------


@pytest.mark.runtime
def test_names_inside_go_and_those_of_the_interface_and_of_variables_stay(tmp_path: Path) -> None:
    net = chain()
    state = net.tensor("state", (1, 4))
    state.is_variable = True
    result = run_passes(net.model, [RemoveDead(strip=["names"])])[0]
    assert names(net.model) == ["x", "", "", "", "y", "state"]
    assert result.changes[0].to_dict()["count"] == 6
    assert "name" not in named(net.model, "").rest
    x = 5 * ONES
    np.testing.assert_array_equal(outputs(net.model, tmp_path, x=x)["y"], (x + 1) ** 2 + 1)


def test_min_and_max_go_and_scales_stay_shared() -> None:
    net = chain()
    limits = {name: ScalarVector.of(FLOAT32, [1.0]) for name in ("min", "max", "scale")}
    record = new_record("QuantizationParameters").replace(**limits)
    shared = Quantization(limits["scale"], rest=record)
    for name in ("a", "b"):
        named(net.model, name).quantization = shared
    run_passes(net.model, [RemoveDead(strip=["min-max"])])
    first, second = (named(net.model, name).quantization for name in ("a", "b"))
    assert first is second
    assert first is not None and first.scale is not None
    assert set(first.rest.values) == {"scale"}


def test_metadata_goes_by_name_and_is_not_missed() -> None:
    net = chain()
    net.metadata("one", b"1" * 16)
    net.metadata("two", b"2" * 16)
    shared = net.model.metadata[0].buffer
    net.model.metadata.append(Metadata("three", shared))
    result = run_passes(net.model, [RemoveDead(strip=["metadata:one,metadata:two", "metadata:four"])])[0]
    assert [entry.name for entry in net.model.metadata] == ["three"]
    assert shared in net.model.buffers
    assert [change.to_dict()["saved"] for change in result.changes] == [0, 16]
    assert result.notes == ("there is no metadata four: the model has one, two, three",)


@pytest.mark.parametrize("word", ["name", "", "metadata:", "metadata:COMPRESSION_METADATA"])
def test_what_cannot_be_stripped_is_said(word: str) -> None:
    with pytest.raises(UsageError):
        [RemoveDead(strip=[word])]


# -- From the command line -----------------------------------------------------------------------------------


def command(*words: object) -> tuple[int, str]:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(out):
        code = main([str(word) for word in words])
    return code, out.getvalue()


@pytest.mark.runtime
def test_a_cut_is_verified_against_what_the_tensors_held(fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "mtcnn_rnet.tflite", tmp_path / "cut.tflite"
    inner = next(op for op in load(source).subgraphs[0].operators if op.code.name == "MAX_POOL_2D").outputs[0]
    assert inner is not None
    code, text = command("remove-dead", source, target, "--outputs", inner.name, "--verify", "require")
    assert code == 0, text
    assert "verified: PASS" in text and "cut to the same inputs and outputs" in text
    assert target.stat().st_size < source.stat().st_size / 4
    inputs = {row.name: np.full(row.shape or (), 0.5, np.float32) for row in load(source).subgraphs[0].inputs}
    from ai_edge_litert.interpreter import Interpreter

    whole = Interpreter(str(source), experimental_preserve_all_tensors=True)
    whole.allocate_tensors()
    for row in whole.get_input_details():
        whole.set_tensor(row["index"], inputs[row["name"]])
    whole.invoke()
    index = next(row["index"] for row in whole.get_tensor_details() if row["name"] == inner.name)
    np.testing.assert_array_equal(run(target, inputs)[inner.name], whole.get_tensor(index))


def test_a_wrong_name_is_a_usage_error_and_writes_nothing(fixtures: Path, tmp_path: Path) -> None:
    target = tmp_path / "cut.tflite"
    code, text = command("remove-dead", fixtures / "dense.tflite", target, "--outputs", "nonsense")
    assert code == 2
    assert "no tensor is named 'nonsense'" in text
    assert not target.exists()


def test_outputs_in_another_order_are_not_taken_for_nothing_to_do(fixtures: Path, tmp_path: Path) -> None:
    # Already as small as it gets, so that the cut saves nothing.
    source, target = tmp_path / "in.tflite", tmp_path / "cut.tflite"
    assert command("compact", fixtures / "mtcnn_rnet.tflite", source, "--verify", "off")[0] == 0
    first, second = (tensor.name for tensor in load(source).subgraphs[0].outputs)
    code, text = command("remove-dead", source, target, "--outputs", f"{second},{first}", "--verify", "off")
    assert code == 0, text
    assert [tensor.name for tensor in load(target).subgraphs[0].outputs] == [second, first]


def test_a_second_run_finds_nothing(sound: Path) -> None:
    model = load(sound)
    run_passes(model, [RemoveDead(strip=["names", "min-max"])])
    assert not broken(model)
    assert not any(result.modified for result in run_passes(model, [RemoveDead(strip=["names", "min-max"])]))


def test_integer_vectors_of_options_are_followed() -> None:
    net = Net()
    graphs = []
    for name in ("one", "two", "three"):
        graphs.append(net.next_subgraph(name))
        net.output(net.input(f"{name}_x", (1,), np.int32))
    options = new_record("StablehloCaseOptions").replace(branch_subgraph_indices=graphs[:2])
    net.graph = net.model.subgraphs[0]
    x = net.input("x", (1,), np.int32)
    y = net.tensor("y", (1,), np.int32)
    net.graph.operators.append(Operator(net.code("STABLEHLO_CASE", 1), [x], [y], options2=options))
    net.output(y)
    run_passes(net.model, [RemoveDead()])
    assert [graph.name for graph in net.model.subgraphs] == ["main", "one", "two"]


# -- Cuts in other subgraphs ---------------------------------------------------------------------------------


def codec() -> Net:
    """Two entry points: x -> a -> y, and p -> q -> r -> s with a second output; some names are in both."""
    net = Net()
    x = net.input("x", (1, 4))
    a = net.add("ADD", [x, net.constant("one", ONES)], "a", (1, 4))
    net.output(net.add("MUL", [a, a], "y", (1, 4)))
    net.sign("decode")
    net.next_subgraph("other")
    p = net.input("p", (1, 4))
    q = net.add("ADD", [p, net.constant("two", 2 * ONES)], "q", (1, 4))
    r = net.add("MUL", [q, q], "r", (1, 4))
    net.output(net.add("SUB", [r, net.constant("a", 3 * ONES)], "s", (1, 4)))
    net.sign("encode")
    net.model.signatures[1].inputs[0][0].values["name"] = "frame"
    return net


@pytest.mark.runtime
@pytest.mark.parametrize("options", [{"outputs": ["q"]}, {"outputs": ["q"], "signature": "encode"}], ids=str)
def test_the_subgraph_that_has_the_names_is_cut(options: dict[str, Any], tmp_path: Path) -> None:
    model = codec().model
    cut, dead = run_passes(model, [RemoveDead(**options)])
    assert [change.where for change in cut.changes] == ["encode: output s", "encode: output q"]
    assert {change.where for change in dead.changes} >= {"MUL -> r", "SUB -> s"}
    other = model.signatures[1]
    assert [(row.get("name"), tensor.name) for row, tensor in other.inputs] == [("frame", "p")]
    assert [(row.get("name"), tensor.name) for row, tensor in other.outputs] == [("q", "q")]
    save(model, tmp_path / "cut.tflite")
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    assert np.array_equal(run(tmp_path / "cut.tflite", {"frame": x}, signature="encode")["q"], x + 2)
    assert np.array_equal(run(tmp_path / "cut.tflite", {"x": x}, signature="decode")["y"], (x + 1) ** 2)


@pytest.mark.runtime
def test_inputs_of_another_subgraph(tmp_path: Path) -> None:
    model = codec().model
    run_passes(model, [RemoveDead(inputs=["r"])])
    assert [tensor.name for tensor in model.subgraphs[1].inputs] == ["r"]
    assert [tensor.name for tensor in model.subgraphs[0].inputs] == ["x"]
    save(model, tmp_path / "cut.tflite")
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    assert np.array_equal(run(tmp_path / "cut.tflite", {"r": x}, signature="encode")["s"], x - 3)


def test_a_name_of_two_subgraphs_is_that_of_the_main_one_unless_said() -> None:
    model = codec().model
    run_passes(model, [RemoveDead(outputs=["a"])])
    assert [tensor.name for tensor in model.subgraphs[0].outputs] == ["a"]
    model = codec().model
    run_passes(model, [RemoveDead(outputs=["a"], signature="encode")])
    assert [tensor.name for tensor in model.subgraphs[1].outputs] == ["a"]
    assert [tensor.name for tensor in model.subgraphs[0].outputs] == ["y"]


def test_a_second_cut_of_another_subgraph_finds_nothing() -> None:
    model = codec().model
    run_passes(model, [RemoveDead(outputs=["q"], signature="encode")])
    assert not any(
        result.modified for result in run_passes(model, [RemoveDead(outputs=["q"], signature="encode")])
    )


def test_arguments_and_indices_name_tensors_of_the_signature() -> None:
    model = codec().model
    run_passes(model, [RemoveDead(inputs=["frame"], outputs=["#2"], signature="encode")])
    assert [tensor.name for tensor in model.subgraphs[1].outputs] == ["q"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": ["q"], "signature": "encod"}, "no signature 'encod'; did you mean 'encode'"),
        ({"outputs": ["q"], "signature": "decode"}, r"'q' is a tensor of subgraphs\[1\].*--signature encode"),
        ({"outputs": ["q"], "inputs": ["x"]}, r"'q' is a tensor of subgraphs\[1\], not of subgraphs\[0\]"),
        ({"outputs": ["q", "nowhere"]}, "no tensor is named 'nowhere'"),
        ({"inputs": ["q"], "outputs": ["p"]}, "is made by no operator|also needs"),
        ({"signature": "encode"}, "name inputs or outputs too"),
    ],
    ids=str,
)
def test_cuts_of_another_subgraph_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_passes(codec().model, [RemoveDead(**options)])


def test_names_of_two_other_subgraphs_must_be_told_apart() -> None:
    net = codec()
    net.next_subgraph("third")
    net.output(net.add("ADD", [net.input("p", (1, 4)), net.constant("four", ONES)], "q", (1, 4)))
    net.sign("third")
    with pytest.raises(UsageError, match="--signature encode or third"):
        run_passes(net.model, [RemoveDead(inputs=["q"])])
    with pytest.raises(UsageError, match="--signature encode or third"):
        run_passes(net.model, [RemoveDead(outputs=["q"], inputs=["p"])])


def test_a_subgraph_that_an_operator_runs_is_not_cut(fixtures: Path) -> None:
    model = load(fixtures / "while_loop.tflite")
    body = next(operator for _, operator in model.operators() if operator.code.name == "WHILE")
    inner = list(body.subgraphs())[1]
    name = next(t.name for o in inner.operators for t in o.outputs if t and t.name and t not in inner.outputs)
    with pytest.raises(UsageError, match="WHILE runs this subgraph"):
        run_passes(model, [RemoveDead(outputs=[name])])


@pytest.mark.runtime
def test_a_cut_of_a_signature_is_verified(fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "two_signatures_shared_weights.tflite", tmp_path / "out.tflite"
    model = load(source)
    signature = model.signatures[1]
    first = next(t.name for o in signature.subgraph.operators for t in o.outputs if t is not None)
    assert signature.key is not None and signature.subgraph is not model.subgraphs[0]
    code = main(["remove-dead", str(source), str(target), "--signature", signature.key, "--outputs", first])
    assert code == 0
    made = load(target)
    assert [[tensor.name for _, tensor in item.outputs] for item in made.signatures][1] == [first]
    assert [tensor.name for _, tensor in made.signatures[0].outputs] == [
        tensor.name for _, tensor in model.signatures[0].outputs
    ]
