"""Files that a search runs: where they are opened, and that constants come back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfl_rewrite import load
from tfl_rewrite.files.source import Source
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.search.trials import Patched
from tfl_rewrite.search.units import KEPT
from tfl_rewrite.weights.grids import Choice, find_constants


@pytest.mark.runtime
def test_constants_that_are_not_chosen_any_more_come_back(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "digits_cnn.tflite"
    settings = RoundWeights()
    items, _ = find_constants(load(source), int8=False, min_elements=settings.min_elements)
    path, first = tmp_path / "trial.tflite", items[0].position
    patched = Patched(Source.open(source), path, {item.position: item for item in items})
    grids = {first: Choice(0.25)}
    assert patched.takes(grids) and not patched.takes({}) and not patched.takes({first: KEPT})
    patched.hold(grids)
    changed = path.read_bytes()
    assert changed != source.read_bytes() and len(changed) == source.stat().st_size
    with Judge(source) as judge:
        verdict = judge.compare(path)
    assert verdict.measured and (verdict.worst_snr() or 0.0) < 60
    patched.hold({items[1].position: Choice(0.25)})
    patched.hold({})
    assert path.read_bytes() == source.read_bytes()
    patched.hold(grids)
    assert path.read_bytes() == changed
