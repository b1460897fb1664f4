"""Sparse constants mean what the runtime makes of them, and damaged ones are left alone."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.nets import Net, codes, data_of, run
from tfl_rewrite import save
from tfl_rewrite.flatbuf.record import INT32, ScalarVector
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Tensor, new_record, schema
from tfl_rewrite.weights.sparse import dense, make_dense, sparse_form

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
    tensor.buffer.blob = OwnedBlob(made.data)
    tensor.rest = tensor.rest.replace(sparsity=made.details)
    assert np.array_equal(dense(tensor), values)
    stored = np.count_nonzero(values.reshape(-1, block).any(axis=1)) * block
    assert len(made.data) == 4 * stored and made.nbytes > len(made.data)
