"""Files that a search runs: where they are opened, and that constants come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite import Judging, load
from tfl_rewrite.judge.settings import Tolerance
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.search.in_place import Trial, noise_of, worst_ratio
from tfl_rewrite.weights.grids import Choice, find_constants


@pytest.mark.runtime
def test_constants_that_are_not_chosen_any_more_come_back(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "digits_cnn.tflite"
    settings = RoundWeights()
    items, _ = find_constants(load(source), int8=False, min_elements=settings.min_elements)
    trial = Trial.of(source, "trial", tmp_path, Judging())
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
