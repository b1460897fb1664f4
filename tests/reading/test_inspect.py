"""What inspect reports: the numbers add up, and hostile names stay data."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tfl_rewrite import inspect, load, save
from tfl_rewrite.errors import FormatError, UnsupportedError
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import (
    Buffer,
    Metadata,
    Model,
    Operator,
    OperatorCode,
    Quantization,
    Signature,
    SubGraph,
    Tensor,
    new_record,
    operator_number,
)

HOSTILE = "\0\x1b[31m\udc80\u202e\"'<\n" + "n" * 5000


def model_with(contents: list[bytes], *, readers: int | None = None) -> Model:
    """One tensor a buffer; an operator reads the first ``readers`` of them (all by default)."""
    buffers = [Buffer(), *(Buffer(OwnedBlob(data)) for data in contents)]
    tensors = [Tensor(f"w{n}", (buffer.nbytes,), 9, buffer) for n, buffer in enumerate(buffers[1:])]
    code = OperatorCode(operator_number("CONCATENATION"))
    target = Tensor("out", (1,), 9, buffers[0])
    used = tensors[: len(tensors) if readers is None else readers]
    graph = SubGraph([*tensors, target], [], [target], [Operator(code, list(used), [target])])
    return Model([code], [graph], buffers)


def inspected(model: Model, folder: Path) -> Any:
    save(model, folder / "model.tflite", force=True)
    return inspect(folder / "model.tflite")


def assert_adds_up(path: Path) -> None:
    report = inspect(path)
    assert report.nbytes == path.stat().st_size
    assert report.constants + report.structure + report.zip_nbytes + report.dead == report.nbytes
    assert report.structure > 0
    assert sum(share.nbytes for share in report.by_dtype) == sum(s.nbytes for s in report.weights_by_operator)
    assert sum(share.nbytes for share in report.by_dtype) <= report.constants
    assert report.duplicates + report.unused <= 2 * report.constants
    assert report.outside <= report.constants
    data = json.loads(json.dumps(report.to_dict()))
    assert data["schema"] == 1 and data["nbytes"] == report.nbytes


# -- Real files ----------------------------------------------------------------------------------------------


def test_numbers_of_fixture_add_up(sound: Path) -> None:
    assert_adds_up(sound)


def test_numbers_of_public_model_add_up(public: Path) -> None:
    try:
        load(public)
    except (FormatError, UnsupportedError) as error:
        pytest.skip(f"not readable: {error.what}")
    assert_adds_up(public)


def test_operators_and_tensors_are_counted(fixtures: Path) -> None:
    report = inspect(fixtures / "mtcnn_rnet.tflite", largest=2)
    counts = {share.name: share.count for share in report.operators}
    model = load(fixtures / "mtcnn_rnet.tflite")
    assert sum(counts.values()) == len(model.subgraphs[0].operators)
    assert {"CONV_2D", "PRELU", "MAX_POOL_2D", "FULLY_CONNECTED"} <= counts.keys()
    assert report.tensors == len(model.subgraphs[0].tensors) and report.subgraphs == 1
    assert len(report.largest) == 2 and report.largest[0].nbytes >= report.largest[1].nbytes
    assert report.largest[0].readers == ("FULLY_CONNECTED",)


@pytest.mark.parametrize(
    ("name", "age"), [("mtcnn_rnet", "current"), ("mtcnn_rnet_old_schema", "before TensorFlow 2.4")]
)
def test_age_of_the_operator_field(fixtures: Path, name: str, age: str) -> None:
    assert inspect(fixtures / f"{name}.tflite").opcode_age == age


def test_signatures_inputs_and_outputs(fixtures: Path) -> None:
    report = inspect(fixtures / "two_signatures_shared_weights.tflite")
    assert [(row.key, row.subgraph, row.inputs) for row in report.signatures] == [
        ("encode", 0, ("x",)),
        ("score", 1, ("x",)),
    ]
    report = inspect(fixtures / "dynamic_shapes.tflite")
    assert report.inputs[0].shape == (-1, -1, 40)


def test_zip_outside_and_external(fixtures: Path) -> None:
    report = inspect(fixtures / "metadata_label_zip.tflite")
    assert report.zip_members == ("labels.txt",) and report.zip_nbytes > 100
    assert "TFLITE_METADATA" in {share.name for share in report.metadata}
    assert inspect(fixtures / "offset_buffers.tflite").outside > 90_000
    report = inspect(fixtures / "external_buffers" / "model.tflite")
    assert report.external == ("weights_0.bin", "weights_1.bin") and report.outside == 0


def test_dead_bytes_and_the_reason_to_refuse(fixtures: Path) -> None:
    report = inspect(fixtures / "malformed" / "dispatch_op_custom.tflite")
    assert report.dead == 1020 and len(report.refusals) == 2
    assert_adds_up(fixtures / "malformed" / "dispatch_op_custom.tflite")
    assert inspect(fixtures / "dense.tflite").refusals == ()


# -- Constructed ones ----------------------------------------------------------------------------------------


def test_duplicates_are_equal_bytes_in_two_places(fixtures: Path, tmp_path: Path) -> None:
    """The writer stores equal buffers once, so only a file of somebody else can hold them twice."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as generated

    theirs = generated.ModelT()
    theirs.version, theirs.buffers, theirs.operatorCodes = 3, [], []
    graph = generated.SubGraphT()
    graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [], []
    theirs.subgraphs = [graph]
    for data in (None, b"a" * 100, b"a" * 100, b"b" * 100, b"a" * 100, b"c" * 63, b"c" * 63):
        buffer = generated.BufferT()
        buffer.data = list(data) if data else None
        theirs.buffers.append(buffer)
    builder = flatbuffers.Builder()
    builder.Finish(theirs.Pack(builder), b"TFL3")
    path = tmp_path / "theirs.tflite"
    path.write_bytes(builder.Output())
    report = inspect(path)
    assert report.duplicates == 200, "the first one is none, and small ones are not counted"
    assert report.unused == report.constants == 4 * 100 + 2 * 63
    model = load(path)
    for buffer in model.buffers[1:]:
        buffer.blob = OwnedBlob(bytes(buffer.blob.view()))  # type: ignore[union-attr]
    # With another field changed too, the file is laid out anew, not patched where it lies.
    model.description = "anew"
    report = inspected(model, tmp_path)
    assert report.duplicates == 0
    assert_adds_up(tmp_path / "model.tflite")


def test_bytes_that_two_buffers_share_are_counted_once(tmp_path: Path) -> None:
    report = inspected(model_with([b"a" * 5000, b"a" * 5000, b"b" * 100]), tmp_path)
    assert report.nbytes < 7000
    assert report.constants == 5100
    assert sum(share.nbytes for share in report.by_dtype) == 5100
    assert_adds_up(tmp_path / "model.tflite")


def test_unused_is_what_nobody_refers_to(tmp_path: Path) -> None:
    model = model_with([b"a" * 500, b"b" * 300, b"c" * 70], readers=1)
    assert inspected(model, tmp_path).unused == 370
    model.metadata.append(Metadata("m", model.buffers[2]))
    assert inspected(model, tmp_path).unused == 70
    model.subgraphs[0].tensors[0].quantization = Quantization(scales_tensor=model.subgraphs[0].tensors[2])
    assert inspected(model, tmp_path).unused == 0
    model.metadata.clear()
    model.subgraphs[0].outputs.append(model.subgraphs[0].tensors[1])
    assert inspected(model, tmp_path).unused == 0


def test_variables_are_used_whoever_reads_them(tmp_path: Path) -> None:
    model = model_with([b"a" * 500], readers=0)
    assert inspected(model, tmp_path).unused == 500
    model.subgraphs[0].tensors[0].is_variable = True
    assert inspected(model, tmp_path).unused == 0


def test_a_share_of_a_used_range_is_not_unused(tmp_path: Path) -> None:
    model = model_with([b"a" * 500, b"a" * 500], readers=1)
    assert inspected(model, tmp_path).unused == 0


def test_weights_are_counted_for_their_first_reader(tmp_path: Path) -> None:
    report = inspected(model_with([b"a" * 500, b"b" * 300], readers=1), tmp_path)
    assert {share.name: share.nbytes for share in report.weights_by_operator} == {
        "CONCATENATION": 500,
        "(unread)": 300,
    }


def test_hostile_names_are_json(tmp_path: Path) -> None:
    model = model_with([b"a" * 100])
    model.description = HOSTILE
    graph = model.subgraphs[0]
    graph.name = graph.tensors[0].name = graph.tensors[-1].name = HOSTILE
    code = OperatorCode(32, HOSTILE)
    model.operator_codes.append(code)
    graph.operators.append(Operator(code, [graph.tensors[-1]], []))
    model.metadata += [Metadata(HOSTILE, model.buffers[1]), Metadata(None, model.buffers[1])]
    row = (new_record("TensorMap").replace(name=HOSTILE), graph.tensors[0])
    model.signatures = [Signature(HOSTILE, graph, [row], [(new_record("TensorMap"), graph.tensors[0])])]
    report = inspected(model, tmp_path)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["description"] == data["signatures"][0]["key"] == data["operators"][1]["name"] == HOSTILE
    assert data["metadata"][1]["name"] == "(unnamed)"


def test_hostile_zip_members_are_named_or_said_to_be_unreadable(fixtures: Path, tmp_path: Path) -> None:
    file = io.BytesIO((fixtures / "dense.tflite").read_bytes())
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("../../\x1b[31mü", b"x")
    data = bytearray(file.getvalue())
    path = tmp_path / "model.tflite"
    path.write_bytes(data)
    assert inspect(path).zip_members == ("../../\x1b[31mü",)
    # A version that no reader knows.
    at = bytes(data).rindex(b"PK\1\2")
    data[at + 6 : at + 8] = b"\xff\x00"
    path.write_bytes(data)
    assert inspect(path).zip_members == ("(unreadable)",)


def test_min_runtime_as_the_file_says(fixtures: Path) -> None:
    report = inspect(fixtures / "digits_cnn.tflite")
    assert report.says_min_runtime and report.min_runtime
