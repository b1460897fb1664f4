"""What is read and written again is the same, field presence and buffer bytes included."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfl_rewrite import load, save
from tfl_rewrite.errors import FormatError, InvariantError, UnsupportedError
from tfl_rewrite.files.container import Container
from tfl_rewrite.files.source import Source, is_changed, origin_of
from tfl_rewrite.flatbuf.record import FLOAT32, INT32, UINT8, Record, ScalarVector
from tfl_rewrite.model.blob import ComputedBlob, MappedBlob, OwnedBlob
from tfl_rewrite.model.ir import Buffer, Metadata, Model, Operator, Quantization, SubGraph, Tensor, schema
from tfl_rewrite.model.lower import lower

from .helpers import lowered, plain, written


def of_bytes(data: bytes) -> Model:
    return Source(Container.of_bytes(data)).model()


def make(table: str, /, **values: object) -> Record:
    return Record(schema().tables[table], dict(values))


# -- Every file ----------------------------------------------------------------------------------------------


def assert_survives(path: Path, folder: Path) -> None:
    model = load(path)
    assert not is_changed(model)
    before = lowered(model)
    origin = origin_of(model)
    assert origin is not None
    if not any(buffer.outside for buffer in model.buffers):
        assert before == plain(origin.root), "lowering gives what was read"
    again = of_bytes(written(lower(model)))
    assert lowered(again) == before
    assert not is_changed(again)
    assert written(lower(again)) == written(lower(model))
    target = folder / "verbatim.tflite"
    assert save(model, target) == path.stat().st_size
    assert target.read_bytes() == path.read_bytes()


def test_fixture_survives(sound: Path, tmp_path: Path) -> None:
    assert_survives(sound, tmp_path)


def test_public_model_survives(public: Path, tmp_path: Path) -> None:
    try:
        load(public)
    except (FormatError, UnsupportedError) as error:
        pytest.skip(f"not readable: {error.what}")
    assert_survives(public, tmp_path)


def test_change_of_one_field_changes_nothing_else(sound: Path, tmp_path: Path) -> None:
    model = load(sound)
    before = lowered(model)
    model.description = "another"
    assert is_changed(model)
    save(model, tmp_path / "out.tflite")
    again = load(tmp_path / "out.tflite")
    assert lowered(again) == before.replace(description="another")
    # Changing it back gives the old content, if not the old bytes.
    again.description = before.values.get("description")
    assert lowered(again) == before


def test_change_of_one_byte_of_one_buffer_is_a_change(fixtures: Path, tmp_path: Path) -> None:
    model = load(fixtures / "dense.tflite")
    (buffer,) = (buffer for buffer in model.buffers if buffer.nbytes > 1000)
    data = bytearray(buffer.blob.view())
    data[77] ^= 1
    buffer.blob = OwnedBlob(bytes(data))
    assert is_changed(model)
    save(model, tmp_path / "out.tflite")
    contents = [bytes(item.blob.view()) for item in load(tmp_path / "out.tflite").buffers if item.blob]
    assert bytes(data) in contents


def changes(model: Model) -> dict[str, object]:
    """One change to each kind of thing, by name."""
    graph = model.subgraphs[0]
    tensor = graph.tensors[1]
    return {
        "name": lambda: setattr(tensor, "name", "other"),
        "shape": lambda: setattr(tensor, "shape", (1, *(tensor.shape or ()))),
        "no shape": lambda: setattr(tensor, "shape", None),
        "dtype": lambda: setattr(tensor, "dtype", 9),
        "signature": lambda: setattr(tensor, "signature", (-1, 40)),
        "variable": lambda: setattr(tensor, "is_variable", True),
        "quantization": lambda: setattr(tensor, "quantization", Quantization.symmetric(bytes(4))),
        "buffer": lambda: setattr(tensor, "buffer", model.buffers[0]),
        "version": lambda: setattr(model.operator_codes[0], "version", 40),
        "operand": lambda: graph.operators[0].inputs.append(None),
        "intermediate": lambda: graph.operators[0].intermediates.append(tensor),
        "tensors": lambda: graph.tensors.append(Tensor("more", (1,), 0, model.buffers[0])),
        "outputs": lambda: graph.outputs.append(tensor),
        "graph name": lambda: setattr(graph, "name", "other"),
        "no operator": lambda: graph.operators.clear(),
        "subgraphs": lambda: model.subgraphs.append(SubGraph([], [], [], [])),
        "metadata": lambda: model.metadata.append(Metadata("n", model.buffers[0])),
        "old metadata": lambda: model.metadata_buffers.append(model.buffers[0]),
        "buffers": lambda: model.buffers.append(Buffer(OwnedBlob(b"x"))),
        "signature key": lambda: setattr(model.signatures[0], "key", "other"),
        "no signature": lambda: model.signatures.clear(),
    }


@pytest.mark.parametrize("name", ["dense", "dense_defaults_present"])
def test_each_change_is_seen_and_written(fixtures: Path, tmp_path: Path, name: str) -> None:
    path = fixtures / f"{name}.tflite"
    for label in changes(load(path)):
        model = load(path)
        change = changes(model)[label]
        assert callable(change)
        change()
        assert is_changed(model), label
        again = of_bytes(written(lower(model)))
        assert lowered(again) == lowered(model), label
        assert lowered(again) != lowered(load(path)), label


# -- What passes do not know comes along ---------------------------------------------------------------------


def test_custom_options_unknown_metadata_and_debug_fields_survive_a_change(tmp_path: Path) -> None:
    operator = make(
        "Operator",
        custom_options=ScalarVector(UINT8, bytes(range(256)) * 5),
        inputs=ScalarVector.of(INT32, [-1, 0]),
        mutating_variable_inputs=ScalarVector(
            schema().tables["Operator"].by_name["mutating_variable_inputs"].scalar, b"\1\0"
        ),
        debug_metadata_index=7,
    )
    tensor = make("Tensor", name="t", has_rank=True, variant_tensors=[make("VariantSubType", has_rank=True)])
    root = make(
        "Model",
        version=3,
        operator_codes=[
            make("OperatorCode", custom_code="Mine", builtin_code=32, deprecated_builtin_code=32)
        ],
        subgraphs=[make("SubGraph", tensors=[tensor], operators=[operator], debug_metadata_index=3)],
        buffers=[make("Buffer"), make("Buffer", data=OwnedBlob(b"whatever it means"))],
        metadata=[make("Metadata", name="of_tomorrow", buffer=1)],
        metadata_buffer=ScalarVector.of(INT32, [1, 1]),
    )
    path = tmp_path / "model.tflite"
    path.write_bytes(written(root))
    model = load(path)
    assert lowered(model) == plain(root)
    model.description = "changed"
    save(model, path, force=True)
    assert lowered(load(path)) == plain(root).replace(description="changed")


def test_external_buffers_survive_a_change(fixtures: Path, tmp_path: Path) -> None:
    model = load(fixtures / "external_buffers" / "model.tflite")
    assert sum(tensor.external is not None for tensor in model.subgraphs[0].tensors) == 5
    model.description = "changed"
    save(model, tmp_path / "model.tflite")
    again = load(tmp_path / "model.tflite")
    assert [group.name for group in again.external_groups] == ["", "weights_0.bin", "weights_1.bin"]
    for one, two in zip(model.external_buffers, again.external_buffers, strict=True):
        assert (one.identifier, one.offset, one.nbytes) == (two.identifier, two.offset, two.nbytes)
        assert one.identifier >> 31 == 1 and one.group.name == two.group.name


def test_sparsity_comes_along(fixtures: Path) -> None:
    model = load(fixtures / "sparse.tflite")
    (tensor,) = (tensor for tensor in model.subgraphs[0].tensors if tensor.is_sparse)
    tensor.name = "renamed"
    again = of_bytes(written(lower(model)))
    (other,) = (tensor for tensor in again.subgraphs[0].tensors if tensor.is_sparse)
    assert other.name == "renamed" and other.rest["sparsity"] == tensor.rest["sparsity"]


def test_old_operator_codes_stay_old_until_changed(fixtures: Path) -> None:
    model = load(fixtures / "mtcnn_rnet_old_schema.tflite")
    names = {code.name for code in model.operator_codes}
    assert {"CONV_2D", "PRELU", "FULLY_CONNECTED"} <= names and "ADD" not in names
    assert all("builtin_code" not in row for row in lower(model)["operator_codes"])
    code = model.operator_codes[0]
    code.version += 1
    first, *others = lower(model)["operator_codes"]
    assert first["builtin_code"] == first["deprecated_builtin_code"] == code.builtin
    assert all("builtin_code" not in row for row in others)


def test_operator_code_beyond_a_byte_keeps_the_mark(fixtures: Path) -> None:
    model = load(fixtures / "composite.tflite")
    (code,) = (code for code in model.operator_codes if code.name == "STABLEHLO_COMPOSITE")
    code.version += 1
    row = lower(model)["operator_codes"][model.operator_codes.index(code)]
    assert (row["deprecated_builtin_code"], row["builtin_code"]) == (127, 206)


# -- Places in the file --------------------------------------------------------------------------------------


def test_offset_buffers_come_inline_when_the_file_is_written(fixtures: Path, tmp_path: Path) -> None:
    model = load(fixtures / "offset_buffers.tflite")
    contents = [bytes(buffer.blob.view()) if buffer.blob else b"" for buffer in model.buffers]
    assert sum(buffer.outside for buffer in model.buffers) == 5
    assert not is_changed(model)
    model.description = "changed"
    save(model, tmp_path / "out.tflite")
    again = load(tmp_path / "out.tflite")
    assert not any(buffer.outside for buffer in again.buffers)
    assert [bytes(buffer.blob.view()) if buffer.blob else b"" for buffer in again.buffers] == contents
    assert all("offset" not in row and "size" not in row for row in lower(again)["buffers"])


def test_replaced_offset_buffer_is_a_change(fixtures: Path) -> None:
    model = load(fixtures / "offset_buffers.tflite")
    buffer = next(buffer for buffer in model.buffers if buffer.outside)
    buffer.blob = OwnedBlob(bytes(buffer.nbytes))
    assert is_changed(model)


@pytest.mark.parametrize("unused", [0, 1])
def test_offsets_that_mean_unused_are_kept_as_they_are(unused: int) -> None:
    row = make("Buffer", data=OwnedBlob(b"abcd"), offset=unused, size=9)
    operator = make("Operator", large_custom_options_offset=unused)
    code = make("OperatorCode", custom_code="Mine", builtin_code=32, deprecated_builtin_code=32)
    graph = make("SubGraph", operators=[operator])
    root = make("Model", version=3, operator_codes=[code], subgraphs=[graph], buffers=[make("Buffer"), row])
    model = of_bytes(written(root))
    assert not is_changed(model) and model.subgraphs[0].operators[0].large_custom is None
    assert bytes(model.buffers[1].blob.view()) == b"abcd" and not model.buffers[1].outside
    assert lowered(of_bytes(written(lower(model)))) == plain(root)


def large_custom(data: bytes) -> bytes:
    from tfl_rewrite.flatbuf.writer import FilePosition

    operator = make(
        "Operator",
        large_custom_options_offset=FilePosition(OwnedBlob(data)),
        large_custom_options_size=len(data),
    )
    code = make("OperatorCode", custom_code="Mine", builtin_code=32, deprecated_builtin_code=32)
    return written(
        make("Model", version=3, operator_codes=[code], subgraphs=[make("SubGraph", operators=[operator])])
    )


def test_large_custom_options_move_with_the_file(tmp_path: Path) -> None:
    model = of_bytes(large_custom(b"code" * 500))
    assert not is_changed(model)
    model.description = "longer than before" * 20
    save(model, tmp_path / "out.tflite")
    ((_, operator),) = load(tmp_path / "out.tflite").operators()
    assert operator.large_custom is not None
    assert bytes(operator.large_custom.view()) == b"code" * 500


def test_dropped_large_custom_options_leave_no_position_behind() -> None:
    model = of_bytes(large_custom(b"code" * 500))
    ((_, operator),) = model.operators()
    operator.large_custom = None
    (row,) = lower(model)["subgraphs"][0]["operators"]
    assert "large_custom_options_offset" not in row and "large_custom_options_size" not in row


def test_buffers_that_shared_bytes_share_them_again(tmp_path: Path) -> None:
    shared = make("Buffer", data=OwnedBlob(b"s" * 4096))
    root = make("Model", version=3, subgraphs=[make("SubGraph")], buffers=[make("Buffer"), shared, shared])
    model = of_bytes(written(root))
    assert len(model.buffers) == 3 and model.buffers[1] is not model.buffers[2]
    model.description = "changed"
    assert save(model, tmp_path / "out.tflite") < 2 * 4096
    # To change one is not to change the other.
    model.buffers[1].blob = OwnedBlob(b"x" * 4096)
    save(model, tmp_path / "out.tflite", force=True)
    contents = [bytes(item.blob.view())[:1] for item in load(tmp_path / "out.tflite").buffers if item.blob]
    assert contents == [b"x", b"s"]


# -- Made in memory ------------------------------------------------------------------------------------------


def test_a_model_made_in_memory_is_written_with_its_values(tmp_path: Path) -> None:
    from tfl_rewrite.model.ir import OperatorCode, Signature, new_record

    empty, data = Buffer(), Buffer(OwnedBlob(b"\1\2\3\4"))
    scales = Tensor("scales", (1,), 1, data)
    blockwise = Quantization(scales_tensor=scales)
    one, two = Tensor("one", (), 0, empty), Tensor("two", (2,), 9, data, blockwise)
    code = OperatorCode(18, version=3)
    graph = SubGraph([one, scales, two], [one], [two], [Operator(code, [one, None], [two])])
    argument = new_record("TensorMap").replace(name="x")
    model = Model(
        [code],
        [graph],
        [empty, data],
        [Metadata("m", data)],
        [data],
        [Signature("k", graph, [(argument, two)], [])],
    )
    assert is_changed(model)
    save(model, tmp_path / "made.tflite")
    again = load(tmp_path / "made.tflite")
    assert not is_changed(again)
    (graph,) = again.subgraphs
    first, middle, last = graph.tensors
    assert (first.name, first.shape, first.buffer) == ("one", (), again.buffers[0])
    assert last.quantization is not None and last.quantization.scales_tensor is middle
    assert last.quantization.zero_points_tensor is None
    assert graph.operators[0].inputs == [first, None] and graph.operators[0].code.name == "MUL"
    assert again.signatures[0].inputs[0][1] is last
    assert again.metadata[0].buffer is again.buffers[1] is again.metadata_buffers[0]


def test_lowering_names_what_is_not_part_of_the_model(fixtures: Path) -> None:
    for what in ("buffer of tensor", "tensor 'stray'", "code of operator"):
        model = load(fixtures / "dense.tflite")
        operator = model.subgraphs[0].operators[0]
        if what.startswith("buffer"):
            model.subgraphs[0].tensors[0].buffer = Buffer()
        elif what.startswith("tensor"):
            operator.inputs[0] = Tensor("stray", (), 0, model.buffers[0])
        else:
            model.operator_codes.clear()
        with pytest.raises(InvariantError, match=what):
            lower(model)


def test_computed_blobs_are_asked_when_written(tmp_path: Path, fixtures: Path) -> None:
    asked = []

    def compute(sink, offset):  # type: ignore[no-untyped-def]
        asked.append(offset)
        sink.write_at(b"\7" * 2000, offset)
        sink.write_at(b"\7" * 3120, offset + 2000)

    model = load(fixtures / "dense.tflite")
    buffer = next(buffer for buffer in model.buffers if buffer.nbytes == 5120)
    buffer.blob = ComputedBlob(5120, compute)
    assert not asked
    save(model, tmp_path / "out.tflite")
    assert len(asked) == 1
    again = next(item.blob for item in load(tmp_path / "out.tflite").buffers if item.nbytes == 5120)
    assert isinstance(again, MappedBlob) and bytes(again.view()) == b"\7" * 5120
    assert bytes(buffer.blob.view()) == b"\7" * 5120


def test_symmetric_quantization_has_as_many_zero_points() -> None:
    made = Quantization.symmetric(ScalarVector.of(FLOAT32, [1.0, 2.0]).raw, 3)
    assert made.scale.tolist() == [1.0, 2.0] and made.zero_point.tolist() == [0, 0] and made.dimension == 3
    assert made.is_quantized and not Quantization().is_quantized
