"""Sparse constants mean what the runtime makes of them, and damaged ones are left alone."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.nets import Net, codes, data_of, decibels, run
from tfl_rewrite import load, save
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.flatbuf.record import INT32, ScalarVector
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Model, Tensor, new_record, schema
from tfl_rewrite.passes.prune import Prune
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.weights.sparse import DenseBlob, compressed_axis, dense, make_dense, sparse_form

WANTED = np.array([[1, 0, 2, 3], [0, 4, 0, 0], [0, 0, 5, 0], [0, 0, 0, 6]], np.float32)
ROWS = {
    "order": [0, 1],
    "levels": [4, ([0, 3, 4, 5, 6], [0, 2, 3, 1, 2, 3])],
    "values": [1, 2, 3, 4, 5, 6],
}
BLOCKS = {
    "order": [0, 1, 2, 3],
    "blocks": [0, 1],
    "levels": [2, ([0, 2, 3], [0, 1, 1]), 2, 2],
    "values": [1, 0, 0, 4, 2, 3, 0, 0, 5, 0, 0, 6],
}
TURNED = {
    "order": [1, 0],
    "levels": [4, ([0, 1, 2, 4, 6], [0, 1, 0, 2, 0, 3])],
    "values": [1, 4, 2, 5, 3, 6],
}


def ints(values: list[int]) -> ScalarVector:
    return ScalarVector(INT32, np.array(values, "<i4").tobytes())


def sparsity(order: list[int], levels: list[Any], blocks: list[int] | None = None) -> Any:
    """As the file has it: an int is a dense level, a pair a compressed one."""
    made = []
    for level in levels:
        record = new_record("DimensionMetadata")
        if isinstance(level, int):
            made.append(record.replace(format=0, dense_size=level))
            continue
        segments, indices = (new_record("Int32Vector").replace(values=ints(part)) for part in level)
        number = schema().enums["SparseIndexVector"].values["Int32Vector"]
        made.append(
            record.replace(
                format=1,
                array_segments_type=number,
                array_segments=segments,
                array_indices_type=number,
                array_indices=indices,
            )
        )
    record = new_record("SparsityParameters").replace(traversal_order=ints(order), dim_metadata=made)
    return record.replace(block_map=ints(blocks)) if blocks else record


def net_of(order: list[int], levels: list[Any], values: list[float], blocks: list[int] | None = None) -> Net:
    net = Net()
    source = net.input("in", (4, 4))
    stored = net.tensor("stored", (4, 4), np.float32, net.buffer(np.array(values, np.float32).tobytes()))
    stored.rest = stored.rest.replace(sparsity=sparsity(order, levels, blocks))
    made = net.add("DENSIFY", [stored], "made", (4, 4))
    net.output(net.add("ADD", [source, made], "out", (4, 4)))
    return net


def stored(net: Net) -> Tensor:
    return next(item for item in net.graph.tensors if item.name == "stored")


@pytest.mark.runtime
@pytest.mark.parametrize("form", [ROWS, BLOCKS, TURNED], ids=["rows", "blocks", "columns"])
def test_the_runtime_reads_the_same(form: dict[str, Any], tmp_path: Path) -> None:
    net = net_of(**form)
    found = dense(stored(net))
    assert found is not None
    np.testing.assert_array_equal(found, WANTED)
    save(net.model, tmp_path / "sparse.tflite")
    np.testing.assert_array_equal(
        run(tmp_path / "sparse.tflite", {"in": np.zeros((4, 4), np.float32)})["out"], WANTED
    )


def test_operators_that_expand_go() -> None:
    net = net_of(**ROWS)
    assert make_dense(net.model) == 1
    assert [name for name, _ in codes(net.model)] == ["ADD"] and broken(net.model) == []
    read = net.graph.operators[0].inputs[1]
    assert read is not None and not read.is_sparse
    np.testing.assert_array_equal(data_of(read), WANTED)
    assert "made" not in [item.name for item in net.graph.tensors]
    assert make_dense(net.model) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"levels": [4, ([0, 3, 4, 5], [0, 2, 3, 1, 2, 3])]},
        {"levels": [4, ([0, 3, 4, 5, 7], [0, 2, 3, 1, 2, 3])]},
        {"levels": [4, ([1, 3, 4, 5, 6], [0, 2, 3, 1, 2, 3])]},
        {"levels": [4, ([0, 5, 4, 5, 6], [0, 2, 3, 1, 2, 3])]},
        {"levels": [4, ([0, 3, 4, 5, 6], [0, 2, 4, 1, 2, 3])]},
        {"levels": [4, ([0, 3, 4, 5, 6], [0, 2, -1, 1, 2, 3])]},
        {"levels": [1 << 30, ([0, 3, 4, 5, 6], [0, 2, 3, 1, 2, 3])]},
        {"levels": [-4, ([0, 3, 4, 5, 6], [0, 2, 3, 1, 2, 3])]},
        {"levels": [4]},
        {"order": [0, 0]},
        {"order": [0, 7]},
        {"values": [1, 2, 3]},
        {"blocks": [9, 1], "order": [0, 1, 2, 3], "levels": [4, 4, 1, 1]},
        {**BLOCKS, "levels": [2, ([0, 2, 3], [0, 1, 1]), ([0, 2, 4, 6], [0, 1, 0, 1, 0, 1]), 2]},
    ],
)
def test_what_is_not_sound_stays(change: dict[str, Any]) -> None:
    net = net_of(**{**ROWS, **change})
    assert dense(stored(net)) is None
    assert make_dense(net.model) == 0
    assert stored(net).is_sparse


def test_half_a_value_is_none() -> None:
    net = net_of(**ROWS)
    stored(net).buffer = net.buffer(bytes(stored(net).buffer.blob.view())[:-1])
    assert dense(stored(net)) is None


def test_what_says_that_it_is_large_takes_no_memory() -> None:
    net = net_of(order=[0, 1], levels=[1 << 14, 1 << 14], values=[1.0])
    stored(net).shape = (1 << 14, 1 << 14)
    tracemalloc.start()
    try:
        assert dense(stored(net)) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_a_constant_that_others_see_stays() -> None:
    net = net_of(**ROWS)
    made = next(item for item in net.graph.tensors if item.name == "made")
    net.output(made)
    assert make_dense(net.model) == 0


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("shape", [(8,), (5, 8), (3, 2, 2, 12), (300, 300)])
def test_what_is_made_sparse_is_made_dense_again(shape: tuple[int, ...], block: int) -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal(shape).astype(np.float32) * (random.random(shape) < 0.3)
    values.reshape(-1, shape[-1])[0] = 0
    made = sparse_form(values, block)
    tensor = Net().constant("w", values)
    assert tensor.buffer.blob is not None
    tensor.buffer.blob = OwnedBlob(made.data(values))
    tensor.rest = tensor.rest.replace(sparsity=made.details)
    assert np.array_equal(dense(tensor), values)
    stored = np.count_nonzero(values.reshape(-1, block).any(axis=1)) * block
    assert made.data_nbytes == len(made.data(values)) == 4 * stored and made.nbytes > made.data_nbytes
    blob = DenseBlob(tensor)
    tensor.rest = tensor.rest.replace(sparsity=None)
    blob.release()
    assert blob.nbytes == values.nbytes
    assert np.array_equal(np.frombuffer(blob.view(), np.float32), values.reshape(-1))


def test_the_axis_that_takes_the_fewest_bytes_is_compressed() -> None:
    values = np.zeros((96, 384), np.float32)
    values[:, ::4] = 1
    axis, nbytes = compressed_axis(values != 0)
    made = sparse_form(values)
    # A byte for the place of each among 96, where 384 would take two; 385 beginnings in two bytes each.
    assert (axis, nbytes) == (0, 96 * 96 + 2 * 385) == (0, made.nbytes - made.data_nbytes)
    assert compressed_axis(values.T != 0)[0] == 1
    assert compressed_axis(np.ones((5, 5), np.bool_)) == (1, 25 + 6)


def pruned(tmp_path: Path, *, half: bool, sparse: bool, share: float = 0.7) -> Path:
    """A convolution, one of whose constants is float16 behind DEQUANTIZE at least, then a layer."""
    net = Net()
    source, random = net.input("x", (1, 5, 5, 64)), np.random.default_rng(0)
    values = random.standard_normal((96, 1, 1, 64)).astype(np.float32)
    weight = net.half("w", values) if half else net.constant("w", values)
    bias = net.half("b", random.standard_normal(96).astype(np.float32))
    steps = {"stride_w": 1, "stride_h": 1, "dilation_w_factor": 1, "dilation_h_factor": 1}
    made = net.add("CONV_2D", [source, weight, bias], "c", (1, 5, 5, 96), **steps)
    net.output(net.dense(made, net.weights("v", (48, 96)), "y"))
    run_passes(net.model, [Prune(sparsity=share, encode="sparse" if sparse else "dense", include=("^w",))])
    path = tmp_path / f"{half}{sparse}.tflite"
    save(net.model, path, force=True)
    return path


def rewritten(path: Path, **options: Any) -> Model:
    model = load(path)
    run_passes(model, [QuantizeWeights(effort="fast", min_elements=512, **options)])
    assert broken(model) == []
    return model


@pytest.mark.runtime
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_integers_are_stored_without_their_zeros(half: bool, sparse: bool, tmp_path: Path) -> None:
    """And mean what they mean with them; XNNPACK gave such a layer garbage for a bias that is float16."""
    path, plain = (pruned(tmp_path, half=half, sparse=each) for each in (sparse, False))
    random = np.random.default_rng(1)
    feeds = {"x": random.standard_normal((1, 5, 5, 64)).astype(np.float32)}
    outputs = []
    for may in (True, False):
        model = rewritten(path if may else plain, scheme="dequantize", may_be_sparse=may, include=("^w",))
        assert (("DENSIFY", 1) in codes(model)) is may
        save(model, tmp_path / "made.tflite", force=True)
        outputs += [
            run(tmp_path / "made.tflite", feeds, reference=each)["y"] for each in (False, False, True)
        ]
    for found in outputs[1:]:
        assert decibels(outputs[0], found) > 100
    model = rewritten(path, scheme="dequantize", include=("^w",))
    stored = next(item for _, item in model.tensors() if item.is_sparse)
    assert stored.dtype_name == "INT8" and stored.buffer.nbytes == round(0.3 * 96 * 64)


def test_what_is_left_to_choose_is_dense(tmp_path: Path) -> None:
    path = pruned(tmp_path, half=False, sparse=True)
    for options in ({}, {"scheme": "hybrid"}, {"scheme": "dequantize", "dtype": "int4"}):
        names = [name for name, _ in codes(rewritten(path, include=("^w",), **options))]
        assert "DENSIFY" not in names and ("DEQUANTIZE" in names) is (options.get("scheme") == "dequantize")
    old = rewritten(path, scheme="dequantize", min_runtime="2.14")
    assert ("DENSIFY", 1) not in codes(old)


def test_what_is_asked_to_stay_is_as_sparse_as_it_was(tmp_path: Path) -> None:
    path = pruned(tmp_path, half=True, sparse=True)
    model = rewritten(path, scheme="dequantize", exclude=("^w",))
    before, after = (
        next(item for _, item in each.tensors() if item.is_sparse) for each in (load(path), model)
    )
    assert before.dtype_name == after.dtype_name == "FLOAT16"
    assert bytes(before.buffer.blob.view()) == bytes(after.buffer.blob.view())
    # A second run finds nothing.
    save(rewritten(path, scheme="dequantize"), path, force=True)
    (result,) = run_passes(load(path), [QuantizeWeights(effort="fast", scheme="dequantize")])
    assert not result.modified


def test_few_zeros_and_other_readers_take_integers_with_all(tmp_path: Path) -> None:
    path = pruned(tmp_path, half=False, sparse=False, share=0.3)
    assert ("DENSIFY", 1) not in codes(rewritten(path, scheme="dequantize"))
    net = Net()
    source = net.input("x", (1, 64))
    values = net.random.standard_normal((64, 64)).astype(np.float32) * (net.random.random((64, 64)) < 0.2)
    net.output(net.add("MUL", [source, net.constant("table", values)], "y", (64, 64)))
    (result,) = run_passes(net.model, [QuantizeWeights(scheme="dequantize", min_elements=64)])
    assert result.modified and ("DENSIFY", 1) not in codes(net.model)
