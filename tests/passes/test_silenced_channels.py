"""Weights of which whole channels became zero are named, whatever the ratio of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import load, save
from tfl_rewrite.cli import main


@pytest.fixture
def lopsided(fixtures: Path, tmp_path: Path) -> Path:
    """A dense layer, one row of which is a million times larger than the others."""
    from tfl_rewrite.model.blob import OwnedBlob

    model = load(fixtures / "dense.tflite")
    weight = next(
        tensor
        for operator in model.subgraphs[0].operators
        if operator.code.name == "FULLY_CONNECTED"
        for tensor in operator.inputs[1:2]
        if tensor is not None
    )
    assert weight.buffer.blob is not None
    values = np.frombuffer(weight.buffer.blob.view(), np.float32).reshape(weight.shape).copy()
    values[0] *= 1e6
    weight.buffer.blob = OwnedBlob(values.tobytes())
    path = tmp_path / "lopsided.tflite"
    save(model, path)
    return path


@pytest.mark.parametrize(
    "command",
    [
        ("quantize-weights", "--granularity", "tensor", "--min-elements", "1"),
        ("round-weights", "--granularity", "tensor", "--min-elements", "1"),
    ],
)
def test_they_are_named(
    lopsided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    report = tmp_path / "report.json"
    name, *options = command
    arguments = [name, str(lopsided), str(tmp_path / "out.tflite"), *options, "--verify", "off"]
    assert main([*arguments, "--report", str(report)]) == 0
    assert "channels are all zero now, such as" in capsys.readouterr().out
    changes = [row for each in json.loads(report.read_text())["passes"] for row in each["changes"]]
    assert max(row.get("silenced", 0) for row in changes) > 1


def test_a_scale_for_each_silences_none(
    lopsided: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["quantize-weights", str(lopsided), str(tmp_path / "out.tflite"), "--min-elements", "1"]
    assert main([*arguments, "--granularity", "channel", "--verify", "off"]) == 0
    assert "all zero" not in capsys.readouterr().out
