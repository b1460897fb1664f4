"""Passes that say only what they must keep, in every place that runs passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tfl_rewrite import Judging, UsageError, load, rewrite, run, save
from tfl_rewrite.cli import main
from tfl_rewrite.editing.base import Pass
from tfl_rewrite.passes.compact import Compact
from tfl_rewrite.passes.dedup import Dedup
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.remove_dead import RemoveDead
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.search.shrink import search_choices

from ..nets import Net

SEARCHED = RoundWeights(min_snr=35, effort="fast")


@pytest.mark.runtime
def test_a_ratio_is_searched_for_wherever_passes_run(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "dense.tflite"
    found = search_choices(source, RoundWeights(effort="fast"), Judging(), min_snr=35)
    expected = rewrite(source, passes=[found.settings]).model
    assert expected is not None
    report = rewrite(source, tmp_path / "python.tflite", [SEARCHED])
    assert report.outcome == "rewritten" and report.verdict is not None
    assert (report.verdict.worst_snr() or 0.0) >= 35
    text = "round-weights:min-snr=35,effort=fast"
    assert main(["run", str(source), str(tmp_path / "run.tflite"), "--pass", text, "-q"]) == 0
    plain = ["round-weights", str(source), str(tmp_path / "command.tflite"), "--effort", "fast", "-q"]
    assert main([*plain, "--min-snr", "35"]) == 0
    assert main(["batch", str(source), "--out", str(tmp_path / "out"), "--pass", text, "-q"]) == 0
    made = [tmp_path / f"{name}.tflite" for name in ("python", "run", "command")]
    made.append(tmp_path / "out" / "dense.tflite")
    assert {path.read_bytes() for path in made} == {expected.to_bytes()}


@pytest.mark.runtime
def test_what_loses_nothing_may_stand_around(tmp_path: Path) -> None:
    """Constants move when others go: what was found for one must not be done to another."""
    net = Net()
    # All constants move to the place before, where the first one goes, which nothing reads.
    net.buffer(bytes(5000))
    inner = net.dense(net.input("x", (1, 40)), net.weights("w", (32, 40)), "inner")
    net.output(net.dense(inner, net.weights("v", (24, 32)), "y"))
    save(net.model, tmp_path / "in.tflite")
    around: list[Pass] = [RemoveDead(), Dedup(), SEARCHED, Compact()]
    whole = rewrite(tmp_path / "in.tflite", tmp_path / "whole.tflite", around)
    rewrite(tmp_path / "in.tflite", tmp_path / "first.tflite", [RemoveDead(), Dedup()])
    apart = rewrite(tmp_path / "first.tflite", tmp_path / "apart.tflite", [SEARCHED, Compact()])
    assert whole.verdict is not None and (whole.verdict.worst_snr() or 0.0) >= 35
    assert len(whole.results[2].changes) == len(apart.results[0].changes) > 1
    assert (tmp_path / "whole.tflite").read_bytes() == (tmp_path / "apart.tflite").read_bytes()


@pytest.mark.parametrize("before", [[QuantizeWeights()], [Dedup(), RoundWeights()]])
def test_nothing_that_loses_may_stand_before(fixtures: Path, tmp_path: Path, before: Sequence[Pass]) -> None:
    with pytest.raises(UsageError, match=f"cannot follow {before[-1].name}") as caught:
        rewrite(fixtures / "dense.tflite", tmp_path / "out.tflite", [*before, SEARCHED])
    assert caught.value.remedy == "put it first, or say by how much instead of min-snr"
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_memory_is_not_run(fixtures: Path) -> None:
    model = load(fixtures / "dense.tflite")
    before = model.to_bytes()
    with pytest.raises(UsageError, match="min_snr of round-weights"):
        run(model, [SEARCHED])
    assert model.to_bytes() == before


def test_what_cannot_be_written_is_refused_before_the_search(
    fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("tfl_rewrite.search.shrink.search_choices", too_late)
    target = tmp_path / "out.tflite"
    target.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists"):
        rewrite(fixtures / "dense.tflite", target, [SEARCHED])
    assert target.read_bytes() == b"mine"
