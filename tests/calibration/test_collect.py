"""Looking at a model that does not run: the weights are rounded without activations, and it is said why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite import Context, Judging, Pass, QuantizeWeights, RoundWeights, load, run, save
from tfl_rewrite.calibration.fitter import InputActivations


@pytest.mark.runtime
@pytest.mark.parametrize(
    "made", [QuantizeWeights(min_elements=1), RoundWeights(min_elements=1)], ids=["int8", "grids"]
)
def test_a_model_that_does_not_run_is_rounded_without_activations(made: Pass, tmp_path: Path) -> None:
    net = Net()
    hidden = net.dense(net.input("in", (1, 64)), net.weights("w", (64, 64)), "hidden")
    broken = net.add("CONV_2D", [hidden] * 3, "broken", (1, 64))
    net.output(net.dense(broken, net.weights("v", (64, 64)), "out"))
    save(net.model, tmp_path / "net.tflite")
    np.savez(tmp_path / "in.npz", **{"in": np.zeros((2, 1, 64), np.float32)})
    activations = InputActivations(Judging(inputs=(tmp_path / "in.npz",)))
    (result,) = run(load(tmp_path / "net.tflite"), [made], Context(activations=activations))
    assert result.modified
    assert any("rounded without activations: the model could not be run" in note for note in result.notes)
