"""Looking at a model that does not run: the weights are rounded without activations, and it is said why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite import Judging, load, run, save
from tfl_rewrite.calibration.collect import steps_of
from tfl_rewrite.calibration.fitter import InputActivations
from tfl_rewrite.editing import Context, Pass
from tfl_rewrite.passes import QuantizeWeights, RoundWeights


def test_the_calls_that_inputs_make_are_known_without_a_runtime(fixtures: Path) -> None:
    """No mark: a process would be refused."""
    inputs = fixtures / "inputs" / "mtcnn_rnet.npz"
    steps = steps_of(load(fixtures / "mtcnn_rnet.tflite"), Judging(inputs=(inputs,), runtime=("not there",)))
    with np.load(inputs) as held:
        (given,) = (held[name] for name in held.files)
    assert len(steps) == len(given) == 12
    for step, sample in zip(steps, given, strict=True):
        ((_, value),) = step.values
        np.testing.assert_array_equal(value.reshape(sample.shape), sample)


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
