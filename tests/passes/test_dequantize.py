"""Weights back to float32: exact behind DEQUANTIZE, near in hybrid kernels, and the same integers again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfl_rewrite import load, save
from tfl_rewrite.cli.main import main
from tfl_rewrite.editing.base import PassResult, run_passes
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.invariants import broken, problems
from tfl_rewrite.model.ir import Model
from tfl_rewrite.passes.dequantize import Dequantize
from tfl_rewrite.passes.quantize_weights import QuantizeWeights

from ..nets import Array, Net, UnsignedNet, codes, data_of, decibels, dequantized, named, run

ENCODINGS: list[dict[str, Any]] = [
    {},
    {"granularity": "tensor"},
    {"scheme": "dequantize"},
    {"granularity": "block:32"},
    {"dtype": "int4"},
    {"dtype": "int4", "granularity": "block:32"},
    {"dtype": "int4", "scheme": "dequantize"},
    {"dtype": "int2", "granularity": "block:64"},
    {"dtype": "int6", "granularity": "block:128"},
    {"dtype": "int12"},
    {"dtype": "float16"},
    {"map": "^dense$=int4:block:32:hybrid,kernel=float16,.*=int8"},
]


def floats(source: Path, target: Path) -> tuple[Model, PassResult]:
    model = load(source)
    result = run_passes(model, [Dequantize()])[0]
    assert not broken(model)
    save(model, target)
    after = load(target)
    assert not problems(after)
    assert not run_passes(load(target), [Dequantize()])[0].modified
    return after, result


def small_constants(model: Model) -> dict[str, bytes]:
    """The constants that are not float32, by name."""
    return {
        tensor.name: bytes(tensor.buffer.blob.view())
        for graph in model.subgraphs
        for tensor in graph.tensors
        if tensor.buffer.blob is not None and tensor.dtype_name in ("INT8", "INT4", "INT2", "FLOAT16")
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A convolution, dense layers that share a weight with a product, a lookup and an embedding."""
    net = Net()
    image = net.input("x", (1, 6, 6, 8))
    bias = net.constant("bias", np.linspace(-1, 1, 16).astype(np.float32))
    done = net.add(
        "CONV_2D",
        [image, net.weights("kernel", (16, 3, 3, 8)), bias],
        "a",
        (1, 6, 6, 16),
        stride_w=1,
        stride_h=1,
    )
    shape = net.constant("shape", np.array([9, 64], np.int32))
    flat = net.add("RESHAPE", [done, shape], "b", (9, 64))
    dense = net.weights("dense", (64, 64))
    first = net.dense(flat, dense, "c")
    net.output(net.add("MUL", [first, net.weights("table", (40, 9, 64))], "d", (40, 9, 64)))
    ids = net.input("ids", (5,), np.int32)
    net.output(net.add("GATHER", [net.weights("found", (50, 64)), ids], "g", (5, 64), axis=0))
    net.output(net.add("EMBEDDING_LOOKUP", [ids, net.weights("rows", (50, 64))], "f", (5, 64)))
    save(net.model, tmp_path / "in.tflite")
    return tmp_path / "in.tflite"


@pytest.fixture
def inputs() -> dict[str, Array]:
    return {
        "x": np.random.default_rng(1).standard_normal((1, 6, 6, 8)).astype(np.float32),
        "ids": np.array([3, 0, 49, 7, 7], np.int32),
    }


@pytest.mark.runtime
@pytest.mark.parametrize("options", ENCODINGS, ids=str)
def test_there_and_back(
    source: Path, inputs: dict[str, Array], tmp_path: Path, options: dict[str, Any]
) -> None:
    model = load(source)
    assert run_passes(model, [QuantizeWeights(**options)])[0].modified
    save(model, tmp_path / "small.tflite")
    after, result = floats(tmp_path / "small.tflite", tmp_path / "large.tflite")
    stored = {tensor.dtype_name for tensor in after.subgraphs[0].tensors if tensor.is_constant}
    rows = bool(small_constants(after))
    # A lookup with a scale for each row stays.
    assert stored <= {"FLOAT32", "INT32"} or rows == ("found_rows" in small_constants(after))
    # The reference kernel is wrong for blocks that FULLY_CONNECTED reads itself.
    for reference in (False,) if "hybrid" in options.get("map", "") else (False, True):
        one = run(tmp_path / "small.tflite", inputs, reference=reference)
        two = run(tmp_path / "large.tflite", inputs, reference=reference)
        exact = reference and not {"hybrid"} & {change.scheme for change in _changes(source, options)}
        for key, expected in one.items():
            assert decibels(expected, two[key]) >= (120 if exact else 30), (key, reference)
    # The same integers again, in the same places.
    again = load(tmp_path / "large.tflite")
    assert run_passes(again, [QuantizeWeights(**options)])[0].modified
    save(again, tmp_path / "again.tflite")
    assert small_constants(load(tmp_path / "again.tflite")) == small_constants(
        load(tmp_path / "small.tflite")
    )
    assert (tmp_path / "again.tflite").stat().st_size <= (tmp_path / "small.tflite").stat().st_size + 200
    assert result.changes


def _changes(source: Path, options: dict[str, Any]) -> tuple[Any, ...]:
    return run_passes(load(source), [QuantizeWeights(**options)])[0].changes


def test_the_graph_is_as_it_was(source: Path, tmp_path: Path) -> None:
    before = load(source)
    for number, options in enumerate(({"dtype": "int4", "granularity": "block:32"}, {"dtype": "float16"})):
        model = load(source)
        run_passes(model, [QuantizeWeights(**options)])[0]
        save(model, tmp_path / f"{number}.tflite")
        after, _ = floats(tmp_path / f"{number}.tflite", tmp_path / f"{number}.large.tflite")
        assert codes(after) == codes(before)
        assert sorted(tensor.name for tensor in after.subgraphs[0].tensors) == sorted(
            tensor.name for tensor in before.subgraphs[0].tensors
        )


def test_values_are_those_of_the_integers(source: Path, tmp_path: Path) -> None:
    model = load(source)
    run_passes(model, [QuantizeWeights()])[0]
    save(model, tmp_path / "small.tflite")
    small = load(tmp_path / "small.tflite")
    after, _ = floats(tmp_path / "small.tflite", tmp_path / "large.tflite")
    for name in ("kernel", "dense", "rows"):
        assert np.array_equal(data_of(named(after, name)), dequantized(named(small, name)))
        assert named(after, name).quantization is None
    assert np.array_equal(data_of(named(after, "table")), dequantized(named(small, "table_int8")))


def test_operators_get_their_float_version(source: Path, tmp_path: Path) -> None:
    model = load(source)
    run_passes(model, [QuantizeWeights()])[0]
    assert ("FULLY_CONNECTED", 12) in codes(model) and ("CONV_2D", 5) in codes(model)
    save(model, tmp_path / "small.tflite")
    after, _ = floats(tmp_path / "small.tflite", tmp_path / "large.tflite")
    versions = dict(codes(after))
    # A dense layer without a bias has version 6.
    assert (versions["FULLY_CONNECTED"], versions["CONV_2D"], versions["EMBEDDING_LOOKUP"]) == (6, 1, 1)
    dense = next(item for item in after.subgraphs[0].operators if item.code.name == "FULLY_CONNECTED")
    assert not dense.option("asymmetric_quantize_inputs")


@pytest.mark.parametrize(
    "name", ["already_int4", "blockwise_int4", "digits_cnn_dynamic_range", "digits_cnn_float16"]
)
def test_files_of_others(fixtures: Path, tmp_path: Path, name: str) -> None:
    _, result = floats(fixtures / f"{name}.tflite", tmp_path / "out.tflite")
    assert result.modified
    assert all(change.saved < 0 for change in result.changes)


def test_integer_operators_stay(fixtures: Path, tmp_path: Path) -> None:
    after, result = floats(fixtures / "digits_cnn_full_int8.tflite", tmp_path / "out.tflite")
    assert not result.modified
    assert result.skips and {skip.rule for skip in result.skips} == {"integer"}
    assert (tmp_path / "out.tflite").read_bytes() == (fixtures / "digits_cnn_full_int8.tflite").read_bytes()
    assert small_constants(after)


def test_every_fixture(sound: Path, tmp_path: Path) -> None:
    floats(sound, tmp_path / "out.tflite")


def test_scales_of_half_a_number(fixtures: Path) -> None:
    model = load(fixtures / "blockwise_int4.tflite")
    tables = [
        tensor.quantization.scales_tensor
        for tensor in model.subgraphs[0].tensors
        if tensor.quantization is not None and tensor.quantization.scales_tensor is not None
    ]
    assert tables and tables[0] is not None and tables[0].buffer.blob is not None
    tables[0].buffer.blob = OwnedBlob(bytes(tables[0].buffer.blob.view())[:-1])
    result = run_passes(model, [Dequantize()])[0]
    assert [item.rule for item in result.skips] == ["form"] and not result.modified


@pytest.mark.runtime
def test_a_full_integer_model_becomes_a_float_one(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target, again = (
        fixtures / "digits_cnn_full_int8.tflite",
        tmp_path / "out.tflite",
        tmp_path / "again.tflite",
    )
    assert main(["dequantize", str(source), str(target), "--activations"]) == 0
    said = capsys.readouterr().out
    assert "verified: PASS" in said and "computes in floats" in said
    (graph,) = load(target).subgraphs
    kinds = {item.dtype_name for operator in graph.operators for item in operator.outputs if item is not None}
    assert kinds == {"FLOAT32"}
    assert {item.dtype_name for item in (*graph.inputs, *graph.outputs)} == {"FLOAT32"}
    assert {version for _, version in codes(load(target))} == {1}
    assert main(["dequantize", str(target), str(again), "--activations"]) == 0
    assert again.read_bytes() == target.read_bytes()


def test_without_activations_integers_stay(fixtures: Path) -> None:
    model = load(fixtures / "digits_cnn_full_int8.tflite")
    result = run_passes(model, [Dequantize()])[0]
    assert not result.modified and {skip.rule for skip in result.skips} == {"integer"}


def test_what_stays_in_integers_is_told() -> None:
    net = UnsignedNet()
    inner = net.gives("ABS", [net.source()], "inner", (0.25, 3))
    net.output(net.add("CAST", [inner], "out", inner.shape or ()))
    result = run_passes(net.model, [Dequantize(activations=True)])[0]
    (skip,) = result.skips
    assert skip.rule == "integer-island" and "works on the integers themselves" in skip.reason
    assert result.retyped and "float32 at the border: 'in'" in result.notes
    assert [name for name, _ in codes(net.model)] == ["ABS", "QUANTIZE", "CAST"]
