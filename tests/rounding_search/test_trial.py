"""Files that a search runs: where they are opened, and that constants come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from passes.nets import Net

from tfl_rewrite import Verification, load, save
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.passes.rounded_constants import Choice, find_constants
from tfl_rewrite.rounding_search.trial import Trial, noise_of, open_outputs, worst_ratio
from tfl_rewrite.verification import Tolerance


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
    assert open_outputs(tmp_path / "closed.tflite", tmp_path / "open.tflite")
    assert [tensor.name for tensor in load(tmp_path / "open.tflite").subgraphs[0].outputs] == ["inside"]


def test_other_outputs_are_not_opened(tmp_path: Path) -> None:
    net = Net()
    net.output(net.dense(net.input("x", (1, 16)), net.weights("w", (8, 16)), "plain"))
    save(net.model, tmp_path / "closed.tflite")
    assert not open_outputs(tmp_path / "closed.tflite", tmp_path / "open.tflite")
    assert not (tmp_path / "open.tflite").exists()


def test_constants_that_are_not_chosen_any_more_come_back(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "digits_cnn.tflite"
    settings = RoundWeights()
    items, _ = find_constants(load(source), int8=False, min_elements=settings.min_elements)
    trial = Trial.of(source, "trial", tmp_path, Verification())
    try:
        first = {items[0].position: (items[0], Choice(0.25))}
        verdict = trial.judge(first, Tolerance(min_snr=None))
        assert worst_ratio(verdict) < 60 and noise_of(verdict).max() > 1e-6
        assert (tmp_path / "trial.tflite").read_bytes() != source.read_bytes()
        assert worst_ratio(trial.judge({}, Tolerance(min_snr=None))) == 200
        assert (tmp_path / "trial.tflite").read_bytes() == source.read_bytes()
        assert trial.files == 2
    finally:
        trial.close()
    assert np.isfinite(noise_of(verdict)).all()
