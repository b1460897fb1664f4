"""The same content in fewer bytes: what goes, what must not, and where constants lie."""

from __future__ import annotations

import io
import itertools
import mmap
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import tflite

from tfl_rewrite import UsageError, load, save
from tfl_rewrite.cli import main
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.files import layout as layouts
from tfl_rewrite.files.source import layout, origin_of
from tfl_rewrite.flatbuf.record import FLOAT32, INT64, UINT8, Record, ScalarVector
from tfl_rewrite.flatbuf.writer import Packing
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Buffer, Model, Quantization, new_record, schema
from tfl_rewrite.model.lower import lower
from tfl_rewrite.passes.compact import Compact

from ..nets import Net, data_of, named, run, stored_apart

ONES = np.ones((1, 4), np.float32)


def packed(source: Path, target: Path, **options: object) -> Path:
    """Compacts a file without running it."""
    model = load(source)
    save(model, target, force=True, packing=run_passes(model, [Compact(**options)])[-1].packing)
    return target


def command(*words: object) -> tuple[int, str]:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(out):
        code = main([str(word) for word in words])
    return code, out.getvalue()


def plain(value: object) -> object:
    """A record without numbers that equal their defaults, for comparison."""
    if isinstance(value, Record):
        fields = value.spec.by_name
        return (
            value.spec.name,
            {name: plain(item) for name, item in value.values.items() if item != fields[name].default},
        )
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, ScalarVector):
        return bytes(value.raw)
    if hasattr(value, "view"):
        return bytes(value.view())
    return value


def net_of_layers(layers: int = 6) -> Net:
    net = Net()
    last = net.input("x", (1, 40))
    for index in range(layers):
        last = net.dense(last, net.weights(f"layer{index}/w", (40, 40)), f"layer{index}/y")
    net.output(last)
    net.sign("serve")
    return net


# -- What goes -----------------------------------------------------------------------------------------------


def test_a_rewrite_alone_shrinks_and_loses_nothing_but_defaults(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "dense_defaults_present.tflite"
    model = load(source)
    result = run_passes(model, [Compact()])[-1]
    target = tmp_path / "packed.tflite"
    nbytes = save(model, target, packing=result.packing)
    assert nbytes == target.stat().st_size < source.stat().st_size
    assert plain(lower(load(target))) == plain(lower(model))
    # Read by the accessors of another package.
    root = tflite.Model.GetRootAsModel(target.read_bytes(), 0)
    assert root.Version() == 3
    assert root.Subgraphs(0).Tensors(0).Name().decode() == model.subgraphs[0].tensors[0].name


def test_empty_buffers_become_the_sentinel_but_for_variables_and_present_ones() -> None:
    net = Net()
    x = net.input("x", (1, 4))
    empties = [Buffer() for _ in range(4)]
    net.model.buffers += empties
    x.buffer = empties[0]
    y = net.add("ABS", [x], "y", (1, 4))
    y.buffer = empties[1]
    net.output(y)
    state = net.tensor("state", (1, 4), buffer=empties[2])
    state.is_variable = True
    # Present and empty: the runtime takes such a tensor for a constant without elements.
    hollow = net.tensor("hollow", (0,), buffer=empties[3])
    empties[3].rest = empties[3].rest.replace(data=ScalarVector(UINT8, b""))
    result = run_passes(net.model, [Compact()])[-1]
    assert net.model.buffers[1:] == empties[2:]
    assert x.buffer is y.buffer is net.model.buffers[0]
    assert hollow.buffer is empties[3] and state.buffer is empties[2]
    assert [change.to_dict()["what"] for change in result.changes] == ["2 empty ones left out"]


def test_buffers_stay_where_metadata_counts_them() -> None:
    net = Net()
    net.output(net.add("ABS", [net.input("x", (1, 4))], "y", (1, 4)))
    net.model.buffers.append(Buffer())
    net.metadata("COMPRESSION_METADATA", bytes(16))
    result = run_passes(net.model, [Compact()])[-1]
    assert len(net.model.buffers) == 3
    assert any("COMPRESSION_METADATA" in note for note in result.notes)


def quantized(**fields: Sequence[float]) -> Quantization:
    types = {"zero_point": INT64}
    made = {name: ScalarVector.of(types.get(name, FLOAT32), values) for name, values in fields.items()}
    record = new_record("QuantizationParameters").replace(**made)
    return Quantization(made.get("scale"), made.get("zero_point"), rest=record)


def test_empty_quantization_goes_and_what_says_something_stays() -> None:
    net = Net()
    shared = quantized(min=[], max=[], scale=[], zero_point=[])
    cases = {
        "shared": shared,
        "shared too": shared,
        "range": quantized(min=[0.0], max=[1.0], scale=[], zero_point=[]),
        "scales without zero points": quantized(scale=[1.0], zero_point=[]),
        "all": quantized(min=[], scale=[1.0], zero_point=[0]),
    }
    for name, details in cases.items():
        net.input(name, (1,)).quantization = details
    run_passes(net.model, [Compact()])
    found = {
        tensor.name: None if tensor.quantization is None else set(plain(_lowered(net.model, tensor.name))[1])  # type: ignore[index]
        for tensor in net.graph.tensors
    }
    assert found == {
        "shared": None,
        "shared too": None,
        "range": {"min", "max"},
        "scales without zero points": {"scale", "zero_point"},
        "all": {"scale", "zero_point"},
    }
    assert not run_passes(net.model, [Compact()])[-1].modified


def _lowered(model: Model, name: str) -> Record:
    tensors = lower(model)["subgraphs"][0]["tensors"]
    record: Record = next(row for row in tensors if row["name"] == name)["quantization"]
    return record


def test_a_signature_of_shapes_goes_only_where_all_sizes_are_known() -> None:
    net = Net()
    known, free = net.input("known", (1, 4)), net.input("free", (1, 4))
    known.signature, free.signature = (1, 4), (-1, 4)
    (change,) = run_passes(net.model, [Compact()])[-1].changes
    assert (change.where, change.to_dict()["count"]) == ("Tensor.shape_signature", 1)
    assert (known.signature, free.signature) == (None, (-1, 4))


def test_equal_constants_are_stored_once_and_stay_two_buffers(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", (1, 400))
    values = np.arange(400, dtype=np.float32).reshape(1, 400)
    first = net.add("ADD", [x, net.constant("c", values)], "a", (1, 400))
    net.output(net.add("MUL", [first, net.constant("d", values)], "y", (1, 400)))
    net.constant("state", values).is_variable = True
    for name in ("c", "d", "state"):
        stored_apart(named(net.model, name))
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(net.model, source)
    result = run_passes(load(source), [Compact()])[-1]
    assert [(c.where, c.to_dict()["saved"]) for c in result.changes] == [("buffers[2]", 1600)]
    packed(source, target)
    after = load(target)
    assert len(after.buffers) == 4
    places = [getattr(buffer.blob, "offset", 0) for buffer in after.buffers[1:]]
    assert places[0] == places[1] != places[2]
    assert source.stat().st_size - target.stat().st_size > 1600


@pytest.mark.parametrize("field", ["intermediates", "mutating_variable_inputs"])
def test_empty_vectors_of_operators_go(field: str) -> None:
    net = Net()
    net.output(net.add("ABS", [net.input("x", (1, 4))], "y", (1, 4)))
    operator = net.graph.operators[0]
    scalar = schema().tables["Operator"].by_name[field].scalar
    assert scalar is not None
    operator.rest = operator.rest.replace(**{field: ScalarVector(scalar, b"")})
    run_passes(net.model, [Compact()])
    assert field not in lower(net.model)["subgraphs"][0]["operators"][0]


@pytest.mark.runtime
def test_offset_buffers_are_taken_in(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "offset_buffers.tflite"
    target = packed(source, tmp_path / "out.tflite")
    assert any(buffer.outside for buffer in load(source).buffers)
    assert not any(buffer.outside for buffer in load(target).buffers)
    assert target.stat().st_size <= source.stat().st_size
    x = np.load(source.parent / "inputs" / "digits_eval.npz")
    inputs = {name: x[name][:1] for name in x.files}
    before, after = run(source, inputs), run(target, inputs)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_numbers_that_equal_the_default_by_their_bits_are_left_out(tmp_path: Path) -> None:
    net = Net()
    net.output(net.add("SOFTMAX", [net.input("x", (1, 4))], "y", (1, 4)))
    operator, path = net.graph.operators[0], tmp_path / "model.tflite"
    for beta, written in ((0.0, {}), (-0.0, {"beta": -0.0}), (1.0, {"beta": 1.0})):
        operator.options = new_record("SoftmaxOptions").replace(beta=beta)
        number = schema().enums["BuiltinOptions"].values["SoftmaxOptions"]
        operator.rest = operator.rest.replace(builtin_options_type=number)
        save(net.model, path, force=True, packing=Packing())
        options = load(path).subgraphs[0].operators[0].options
        assert options is not None
        assert repr(options.values) == repr(written)


# -- What never happens --------------------------------------------------------------------------------------


def test_no_file_grows_and_a_second_run_copies(sound: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.tflite", tmp_path / "second.tflite"
    code, text = command("compact", sound, first, "--verify", "off")
    assert code == 0, text
    assert first.stat().st_size <= sound.stat().st_size
    assert not broken(load(first))
    code, text = command("compact", first, second, "--verify", "off")
    assert (code, "nothing to do" in text) == (0, True), text
    assert first.read_bytes() == second.read_bytes()


def test_the_zip_behind_the_model_stays(fixtures: Path, tmp_path: Path) -> None:
    import zipfile

    source = fixtures / "metadata_label_zip.tflite"
    target = packed(source, tmp_path / "out.tflite")
    assert target.stat().st_size < source.stat().st_size
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target) as after:
        assert {n: after.read(n) for n in after.namelist()} == {n: before.read(n) for n in before.namelist()}


def test_a_file_that_would_grow_is_copied(tmp_path: Path) -> None:
    net = Net()
    x = net.input("x", (1, 4))
    net.output(net.add("ADD", [x, net.constant("c", ONES)], "y", (1, 4)))
    net.model.subgraphs[0].name = None
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(net.model, source, packing=run_passes(net.model, [Compact()])[-1].packing)
    code, text = command("compact", source, target, "--verify", "off")
    assert (code, "is a verbatim copy" in text) == (0, True)
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("align", [0, 8, 24, 100_000, 1 << 17, -16])
def test_alignments_that_make_no_sense_are_refused(align: int) -> None:
    with pytest.raises(UsageError, match="power of two"):
        [Compact(align=align)]


# -- Where constants lie -------------------------------------------------------------------------------------


@pytest.mark.runtime
def test_large_constants_start_on_pages_of_the_file_and_run_from_the_map(tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    net = net_of_layers()
    x = np.linspace(-1, 1, 40, dtype=np.float32).reshape(1, 40)
    save(net.model, source)
    code, text = command("compact", source, target, "--align", 4096)
    assert (code, "verified: PASS" in text) == (0, True), text
    weights = [named(net.model, f"layer{index}/w").buffer.blob for index in range(6)]
    with open(target, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for blob in weights:
            assert blob is not None and blob.nbytes == 6400
            assert mapped.find(bytes(blob.view())) % 4096 == 0
        # By the accessors of another package: what the file says is where the bytes are.
        root = tflite.Model.GetRootAsModel(mapped, 0)
        large = [root.Buffers(i) for i in range(root.BuffersLength()) if root.Buffers(i).DataLength() >= 4096]
        starts = [row._tab.Vector(row._tab.Offset(4)) for row in large]
        assert len(starts) == 6
        assert all(start % 4096 == 0 for start in starts)
        interpreter = Interpreter(model_content=mapped[:], num_threads=1)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    assert found.tobytes() == run(source, {"x": x})["layer5/y"].tobytes()
    code, text = command("compact", target, tmp_path / "again.tflite", "--align", 4096)
    assert (code, "nothing to do" in text) == (0, True), text
    assert load(packed(target, tmp_path / "small.tflite")).subgraphs
    assert (tmp_path / "small.tflite").stat().st_size < source.stat().st_size


def test_small_constants_fill_the_gaps_before_pages(tmp_path: Path) -> None:
    net = net_of_layers(3)
    for index in range(40):
        net.output(net.constant(f"small{index}", np.full((64,), index, np.float32)))
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(net.model, source)
    model = load(packed(source, target, align=4096))
    blobs = [buffer.blob for buffer in model.buffers[1:]]
    places = [(getattr(blob, "offset", -1), blob.nbytes) for blob in blobs if blob is not None]
    large = [start for start, nbytes in places if nbytes >= 4096]
    assert all(start % 4096 == 0 for start in large)
    assert all(start % 16 == 0 for start, _ in places)
    # Between 6,400 bytes and the next page there are 1,792; 256 with a count, aligned, take 272.
    assert sum(min(large) < start < max(large) for start, nbytes in places if nbytes < 4096) == 2 * 6
    ends = sorted((start, start + nbytes) for start, nbytes in places)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))


def test_constants_of_exactly_a_page_do_not_overlap(tmp_path: Path) -> None:
    net = Net()
    for index in range(3):
        net.output(net.constant(f"page{index}", np.full((1024,), index + 1, np.float32)))
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(net.model, source)
    model = load(packed(source, target, align=4096))
    for index in range(3):
        np.testing.assert_array_equal(data_of(named(model, f"page{index}")), np.float32(index + 1))


def test_exchanged_constants_are_not_taken_for_a_file_that_lies_so_already(tmp_path: Path) -> None:
    net = net_of_layers(2)
    source, target = tmp_path / "in.tflite", tmp_path / "out.tflite"
    save(net.model, source)
    model = load(packed(source, target))
    first, second = (named(model, f"layer{index}/w").buffer for index in range(2))
    assert layout(model, packing=Packing()).verbatim is not None
    first.blob, second.blob = second.blob, first.blob
    assert layout(model, packing=Packing()).verbatim is None


def test_constants_outside_the_flatbuffer_start_on_pages_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    monkeypatch.setattr(layouts, "_INLINE_LIMIT", 1000)
    net = net_of_layers(3)
    target = tmp_path / "out.tflite"
    save(net.model, target, packing=run_passes(net.model, [Compact(align=4096)])[-1].packing)
    buffers = [buffer for buffer in load(target).buffers if buffer.nbytes]
    assert all(buffer.outside for buffer in buffers)
    assert all(getattr(buffer.blob, "offset", 1) % 4096 == 0 for buffer in buffers)


# -- How it is told ------------------------------------------------------------------------------------------


@pytest.mark.runtime
def test_the_report_tells_every_byte(fixtures: Path, tmp_path: Path) -> None:
    import json

    source, report = fixtures / "digits_cnn_full_int8.tflite", tmp_path / "report.json"
    words = ("--strip", "names,min-max", "--report", report, "-v")
    code, text = command("compact", source, tmp_path / "out.tflite", *words)
    assert (code, "verified: PASS" in text) == (0, True), text
    told = json.loads(report.read_text())
    assert [row["pass"] for row in told["passes"]] == ["strip", "compact"]
    changes = [change for row in told["passes"] for change in row["changes"]]
    assert sum(change["saved"] for change in changes) == told["nbytes_before"] - told["nbytes_after"]
    assert "names dropped" in text and "laid out anew" in text


def test_a_changed_model_is_laid_out_as_asked_for(fixtures: Path) -> None:
    model = load(fixtures / "digits_cnn_full_int8.tflite")
    origin = origin_of(model)
    assert origin is not None
    assert layout(model).verbatim is origin.container
    made = layout(model, packing=run_passes(model, [Compact()])[-1].packing)
    assert made.verbatim is None
    assert made.nbytes < origin.container.nbytes


def test_a_signature_that_equals_the_shape_says_nothing() -> None:
    """Also that of a scalar; one with an unknown size, or without a shape to equal, stays."""
    net = Net()
    scalar, known, unknown = net.input("s", ()), net.input("k", (3,)), net.input("u", (4,))
    scalar.signature, known.signature, unknown.signature = (), (3,), (-1,)
    net.output(known)
    (result,) = run_passes(net.model, [Compact()])
    assert [item.signature for item in (scalar, known, unknown)] == [None, None, (-1,)]
    (told,) = (change for change in result.changes if change.where == "Tensor.shape_signature")
    assert told.to_dict()["count"] == 2
