"""What ``diff`` says of two files."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

import tfl_rewrite
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.flatbuf.record import FLOAT32, UINT8, ScalarVector
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Metadata, Quantization, SubGraph, new_record
from tfl_rewrite.passes.compact import Compact
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.reading.diff import diff

from ..helpers import ROOT

RNET = ROOT / "fixtures" / "mtcnn_rnet.tflite"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    made = tmp_path_factory.mktemp("diff") / "int8.tflite"
    model = tfl_rewrite.load(RNET)
    run_passes(model, [QuantizeWeights()])[0]
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
    result = run_passes(tfl_rewrite.load(RNET), [QuantizeWeights()])[0]
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
        ("tensor", tensor.name, f"1 of {tensor.elements:,} values differ, by up to {_step(tensor):.4g}")
    ]


def _step(tensor):
    value = np.frombuffer(tensor.buffer.blob.view()[:4], "<f4")
    other = np.frombuffer(bytes([tensor.buffer.blob.view()[0] ^ 1, *tensor.buffer.blob.view()[1:4]]), "<f4")
    return abs(float(value[0]) - float(other[0]))


def test_values_that_are_not_finite_differ_by_their_bits(tmp_path):
    def change(model):
        tensor = next(t for t in model.subgraphs[0].tensors if t.is_constant)
        values = np.frombuffer(tensor.buffer.blob.view(), "<f4").copy()
        values[0], values[1], values[2] = np.nan, np.inf, values[2] + 1
        tensor.buffer.blob = OwnedBlob(values.tobytes())

    (found,) = _changed(tmp_path, ROOT / "fixtures" / "dense.tflite", change)
    assert found[2].startswith("3 of ") and found[2].endswith("by up to 1")


def test_arguments_of_signatures_are_compared(tmp_path):
    def change(model):
        row, tensor = model.signatures[0].outputs[0]
        model.signatures[0].outputs[0] = (row.replace(name="renamed"), tensor)

    (found,) = _changed(tmp_path, ROOT / "fixtures" / "dense.tflite", change)
    assert found[:2] == ("signature", "serving_default")
    assert found[2].startswith("outputs (y = ") and "became (renamed = " in found[2]


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


FIXTURES = sorted((ROOT / "fixtures").glob("*.tflite"))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_what_compact_and_strip_do_is_told_as_what_it_is(path, tmp_path):
    model = tfl_rewrite.load(path)
    packing = run_passes(model, [Compact(strip=["names", "min-max"])])[-1].packing
    tfl_rewrite.save(model, tmp_path / "small.tflite", packing=packing)
    found = diff(path, tmp_path / "small.tflite")
    said = {(row.kind, row.what.split(" ", 1)[-1]) for row in found.differences}
    assert said <= {
        ("subgraph", "lost their names"),
        ("subgraph", "lost its name"),
        ("tensor", "min and max"),
    }
    sides = [(sum(row.before for row in found.balance), sum(row.after for row in found.balance))]
    assert sides == [(found.nbytes_before, found.nbytes_after)]
    assert all(row.before >= 0 and row.after >= 0 for row in found.balance)
    # What is left over is what alignment takes, not what was not looked at.
    padding = next(row for row in found.balance if row.name == "padding")
    assert padding.before < 200


def test_bytes_that_buffers_share_count_once(tmp_path):
    model = tfl_rewrite.load(RNET)
    tensors = sorted((t for t in model.subgraphs[0].tensors if t.is_constant), key=lambda t: -t.buffer.nbytes)
    for tensor in tensors[1:3]:
        tensor.buffer.blob = tensors[0].buffer.blob
        tensor.shape = tensors[0].shape
    tfl_rewrite.save(model, tmp_path / "shared.tflite")
    rows = {row.name: row for row in diff(RNET, tmp_path / "shared.tflite").balance}
    assert rows["FLOAT32 constants"].after < rows["FLOAT32 constants"].before
    assert 0 <= rows["padding"].after < 1000


def _changed(tmp_path, source, change):
    model = tfl_rewrite.load(source)
    change(model)
    tfl_rewrite.save(model, tmp_path / "changed.tflite", force=True)
    found = diff(source, tmp_path / "changed.tflite")
    return [(row.kind, row.where, row.what) for row in found.differences]


def test_custom_options_of_an_operator_are_compared(tmp_path):
    def change(model):
        operator = model.subgraphs[0].operators[0]
        operator.rest = operator.rest.replace(custom_options=ScalarVector.of(UINT8, [1, 2]))

    (found,) = _changed(tmp_path, ROOT / "fixtures" / "dense.tflite", change)
    assert found[0] == "operator" and found[2] == "other custom options"


def test_ranges_and_blocks_of_quantization_are_compared(tmp_path):
    def note_range(model):
        tensor = model.subgraphs[0].tensors[1]
        rest = new_record("QuantizationParameters").replace(min=ScalarVector.of(FLOAT32, [0.0]))
        tensor.quantization = Quantization(rest=rest)

    (found,) = _changed(tmp_path, ROOT / "fixtures" / "dense.tflite", note_range)
    assert found[2] == "other min and max"

    def widen_blocks(model):
        tensor = next(
            t for t in model.subgraphs[0].tensors if t.quantization and t.quantization.scales_tensor
        )
        rest = tensor.quantization.rest
        blocks = rest.get("details")
        details = rest.replace(details=blocks.replace(block_size=2 * blocks.get("block_size")))
        tensor.quantization = replace(tensor.quantization, rest=details)

    (found,) = _changed(tmp_path, ROOT / "fixtures" / "blockwise_int4.tflite", widen_blocks)
    assert found[2] == "other quantization"


def test_another_order_of_operators_is_told(tmp_path):
    def swap(model):
        model.subgraphs[0].operators.reverse()

    source = ROOT / "fixtures" / "shared_constant_two_ops.tflite"
    assert len(tfl_rewrite.load(source).subgraphs[0].operators) == 2
    model = tfl_rewrite.load(source)
    first, second = model.subgraphs[0].operators
    assert not set(map(id, first.outputs)) & set(map(id, second.inputs)), "they must not depend on each other"
    assert _changed(tmp_path, source, swap) == [("subgraph", "operators", "run in another order")]


def test_a_subgraph_that_goes_does_not_shift_those_behind_it(tmp_path):
    source = ROOT / "fixtures" / "if_branches.tflite"
    spare = tfl_rewrite.load(source)
    spare.subgraphs.insert(1, SubGraph([], [], [], [], "spare"))
    tfl_rewrite.save(spare, tmp_path / "spare.tflite")
    found = diff(tmp_path / "spare.tflite", source)
    assert [(row.kind, row.where, row.what) for row in found.differences] == [
        ("subgraph", "subgraphs[1]", "removed")
    ]


def test_other_labels_of_the_same_length_are_seen(tmp_path):
    source = ROOT / "fixtures" / "metadata_label_zip.tflite"
    data = source.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        (name,) = opened.namelist()
        text = opened.read(name)
    tail = tfl_rewrite.load(source).origin.tail.offset
    made = io.BytesIO(data[:tail])
    with zipfile.ZipFile(made, "a") as opened:
        opened.writestr(name, text[::-1])
    other = tmp_path / "other.tflite"
    other.write_bytes(made.getvalue())
    found = diff(source, other)
    assert [(row.kind, row.what) for row in found.differences] == [("zip", "changed")]


def test_of_two_metadata_entries_of_one_name_both_are_compared(tmp_path):
    def twice(model):
        entry = model.metadata[0]
        model.metadata.append(Metadata(entry.name, model.metadata[-1].buffer))

    rows = _changed(tmp_path, RNET, twice)
    assert [(kind, what) for kind, _, what in rows] == [("metadata", "added")]


def test_json_is_valid(quantized):
    data = json.loads(json.dumps(diff(RNET, quantized).to_dict(), allow_nan=False))
    assert data["schema"] == 1
    assert data["identical"] is False
