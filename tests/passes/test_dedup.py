"""What is merged, and what only looks equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import UnsupportedError, load, save
from tfl_rewrite.editing.base import PassResult, run_passes
from tfl_rewrite.flatbuf.record import FLOAT32, INT32, ScalarVector
from tfl_rewrite.model import likeness
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Buffer, Model, Operator, OperatorCode, Quantization, Tensor, new_record
from tfl_rewrite.passes.dedup import Dedup
from tfl_rewrite.passes.remove_dead import RemoveDead

from ..nets import Net, named, run, stored_apart

ONES = np.ones((1, 4), np.float32)


def names(model: Model) -> list[str]:
    return [tensor.name for tensor in model.subgraphs[0].tensors]


def kinds(model: Model) -> list[str]:
    return [operator.code.name for operator in model.subgraphs[0].operators]


def whats(result: PassResult) -> list[tuple[str, int]]:
    return [(change.where, change.to_dict()["saved"]) for change in result.changes]


def twice() -> Net:
    """The same computation twice, over two equal constants, added up."""
    net = Net()
    x = net.input("x", (1, 4))
    first = net.add("MUL", [x, net.constant("c", 3 * ONES)], "p", (1, 4))
    second = net.add("MUL", [x, net.constant("d", 3 * ONES)], "q", (1, 4))
    first = net.add("ADD", [first, x], "r", (1, 4))
    second = net.add("ADD", [second, x], "s", (1, 4))
    net.output(net.add("SUB", [first, second], "y", (1, 4)))
    return net


def test_what_has_no_name_is_told_of_as_that_and_nothing_as_nothing() -> None:
    net = twice()
    for name in ("d", "q"):
        named(net.model, name).name = ""
    (result,) = run_passes(net.model, [Dedup()])
    places = [change.where for change in result.changes]
    assert places == ["buffers[2]", "(unnamed)", "MUL -> (unnamed)", "ADD -> s"]
    assert not result.idle
    (again,) = run_passes(net.model, [Dedup()])
    assert again.idle == "no constant and no operator is there twice"


def test_what_comes_behind_equal_ones_that_stay_is_merged() -> None:
    """Two outputs stay two, and a third of the same is one of them."""
    net = Net()
    x = net.input("x", (1, 4))
    for name in ("one", "two"):
        net.output(net.add("ABS", [x], name, (1, 4)))
    net.output(net.add("NEG", [net.add("ABS", [x], "third", (1, 4))], "y", (1, 4)))
    run_passes(net.model, [Dedup()])
    assert kinds(net.model) == ["ABS", "ABS", "NEG"] and not broken(net.model)
    last = net.graph.operators[-1]
    assert last.inputs[0] is net.graph.outputs[0]


def test_options_with_lists_tell_operators_apart() -> None:
    for other, left in ((2, 2), (1, 1)):
        net = Net()
        x = net.input("x", (2, 3))
        for number, last in enumerate((1, other)):
            shape = (3, 2) if last == 2 else (6, 1)
            options = {"new_shape": ScalarVector.of(INT32, shape)}
            made = net.add("RESHAPE", [x], f"r{number}", shape, **options)
            net.output(net.add("NEG", [made], f"y{number}", shape))
        run_passes(net.model, [Dedup()])
        assert kinds(net.model).count("RESHAPE") == left


@pytest.mark.runtime
def test_equal_parts_become_one_down_the_line(tmp_path: Path) -> None:
    net = twice()
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    path = tmp_path / "model.tflite"
    save(net.model, path)
    before = run(path, {"x": x})
    stored_apart(named(net.model, "d"))
    result = run_passes(net.model, [Dedup()])[0]
    assert names(net.model) == ["x", "c", "p", "r", "y"]
    assert kinds(net.model) == ["MUL", "ADD", "SUB"]
    assert whats(result) == [("buffers[2]", 16), ("d", 0), ("MUL -> q", 0), ("ADD -> s", 0)]
    save(net.model, path, force=True)
    assert run(path, {"x": x})["y"].tobytes() == before["y"].tobytes()
    assert not run_passes(net.model, [Dedup()])[0].modified


def test_equal_float16_constants_under_other_names_are_expanded_once() -> None:
    net = Net()
    values = np.ones((1, 4), np.float16)
    given = net.input("x", (1, 4))
    halves = [net.half(name, values) for name in ("one", "two")]
    made = [net.add("MUL", [given, item], f"{item.name}_y", (1, 4)) for item in halves]
    net.output(net.add("ADD", made, "y", (1, 4)))
    (result,) = run_passes(net.model, [Dedup()])
    assert kinds(net.model) == ["DEQUANTIZE", "MUL", "ADD"]
    assert {change.where for change in result.changes} >= {"DEQUANTIZE -> two", "MUL -> two_y"}


def test_hashes_propose_and_bytes_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness, "_taste", lambda _blob: b"all alike")
    monkeypatch.setattr(likeness, "digest", lambda _blob: b"all alike")
    net = twice()
    named(net.model, "d").buffer.blob = OwnedBlob((4 * ONES).tobytes())
    assert not run_passes(net.model, [Dedup()])[0].modified
    assert run_passes(twice().model, [Dedup()])[0].modified


def test_buffers_of_variables_and_metadata_stay_apart() -> None:
    net = twice()
    data = named(net.model, "c").buffer
    assert data.blob is not None
    net.metadata("same bytes", bytes(data.blob.view()))
    state = net.constant("state", 3 * ONES)
    state.is_variable = True
    run_passes(net.model, [Dedup()])[0]
    assert len(net.model.buffers) == 4
    assert len({id(state.buffer), id(data), id(net.model.metadata[0].buffer)}) == 3
    assert "state" in names(net.model)


def quantize(net: Net, name: str, scale: float, **rest: object) -> None:
    record = new_record("QuantizationParameters").replace(**rest)
    named(net.model, name).quantization = Quantization(ScalarVector.of(FLOAT32, [scale]), rest=record)


def reshape(net: Net) -> None:
    named(net.model, "d").shape = (4, 1)


def retype(net: Net) -> None:
    named(net.model, "d").dtype = 2


def sign_shape(net: Net) -> None:
    named(net.model, "d").signature = (-1, 4)


def scale(net: Net) -> None:
    quantize(net, "c", 1.0)
    quantize(net, "d", 2.0)


def note_range(net: Net) -> None:
    quantize(net, "c", 1.0)
    quantize(net, "d", 1.0, min=ScalarVector.of(FLOAT32, [0.0]))


def thin_out(net: Net) -> None:
    tensor = named(net.model, "d")
    tensor.rest = tensor.rest.replace(sparsity=new_record("SparsityParameters"))


@pytest.mark.parametrize("change", [reshape, retype, sign_shape, scale, note_range, thin_out])
def test_constants_that_differ_in_more_than_the_name_stay(change: object) -> None:
    net = twice()
    change(net)  # type: ignore[operator]
    run_passes(net.model, [Dedup()])[0]
    assert {"c", "d"} <= set(names(net.model))
    assert named(net.model, "c").buffer is named(net.model, "d").buffer
    assert kinds(net.model).count("MUL") == 2


def test_equal_quantization_does_not_keep_constants_apart() -> None:
    net = twice()
    quantize(net, "c", 2.0)
    quantize(net, "d", 2.0)
    run_passes(net.model, [Dedup()])[0]
    assert "d" not in names(net.model)


def test_names_that_others_know_stay() -> None:
    net = twice()
    net.output(named(net.model, "d"))
    net.output(named(net.model, "q"))
    run_passes(net.model, [Dedup()])[0]
    # What is known by name takes the place of what came first.
    assert names(net.model) == ["x", "d", "q", "r", "y"]
    assert kinds(net.model) == ["MUL", "ADD", "SUB"]
    assert not broken(net.model)
    assert not run_passes(net.model, [Dedup()])[0].modified


@pytest.mark.runtime
def test_two_outputs_stay_two(tmp_path: Path) -> None:
    net = twice()
    for name in ("c", "d", "p", "q"):
        net.output(named(net.model, name))
    run_passes(net.model, [Dedup()])[0]
    assert {"c", "d", "p", "q"} <= set(names(net.model))
    path = tmp_path / "model.tflite"
    save(net.model, path)
    assert set(run(path, {"x": ONES})) == {"y", "c", "d", "p", "q"}


def test_an_input_with_a_default_is_no_constant() -> None:
    net = Net()
    given = net.constant("given", ONES)
    net.graph.inputs.append(given)
    x = net.input("x", (1, 4))
    first = net.add("ADD", [x, given], "p", (1, 4))
    net.output(net.add("MUL", [first, net.constant("c", ONES.copy())], "y", (1, 4)))
    result = run_passes(net.model, [Dedup()])[0]
    assert not result.modified
    assert len({id(tensor.buffer) for tensor in net.graph.tensors if tensor.is_constant}) == 2


def test_arguments_of_signatures_are_names_that_others_know() -> None:
    net = twice()
    net.sign("serve")
    row = new_record("TensorMap").replace(name="inner")
    net.model.signatures[0].outputs.append((row, named(net.model, "s")))
    run_passes(net.model, [Dedup()])[0]
    assert "s" in names(net.model)
    assert "r" not in names(net.model)


def test_scales_of_blocks_follow_the_tensor_that_stays() -> None:
    net = twice()
    weights = named(net.model, "x")
    weights.quantization = Quantization(scales_tensor=named(net.model, "d"))
    run_passes(net.model, [Dedup()])[0]
    assert weights.quantization is not None
    assert weights.quantization.scales_tensor is named(net.model, "c")
    assert not broken(net.model)


@pytest.mark.parametrize("kind", ["RANDOM_UNIFORM", "READ_VARIABLE", "HASHTABLE_FIND", "VAR_HANDLE"])
def test_random_and_stateful_operators_are_never_merged(kind: str) -> None:
    net = Net()
    x = net.input("x", (2,), np.int32)
    net.output(net.add("SUB", [net.add(kind, [x], name, (2,)) for name in ("a", "b")], "y", (2,)))
    assert not run_passes(net.model, [Dedup()])[0].modified


def test_custom_operators_are_merged_on_request_only() -> None:
    for pure, left in (([], 3), (["Halver"], 2)):
        net = Net()
        x = net.input("x", (1, 4))
        code = OperatorCode(32, "Halver")
        net.model.operator_codes.append(code)
        made: list[Tensor | None] = [net.tensor(name, (1, 4)) for name in ("a", "b")]
        net.graph.operators += [Operator(code, [x], [tensor]) for tensor in made]
        net.output(net.add("SUB", made, "y", (1, 4)))
        run_passes(net.model, [Dedup(pure_custom=pure)])[0]
        assert len(net.graph.operators) == left


def test_operators_with_a_variable_are_never_merged() -> None:
    net = Net()
    x, state = net.input("x", (1, 4)), net.tensor("state", (1, 4), buffer=Buffer())
    state.is_variable = True
    net.model.buffers.append(state.buffer)
    net.output(net.add("SUB", [net.add("SVDF", [x, state], name, (1, 4)) for name in "ab"], "y", (1, 4)))
    assert not run_passes(net.model, [Dedup()])[0].modified


@pytest.mark.parametrize("what", ["options", "version", "order", "output type", "custom options", "absent"])
def test_operators_that_differ_stay(what: str) -> None:
    net = Net()
    x, z = net.input("x", (1, 4)), net.input("z", (1, 4))
    for name in "ab":
        net.add("ADD", [x, z], name, (1, 4))
    net.output(net.add("SUB", [named(net.model, "a"), named(net.model, "b")], "y", (1, 4)))
    second = net.graph.operators[1]
    if what == "options":
        assert second.options is not None
        second.options = second.options.replace(fused_activation_function=1)
    elif what == "version":
        second.code = net.code("ADD", 2)
    elif what == "order":
        second.inputs.reverse()
    elif what == "output type":
        named(net.model, "b").dtype = 1
    elif what == "custom options":
        second.rest = second.rest.replace(custom_options=ScalarVector(FLOAT32, b"\1\0\0\0"))
    else:
        second.inputs.append(None)
    assert not run_passes(net.model, [Dedup()])[0].modified


def test_a_tensor_that_two_operators_write_is_no_single_value() -> None:
    net = twice()
    net.graph.operators[1].outputs = [named(net.model, "p")]
    before = list(net.graph.operators)
    run_passes(net.model, [Dedup()])[0]
    assert net.graph.operators == before


def test_a_tensor_that_a_caller_and_an_operator_write_is_no_single_value() -> None:
    net = Net()
    x = net.input("x", (1, 4))
    first = net.add("ABS", [x], "before", (1, 4))
    net.add("NEG", [first], "spare", (1, 4))
    net.graph.operators[-1].outputs = [x]
    net.output(net.add("SUB", [first, net.add("ABS", [x], "after", (1, 4))], "y", (1, 4)))
    assert not run_passes(net.model, [Dedup()])[0].modified


@pytest.mark.parametrize("known_by", ["subgraph", "signature"])
def test_an_input_with_bytes_is_no_constant_because_callers_may_overwrite_it(known_by: str) -> None:
    net = twice()
    net.sign("serve")
    given = named(net.model, "c")
    if known_by == "subgraph":
        net.graph.inputs.append(given)
    row = new_record("TensorMap").replace(name="c")
    net.model.signatures[0].inputs.append((row, given))
    run_passes(net.model, [Dedup()])[0]
    assert {"c", "d", "p", "q"} <= set(names(net.model))


def test_results_in_empty_buffers_of_their_own_are_alike() -> None:
    net = twice()
    for name in ("p", "q"):
        named(net.model, name).buffer = Buffer()
        net.model.buffers.append(named(net.model, name).buffer)
    run_passes(net.model, [Dedup()])[0]
    assert kinds(net.model) == ["MUL", "ADD", "SUB"]


def test_a_buffer_with_a_vector_of_no_bytes_is_not_like_none() -> None:
    net = twice()
    buffer = Buffer(rest=new_record("Buffer").replace(data=ScalarVector(FLOAT32, b"")))
    net.model.buffers.append(buffer)
    named(net.model, "q").buffer = buffer
    run_passes(net.model, [Dedup()])[0]
    assert kinds(net.model).count("MUL") == 2


def test_reads_of_a_variable_around_a_write_stay_two_and_in_order(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", (1, 4))
    handle = net.add("VAR_HANDLE", [], "handle", (), dtype=np.int32)
    handle.dtype = 13
    net.add("ASSIGN_VARIABLE", [handle, x], "no result", (1, 4))
    net.graph.operators[-1].outputs = []
    first = net.add("READ_VARIABLE", [handle], "first", (1, 4))
    twofold = net.add("ADD", [first, first], "twofold", (1, 4))
    net.add("ASSIGN_VARIABLE", [handle, twofold], "no result either", (1, 4))
    net.graph.operators[-1].outputs = []
    second = net.add("READ_VARIABLE", [handle], "second", (1, 4))
    net.output(net.add("SUB", [second, first], "y", (1, 4)))
    before = kinds(net.model)
    run_passes(net.model, [RemoveDead()])
    run_passes(net.model, [Dedup()])[0]
    assert kinds(net.model) == before


def test_compressed_constants_are_refused() -> None:
    net = twice()
    net.metadata("COMPRESSION_METADATA", bytes(16))
    with pytest.raises(UnsupportedError, match="COMPRESSION_METADATA"):
        run_passes(net.model, [Dedup()])[0]


def test_a_second_run_finds_nothing(sound: Path) -> None:
    model = load(sound)
    run_passes(model, [Dedup()])[0]
    assert not broken(model)
    assert not run_passes(model, [Dedup()])[0].modified


@pytest.mark.parametrize("what", ["intermediates", "large_custom"])
def test_operators_with_more_than_inputs_and_options_stay(what: str) -> None:
    net = twice()
    for operator in net.graph.operators[:2]:
        setattr(operator, what, [None] if what == "intermediates" else OwnedBlob(b"x"))
    run_passes(net.model, [Dedup()])
    assert kinds(net.model) == ["MUL", "MUL", "ADD", "ADD", "SUB"]


def test_zero_points_of_blocks_follow_the_tensor_that_stays() -> None:
    net = Net()
    x = net.input("x", (1, 4))
    kept, gone = net.constant("c", 3 * ONES), net.constant("d", 3 * ONES)
    x.quantization = Quantization(zero_points_tensor=gone)
    net.output(net.add("ADD", [net.add("MUL", [x, kept], "p", (1, 4)), gone], "y", (1, 4)))
    run_passes(net.model, [Dedup()])
    assert names(net.model) == ["x", "c", "p", "y"]
    assert x.quantization is not None and x.quantization.zero_points_tensor is kept


def test_what_is_saved_is_counted_once() -> None:
    """Bytes that two buffers share are in the file once, so that merging the buffers saves none."""
    net = twice()
    assert whats(run_passes(net.model, [Dedup()])[0])[0] == ("buffers[2]", 0)
    net = twice()
    stored_apart(named(net.model, "d"))
    assert whats(run_passes(net.model, [Dedup()])[0])[0] == ("buffers[2]", 16)
