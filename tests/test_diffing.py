"""What ``diff`` says of two files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tfl_rewrite
from tfl_rewrite.diffing import diff

ROOT = Path(__file__).resolve().parent.parent
RNET = ROOT / "fixtures" / "mtcnn_rnet.tflite"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    made = tmp_path_factory.mktemp("diff") / "int8.tflite"
    model = tfl_rewrite.load(RNET)
    tfl_rewrite.quantize_weights(model)
    tfl_rewrite.save(model, made)
    return made


@pytest.mark.parametrize("path", sorted((ROOT / "fixtures").glob("*.tflite")), ids=lambda path: path.stem)
def test_a_file_equals_itself(path):
    found = diff(path, path)
    assert found.identical
    assert found.differences == ()


def test_the_balance_adds_up_to_the_files(quantized):
    found = diff(RNET, quantized)
    assert sum(row.before for row in found.balance) == found.nbytes_before == RNET.stat().st_size
    assert sum(row.after for row in found.balance) == found.nbytes_after == quantized.stat().st_size


def test_each_quantized_tensor_and_operator_is_named(quantized):
    found = diff(RNET, quantized)
    result = tfl_rewrite.quantize_weights(tfl_rewrite.load(RNET))
    tensors = {row.where: row for row in found.differences if row.kind == "tensor"}
    assert set(tensors) == {change.where for change in result.changes}
    assert all("FLOAT32 became INT8" in row.what for row in tensors.values())
    assert all(row.nbytes_after * 4 == row.nbytes_before for row in tensors.values())
    operators = [row for row in found.differences if row.kind == "operator"]
    assert len(operators) == 6
    assert all("version 1 became" in row.what for row in operators)


def test_one_changed_value_is_seen(tmp_path):
    data = bytearray(RNET.read_bytes())
    model = tfl_rewrite.load(RNET)
    tensor = max((t for t in model.subgraphs[0].tensors if t.is_constant), key=lambda t: t.buffer.nbytes)
    data[tensor.buffer.blob.offset] ^= 1
    other = tmp_path / "other.tflite"
    other.write_bytes(data)
    found = diff(RNET, other)
    assert [(row.kind, row.where, row.what) for row in found.differences] == [
        ("tensor", tensor.name, "other values")
    ]


def test_a_removed_and_an_added_tensor_are_seen(tmp_path):
    model = tfl_rewrite.load(RNET)
    tensor = next(t for t in model.subgraphs[0].tensors if t.is_constant)
    old = tensor.name
    tensor.name = "renamed"
    other = tmp_path / "other.tflite"
    tfl_rewrite.save(model, other)
    seen = {(row.kind, row.where, row.what.split()[0]) for row in diff(RNET, other).differences}
    assert ("tensor", old, "removed") in seen
    assert ("tensor", "renamed", "added") in seen


def test_the_zip_and_metadata_are_compared(tmp_path):
    labelled = ROOT / "fixtures" / "metadata_label_zip.tflite"
    found = diff(labelled, ROOT / "fixtures" / "digits_cnn.tflite")
    kinds = {(row.kind, row.what) for row in found.differences}
    assert ("zip", "removed") in kinds
    assert ("metadata", "removed") in kinds


def test_json_is_valid(quantized):
    data = json.loads(json.dumps(diff(RNET, quantized).to_dict(), allow_nan=False))
    assert data["schema"] == 1
    assert data["identical"] is False
