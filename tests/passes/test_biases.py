"""Biases that are corrected are those of one operator only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import load
from tfl_rewrite.model.invariants import broken
from tfl_rewrite.model.ir import Model, Operator, SubGraph
from tfl_rewrite.passes.biases import Correction, correct, takes_bias
from tfl_rewrite.passes.edits import Editor


def found(model: Model, name: str) -> list[tuple[SubGraph, Operator]]:
    return [(subgraph, item) for subgraph, item in model.operators() if item.code.name == name]


def values(operator: Operator, model: Model) -> np.ndarray:
    bias = operator.inputs[2]
    assert bias is not None
    if not bias.is_constant:
        bias = next(o for _, o in model.operators() if o.outputs[0] is bias).inputs[0]
        assert bias is not None
    assert bias.buffer.blob is not None
    kind = "<f4" if bias.dtype_name == "FLOAT32" else "<f2"
    return np.frombuffer(bias.buffer.blob.view(), kind).astype(np.float64)


@pytest.mark.parametrize("name", ["mtcnn_rnet", "digits_cnn_float16"])
def test_adds_to_the_constant(fixtures: Path, name: str) -> None:
    model = load(fixtures / f"{name}.tflite")
    subgraph, operator = found(model, "CONV_2D")[0]
    old = values(operator, model)
    change = np.linspace(-1, 1, len(old))
    assert takes_bias(subgraph, operator, weight_nbytes=0, outputs=len(old))
    assert not takes_bias(subgraph, operator, weight_nbytes=0, outputs=len(old) + 1)
    correct(Editor(model), Correction(subgraph, operator, change))
    np.testing.assert_allclose(values(operator, model), old + change, rtol=1e-3, atol=1e-3)
    assert not broken(model)


def test_a_shared_bias_is_copied(fixtures: Path) -> None:
    model = load(fixtures / "mtcnn_rnet.tflite")
    (subgraph, first), (_, second) = found(model, "CONV_2D")[:2]
    old = values(first, model)
    second.inputs[2] = first.inputs[2]
    correct(Editor(model), Correction(subgraph, first, np.ones(len(old))))
    np.testing.assert_allclose(values(first, model), old + 1, rtol=1e-6)
    np.testing.assert_allclose(values(second, model), old)
    assert not broken(model)


def test_added_only_where_it_takes_little(fixtures: Path) -> None:
    model = load(fixtures / "mtcnn_rnet.tflite")
    subgraph, operator = found(model, "FULLY_CONNECTED")[0]
    count = len(values(operator, model))
    del operator.inputs[2:]
    assert not takes_bias(subgraph, operator, weight_nbytes=4 * count, outputs=count)
    assert takes_bias(subgraph, operator, weight_nbytes=1 << 20, outputs=count)
    correct(Editor(model), Correction(subgraph, operator, np.arange(count, dtype=np.float64)))
    np.testing.assert_allclose(values(operator, model), np.arange(count))
    assert not broken(model)


def test_a_computed_bias_stays(fixtures: Path) -> None:
    model = load(fixtures / "mtcnn_rnet.tflite")
    subgraph, operator = found(model, "CONV_2D")[0]
    count = len(values(operator, model))
    operator.inputs[2] = subgraph.inputs[0]
    assert not takes_bias(subgraph, operator, weight_nbytes=1 << 20, outputs=count)
