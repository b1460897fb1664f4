"""Rewrites that make room for better integers compute what was computed before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.nets import Net, codes, run
from tfl_rewrite import load, save
from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.integers.rewrites import (
    negations_to_products,
    pools_to_means,
    read_by_integers,
    selects_to_broadcasts,
)
from tfl_rewrite.kernels.integer import Target
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Model, Operator
from tfl_rewrite.passes.quantize_weights import QuantizeWeights


def pool(
    shape: tuple[int, ...] = (1, 5, 3, 4), result: tuple[int, ...] = (1, 1, 1, 4), **options: Any
) -> Net:
    known: dict[str, Any] = {"filter_height": shape[1], "filter_width": shape[2]}
    known |= {"stride_h": 1, "stride_w": 1, "padding": 1} | options
    net = Net()
    made = net.add("AVERAGE_POOL_2D", [net.input("in", shape)], "pooled", result, **known)
    net.output(net.add("RELU", [made], "out", result))
    return net


@pytest.mark.runtime
def test_a_pool_over_the_plane_becomes_a_mean(tmp_path: Path) -> None:
    net = pool()
    sample = np.random.default_rng(0).standard_normal((1, 5, 3, 4)).astype(np.float32)
    save(net.model, tmp_path / "pool.tflite")
    ((before, after),) = pools_to_means(net.model, lambda _: False)
    assert (before.code.name, after.code.name) == ("AVERAGE_POOL_2D", "MEAN")
    assert broken(net.model) == []
    assert [name for name, _ in codes(net.model)] == ["MEAN", "RELU"]
    save(net.model, tmp_path / "mean.tflite")
    one, other = (run(tmp_path / f"{name}.tflite", {"in": sample})["out"] for name in ("pool", "mean"))
    assert one.shape == other.shape
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    "net",
    [
        pool(filter_width=2, result=(1, 1, 2, 4)),
        pool(fused_activation_function=1),
        pool(filter_height=9, filter_width=9, padding=0, result=(1, 5, 3, 4)),
    ],
    ids=["a part of the plane", "with an activation function", "at each place of it"],
)
def test_other_pools_stay(net: Net) -> None:
    assert pools_to_means(net.model, lambda _: False) == []


def test_a_pool_that_somebody_keeps_stays() -> None:
    net = pool()
    assert pools_to_means(net.model, lambda operator: operator.code.name == "AVERAGE_POOL_2D") == []
    assert [name for name, _ in codes(net.model)] == ["AVERAGE_POOL_2D", "RELU"]


def negated() -> Net:
    net = Net()
    net.output(net.add("NEG", [net.input("in", (2, 3))], "out", (2, 3)))
    return net


@pytest.mark.runtime
def test_negations_become_products_and_stay_exact(tmp_path: Path) -> None:
    net = negated()
    save(net.model, tmp_path / "before.tflite")
    ((before, after),) = negations_to_products(net.model, lambda _: False)
    assert before.code.name == "NEG" and codes(net.model) == [("MUL", 1)]
    assert net.model.subgraphs[0].operators == [after] and broken(net.model) == []
    save(net.model, tmp_path / "after.tflite")
    values = {"in": np.random.default_rng(3).standard_normal((2, 3)).astype(np.float32)}
    made = [run(tmp_path / f"{name}.tflite", values)["out"] for name in ("before", "after")]
    assert np.array_equal(*made)


def test_what_is_to_stay_or_negates_integers_is_left() -> None:
    net = negated()
    assert negations_to_products(net.model, lambda _: True) == []
    net = Net()
    net.output(net.add("NEG", [net.input("in", (2,), np.int32)], "out", (2,), dtype=np.int32))
    assert negations_to_products(net.model, lambda _: False) == []
    assert codes(net.model) == [("NEG", 1)]


def choosing(condition: tuple[int, ...], dtype: Any = np.float32) -> Net:
    net = Net()
    chosen = net.input("chosen", condition, np.bool_)
    inputs = [chosen, *(net.input(name, (2, 3), dtype) for name in ("one", "other"))]
    net.output(net.add("SELECT", inputs, "out", (2, 3), dtype=dtype))
    return net


@pytest.mark.runtime
def test_a_select_of_one_shape_becomes_one_that_broadcasts(tmp_path: Path) -> None:
    net, random = choosing((2, 3)), np.random.default_rng(0)
    samples = {"chosen": random.uniform(0, 1, (2, 3)) > 0.5}
    samples |= {name: random.standard_normal((2, 3)).astype(np.float32) for name in ("one", "other")}
    save(net.model, tmp_path / "before.tflite")
    assert len(selects_to_broadcasts(net.model)) == 1
    assert broken(net.model) == []
    assert [name for name, _ in codes(net.model)] == ["SELECT_V2"]
    save(net.model, tmp_path / "after.tflite")
    one, other = (run(tmp_path / f"{name}.tflite", samples)["out"] for name in ("before", "after"))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("net", [choosing((2,)), choosing((2, 3), np.int32)], ids=["rows", "int32"])
def test_another_select_stays(net: Net) -> None:
    assert selects_to_broadcasts(net.model) == []
    assert [name for name, _ in codes(net.model)] == ["SELECT"]


def always(_: Operator) -> bool:
    return True


def never(_: Operator) -> bool:
    return False


def read(model: Model, kind: str, wanted: object = always, target: Target = Target.LITERT) -> dict[str, bool]:
    """By the type of an operator that reads it, whether a constant of a type is to be made floats."""
    is_read = read_by_integers(model, wanted, target)  # type: ignore[arg-type]
    return {
        operator.code.name: is_read(tensor)
        for _, operator in model.operators()
        for tensor in operator.inputs
        if tensor is not None and tensor.is_constant and tensor.dtype_name == kind
    }


def stored(path: Path, **options: str) -> Model:
    model = load(path)
    run_passes(model, [QuantizeWeights(min_elements=1, **options)])  # type: ignore[arg-type]
    return model


def test_weights_of_recurrent_operators_that_stay_float_stay(fixtures: Path) -> None:
    found = read(stored(fixtures / "rnn.tflite", scheme="auto"), "INT8")
    assert found == {"RNN": False, "UNIDIRECTIONAL_SEQUENCE_RNN": False}
    found = read(stored(fixtures / "lstm.tflite", scheme="auto"), "INT8")
    assert found["FULLY_CONNECTED"] and found["UNIDIRECTIONAL_SEQUENCE_LSTM"]
    # Its integer kernel knows RELU alone.
    assert read(stored(fixtures / "svdf.tflite", scheme="auto"), "INT8") == {"SVDF": False}


def test_weights_behind_dequantize_are_looked_through(fixtures: Path) -> None:
    assert read(load(fixtures / "digits_cnn_float16.tflite"), "FLOAT16") == {"DEQUANTIZE": True}
    assert read(load(fixtures / "digits_cnn_float16.tflite"), "FLOAT16", never) == {"DEQUANTIZE": False}


def test_what_nobody_wants_as_integers_stays(fixtures: Path) -> None:
    model = load(fixtures / "digits_cnn_dynamic_range.tflite")
    assert set(read(model, "INT8").values()) == {True}
    assert set(read(model, "INT8", never).values()) == {False}


def test_bodies_of_branches_stay(fixtures: Path) -> None:
    model = stored(fixtures / "if_branches.tflite", scheme="auto")
    assert set(read(model, "INT8").values()) == {False}


def test_micro_reads_few_of_the_forms(fixtures: Path) -> None:
    model = stored(fixtures / "lstm.tflite", scheme="auto")
    found = read(model, "INT8", never, Target.MICRO)
    assert found["FULLY_CONNECTED"] and found["UNIDIRECTIONAL_SEQUENCE_LSTM"]
    half = load(fixtures / "digits_cnn_float16.tflite")
    assert read(half, "FLOAT16", never, Target.MICRO) == {"DEQUANTIZE": True}
