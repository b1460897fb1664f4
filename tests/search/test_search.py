"""The search on the committed models: what it keeps, what it saves, and that it finds its own work done."""

from __future__ import annotations

import math
import shutil
import zlib
from pathlib import Path

import pytest

from tfl_rewrite import Judging, UsageError, load, rewrite
from tfl_rewrite.editing.base import Context
from tfl_rewrite.judge.settings import Tolerance
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.search.goals import Goal
from tfl_rewrite.search.shrink import choices_session, search_choices

pytestmark = pytest.mark.runtime


def deflated(path: Path) -> int:
    return len(zlib.compress(path.read_bytes(), 9))


def test_the_search_keeps_the_ratio_and_beats_plain_steps(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "lstm.tflite"
    settings = Judging(samples=2)
    plain = rewrite(source, tmp_path / "plain.tflite", [RoundWeights(steps=256)], judging=settings)
    assert plain.verdict is not None
    ratio = plain.verdict.worst_snr()
    assert ratio is not None
    found = search_choices(source, RoundWeights(), settings, min_snr=ratio)
    assert found.snr is not None and found.snr >= ratio
    rewrite(source, tmp_path / "searched.tflite", [found.settings], judging=Judging(mode="off"))
    assert deflated(tmp_path / "searched.tflite") < deflated(tmp_path / "plain.tflite")
    # Searching again finds everything on its grid.
    second = search_choices(tmp_path / "searched.tflite", RoundWeights(), settings, min_snr=ratio)
    assert second.files == 0
    report = rewrite(tmp_path / "searched.tflite", tmp_path / "again.tflite", [second.settings])
    assert report.outcome == "unchanged"


@pytest.mark.parametrize("bounds", [{"min_snr": math.inf}, {"min_snr": 30, "max_abs_error": math.inf}])
def test_a_bound_is_finite(fixtures: Path, bounds: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="is inf"):
        search_choices(fixtures / "dense.tflite", RoundWeights(), Judging(), **bounds)


def test_the_search_is_deterministic(fixtures: Path) -> None:
    source = fixtures / "dense.tflite"
    first, second = (search_choices(source, RoundWeights(), Judging(), min_snr=35) for _ in range(2))
    assert first.settings == second.settings and first.files == second.files


def test_the_search_rounds_int8_and_finds_it_done(fixtures: Path, tmp_path: Path) -> None:
    source, target = fixtures / "digits_cnn_full_int8.tflite", tmp_path / "out.tflite"
    found = search_choices(source, RoundWeights(int8=True), Judging(), min_snr=15)
    asked = Judging(tolerance=Tolerance(min_snr=15))
    report = rewrite(source, target, [found.settings], judging=asked)
    assert report.outcome == "rewritten" and report.deflated is not None
    assert report.deflated[1] < 0.8 * report.deflated[0]
    assert target.stat().st_size == source.stat().st_size
    second = search_choices(target, RoundWeights(int8=True), Judging(), min_snr=15)
    assert second.settings.choices == {} and second.files == 0


def test_proposals_get_smaller_as_the_aim_gets_lower(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "digits_cnn.tflite"
    made = {}
    with choices_session(source, RoundWeights(), Judging(samples=2), Goal(min_snr=40)) as opened:
        search = opened.grids(40)
        for aim in (10, 25, 40, 55):
            choice, expected = search.propose(aim)
            (settings,) = opened.trials.passes(choice)
            target = tmp_path / f"{aim}.tflite"
            rewrite(source, target, [settings], judging=Judging(mode="off"))
            made[aim] = expected, deflated(target)
    sizes = [made[aim] for aim in (10, 25, 40, 55)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4
    # Mostly the file is constants, and what is expected of them is about what they take.
    assert all(0.8 < expected / size < 1.3 for expected, size in sizes[1:])


@pytest.mark.parametrize("ratio", [12.0, 45.0])
def test_a_target_is_reached_closely(fixtures: Path, ratio: float) -> None:
    source = fixtures / "digits_cnn.tflite"
    found = search_choices(source, RoundWeights(), Judging(), min_snr=ratio)
    assert found.snr is not None and ratio <= found.snr < ratio + 3


def test_a_model_without_constants_has_nothing_to_propose(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "digits_cnn.tflite"
    rewrite(source, tmp_path / "done.tflite", [RoundWeights(steps=16)])
    found = search_choices(tmp_path / "done.tflite", RoundWeights(), Judging(), min_snr=25)
    assert found.settings.choices == {} and found.files == 0
    model = load(tmp_path / "done.tflite")
    assert found.settings.run(model, Context()).changes == ()


def test_a_model_that_does_not_run_opened_is_searched_as_it_is(
    fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def foreign(_source: object, target: Path, *, centred: bool) -> int:
        assert centred
        shutil.copyfile(fixtures / "malformed" / "custom_unknown_op.tflite", target)
        return 1

    monkeypatch.setattr("tfl_rewrite.search.trials.open_outputs", foreign)
    source = fixtures / "digits_cnn.tflite"
    found = search_choices(source, RoundWeights(), Judging(samples=2), min_snr=25)
    assert found.snr is not None and found.snr >= 25
    assert not any("last SOFTMAX" in note for note in found.settings.notes)
