"""Constants by name: read as arrays, and set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite import Judging, Model, UnsupportedError, UsageError, load, run, save
from tfl_rewrite import rewrite as rewritten
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Tensor
from tfl_rewrite.model.values import bytes_of, packed_nbytes
from tfl_rewrite.passes import QuantizeWeights


def constants(model: Model) -> list[Tensor]:
    return [tensor for subgraph in model.subgraphs for tensor in subgraph.tensors if tensor.is_constant]


def test_every_constant_reads_and_sets_to_the_same_bytes(sound: Path) -> None:
    model = load(sound)
    for tensor in constants(model):
        try:
            values = tensor.values
        except UnsupportedError:
            assert tensor.is_sparse or tensor.external or tensor.dtype_name in ("STRING", "BFLOAT16")
            continue
        assert values.shape == (tensor.shape or ()) and not values.flags.writeable
        assert tensor.buffer.blob is not None
        before = bytes(tensor.buffer.blob.view())
        tensor.set_values(values)
        assert bytes(tensor.buffer.blob.view()) == before
    # Nothing but the places of the same bytes differs.
    again = load(model.to_bytes())
    for one, other in zip(constants(load(sound)), constants(again), strict=True):
        if one.external is None:
            assert one.buffer.blob is not None and other.buffer.blob is not None
            assert bytes(one.buffer.blob.view()) == bytes(other.buffer.blob.view())


def test_who_shares_a_buffer_keeps_it(fixtures: Path, tmp_path: Path) -> None:
    model = load(fixtures / "two_signatures_shared_weights.tflite")
    held = [tensors for tensors in model.holders().values() if len(tensors) > 1 and tensors[0].is_constant]
    one, other = held[0][:2]
    before = other.values.copy()
    one.set_values(np.zeros_like(before))
    save(model, tmp_path / "out.tflite")
    again = load(tmp_path / "out.tflite")
    places = [
        (number, graph.tensors.index(tensor))
        for tensor in (one, other)
        for number, graph in enumerate(model.subgraphs)
        if any(item is tensor for item in graph.tensors)
    ]
    found = [again.subgraphs[number].tensors[place].values for number, place in places]
    assert not found[0].any()
    np.testing.assert_array_equal(found[1], before)


def test_a_pass_meets_what_was_set(fixtures: Path) -> None:
    model = load(fixtures / "dense.tflite")
    (weights,) = (tensor for tensor in constants(model) if len(tensor.shape or ()) == 2)
    weights.set_values(np.full(weights.shape or (), 0.5, np.float32))
    assert run(model, [QuantizeWeights(min_elements=1)])[0].modified
    assert set(np.unique(weights.values)) == {127}
    made = rewritten(model, judging=Judging(mode="off")).model
    assert made is not None and made.to_bytes() == model.to_bytes()


@pytest.mark.parametrize(
    ("name", "dtype", "most"), [("already_int4", "INT4", 7), ("already_int8", "INT8", 127)]
)
def test_of_a_quantized_tensor_the_stored_integers(fixtures: Path, name: str, dtype: str, most: int) -> None:
    model = load(fixtures / f"{name}.tflite")
    tensor = next(item for item in constants(model) if item.dtype_name == dtype)
    scales = tensor.quantization
    assert tensor.values.dtype == np.int8 and -most - 1 <= tensor.values.min() < tensor.values.max() <= most
    tensor.set_values(np.full(tensor.shape or (), most, np.int8))
    assert (tensor.values == most).all() and tensor.quantization is scales
    if dtype == "INT4":
        with pytest.raises(UsageError, match="INT4 holds -8 to 7"):
            tensor.set_values(np.full(tensor.shape or (), 8, np.int8))


def test_nibbles_hold_sixteen_values_with_or_without_a_sign() -> None:
    for name, kind, least, beyond in (("INT4", np.int8, -8, [-9, 8]), ("UINT4", np.uint8, 0, [16])):
        row = next(row for row in dtypes.BY_VALUE.values() if row.name == name)
        assert len(bytes_of(np.arange(least, least + 16, dtype=kind), row.value, (16,))) == 8
        for wrong in beyond:
            with pytest.raises(UsageError, match=f"{name} holds {least} to {least + 15}"):
                bytes_of(np.array([wrong], kind), row.value, (1,))


def test_packed_elements_fill_whole_bytes() -> None:
    assert [packed_nbytes(count, 2) for count in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert [packed_nbytes(count, 4) for count in (1, 2, 3)] == [1, 1, 2] and packed_nbytes(3, 8) == 3


def test_a_tensor_says_what_it_is() -> None:
    net = Net()
    assert repr(net.input("x", (1, 2))) == "<Tensor 'x' FLOAT32 [1, 2]>"
    assert repr(net.weights("w", (600, 2))) == "<Tensor 'w' FLOAT32 [600, 2] constant, 4,800 bytes>"
    bare = net.tensor("y", ())
    bare.shape = None
    assert repr(bare) == "<Tensor 'y' FLOAT32>"


def test_what_does_not_fit_is_refused_and_changes_nothing(fixtures: Path) -> None:
    model = load(fixtures / "digits_cnn.tflite")
    graph = model.subgraphs[0]
    shape = graph.tensor("arith.constant")
    for values, said in (
        (np.array([1.5, 2]), "float64, the tensor stores INT32"),
        ([1, 2, 3], r"of shape \[3\], the tensor of \[2\]"),
        ([1 << 40, 1], "int32"),
        ([1.5, 1], "no array of int32: 1.5 does not fit"),
        ([float("nan"), 1], "no array of int32"),
        (["a", "b"], "no array of int32"),
    ):
        with pytest.raises(UsageError, match=said):
            shape.set_values(values)
    assert shape.values.tolist() == [1, 1024]
    assert model.to_bytes() == (fixtures / "digits_cnn.tflite").read_bytes()
    shape.set_values([-1, 1024])
    assert shape.values.tolist() == [-1, 1024]
    for tensor in (graph.inputs[0], graph.outputs[0]):
        with pytest.raises(UsageError, match="computed, not stored"):
            _ = tensor.values
        with pytest.raises(UsageError, match="computed, not stored"):
            tensor.set_values(0)


def test_a_float_that_is_too_large_is_no_infinity(fixtures: Path) -> None:
    model = load(fixtures / "digits_cnn.tflite")
    tensor = next(item for item in constants(model) if item.dtype_name == "FLOAT32" and item.shape)
    one = [0.1] * int(np.prod(tensor.shape))
    tensor.set_values(np.reshape([float("inf"), *one[1:]], tensor.shape).tolist())
    assert tensor.values.reshape(-1)[:2].tolist() == [float("inf"), np.float32(0.1)]
    with pytest.raises(UsageError, match=r"no array of float32: 1e\+300 does not fit"):
        tensor.set_values(np.reshape([1e300, *one[1:]], tensor.shape).tolist())


def test_names_that_are_none_or_several(fixtures: Path) -> None:
    graph = load(fixtures / "digits_cnn.tflite").subgraphs[0]
    with pytest.raises(
        UsageError, match=r"no tensor is named 'arith.constand'; did you mean 'arith.constant'\?"
    ):
        graph.tensor("arith.constand")
    graph.tensors[0].name = graph.tensors[1].name = "twin"
    with pytest.raises(UsageError, match=r"2 tensors are named 'twin'; take tensors\[I\]: 0, 1"):
        graph.tensor("twin")


def test_sparse_values_are_refused(fixtures: Path) -> None:
    model = load(fixtures / "sparse.tflite")
    tensor = next(item for item in constants(model) if item.is_sparse)
    with pytest.raises(UnsupportedError, match="sparse"):
        _ = tensor.values
