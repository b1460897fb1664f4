"""Where files are opened before what hides noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import load, save
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Quantization
from tfl_rewrite.pipeline.copies import open_outputs

from ..nets import Net, run


@pytest.mark.parametrize("after", [[], ["RESHAPE"], ["SQUEEZE", "EXPAND_DIMS"]])
@pytest.mark.parametrize("last", ["SOFTMAX", "LOGISTIC", "TANH"])
def test_outputs_are_opened_before_what_squashes_them(last: str, after: list[str], tmp_path: Path) -> None:
    net = Net()
    inside = net.dense(net.input("x", (1, 16)), net.weights("w", (8, 16)), "inside")
    given = net.add(last, [inside], "given", (1, 8))
    for number, kind in enumerate(after):
        given = net.add(kind, [given], f"after{number}", (1, 8))
    net.output(given)
    save(net.model, tmp_path / "closed.tflite")
    decisions = open_outputs(tmp_path / "closed.tflite", tmp_path / "open.tflite")
    assert decisions == (1 if last == "SOFTMAX" else 8)
    assert [tensor.name for tensor in load(tmp_path / "open.tflite").subgraphs[0].outputs] == ["inside"]
    assert open_outputs(tmp_path / "closed.tflite", tmp_path / "centred.tflite", centred=True)
    name = "inside_centred" if last == "SOFTMAX" else "inside"
    assert [tensor.name for tensor in load(tmp_path / "centred.tflite").subgraphs[0].outputs] == [name]


def test_integers_are_given_out_as_floats(tmp_path: Path) -> None:
    net = Net()
    floats = net.dense(net.input("x", (1, 16)), net.weights("w", (8, 16)), "floats")
    inside = net.add("QUANTIZE", [floats], "inside", (1, 8))
    squashed = net.add("SOFTMAX", [inside], "given", (1, 8))
    for tensor, scale in ((inside, 0.1), (squashed, 1 / 256)):
        tensor.dtype, tensor.quantization = dtypes.INT8.value, Quantization.single(scale, -128)
    net.output(net.add("DEQUANTIZE", [squashed], "real", (1, 8)))
    save(net.model, tmp_path / "closed.tflite")
    assert open_outputs(tmp_path / "closed.tflite", tmp_path / "open.tflite")
    (tensor,) = load(tmp_path / "open.tflite").subgraphs[0].outputs
    assert tensor.dtype_name == "FLOAT32"


@pytest.mark.runtime
def test_what_goes_into_a_softmax_is_given_less_its_mean(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "digits_cnn.tflite"
    assert open_outputs(source, tmp_path / "open.tflite")
    assert open_outputs(source, tmp_path / "centred.tflite", centred=True)
    (given,) = load(source).subgraphs[0].inputs
    sample = {given.name: np.random.default_rng(0).random(given.shape).astype(np.float32)}
    squashed, opened, centred = (
        next(iter(run(path, sample).values()))
        for path in (source, tmp_path / "open.tflite", tmp_path / "centred.tflite")
    )
    np.testing.assert_allclose(centred, opened - opened.mean(), atol=1e-5)
    assert abs(opened.mean()) > 1e-2
    powers = np.exp(centred - centred.max())
    np.testing.assert_allclose(squashed, powers / powers.sum(), atol=1e-5)


def test_other_outputs_are_not_opened(tmp_path: Path) -> None:
    net = Net()
    net.output(net.dense(net.input("x", (1, 16)), net.weights("w", (8, 16)), "plain"))
    save(net.model, tmp_path / "closed.tflite")
    assert not open_outputs(tmp_path / "closed.tflite", tmp_path / "open.tflite")
    assert not (tmp_path / "open.tflite").exists()
