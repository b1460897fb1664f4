"""What rounding does to outputs on real inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.nets import Net, named
from tfl_rewrite import Judging, Tolerance, UnsupportedError, load, save
from tfl_rewrite.calibration.trials import Noises
from tfl_rewrite.integers.groups import Grid
from tfl_rewrite.integers.trials import operators_by_place, rounding
from tfl_rewrite.model.ir import Model, Operator

pytestmark = pytest.mark.runtime


def saved(tmp_path: Path, samples: int = 6) -> Model:
    net = Net()
    source = net.input("in", (1, 64))
    net.output(net.add("ABS", [source], "sizes", (1, 64)))
    net.output(net.add("RELU", [source], "positive", (1, 64)))
    save(net.model, tmp_path / "net.tflite")
    values = np.random.default_rng(1).uniform(-1, 1, (samples, 1, 64)).astype(np.float32)
    np.savez(tmp_path / "in.npz", **{"in": values})
    return load(tmp_path / "net.tflite")


def judging(tmp_path: Path, **tolerance: float | None) -> Judging:
    return Judging(inputs=(tmp_path / "in.npz",), tolerance=Tolerance(**tolerance))  # type: ignore[arg-type]


def test_the_noise_of_a_step_is_its_square_over_twelve(tmp_path: Path) -> None:
    model, step = saved(tmp_path), 1 / 64
    coarse, fine = (
        rounding(model, {id(named(model, "sizes")): Grid(8, size, -128)}, ()) for size in (step, step / 2)
    )
    found = Noises(judging(tmp_path, min_snr=None)).of(model, [coarse, operators_by_place, fine])
    assert found.shape == (3, 2)
    assert found[0, 0] == pytest.approx(step**2 / 12 / (1 / 3), rel=0.3)
    assert found[2, 0] == pytest.approx(found[0, 0] / 4, rel=0.3)
    assert found[:, 1].tolist() == [0, 0, 0] and found[1].tolist() == [0, 0]


def test_a_channel_counts_where_it_misses_its_bound_by_more(tmp_path: Path) -> None:
    model = saved(tmp_path)
    change = rounding(model, {id(named(model, "sizes")): Grid(8, 1 / 64, -128)}, ())
    loud = np.load(tmp_path / "in.npz")["in"]
    loud[:, :, 1:] *= 100
    np.savez(tmp_path / "in.npz", **{"in": loud})
    wide = rounding(model, {id(named(model, "sizes")): Grid(8, 100 / 255, -128)}, ())
    whole, parts = (
        Noises(judging(tmp_path, min_snr=bound)).of(model, [wide, change])[0, 0] for bound in (None, 20.0)
    )
    assert parts > 4 * whole, "the first channel, which is a hundredth of the others, is lost"


def test_a_copy_that_does_not_run_is_as_bad_as_can_be(tmp_path: Path) -> None:
    model = saved(tmp_path)

    def break_it(copy: Model) -> dict[tuple[int, int], Operator]:
        copy.subgraphs[0].operators[0].inputs[:] = []
        return {}

    assert np.isinf(Noises(judging(tmp_path)).of(model, [break_it])).all()


def test_a_model_that_does_not_run_is_named(tmp_path: Path) -> None:
    model = saved(tmp_path)
    model.subgraphs[0].operators[0].inputs[:] = []
    with pytest.raises(UnsupportedError, match="could not be run"):
        Noises(judging(tmp_path)).of(model, [operators_by_place])


def test_what_goes_into_a_softmax_is_one_more_output(tmp_path: Path) -> None:
    net = Net()
    scores = net.add("ABS", [net.input("in", (1, 64))], "scores", (1, 64))
    net.output(net.add("SOFTMAX", [scores], "shares", (1, 64)))
    save(net.model, tmp_path / "net.tflite")
    values = np.random.default_rng(1).uniform(-1, 1, (6, 1, 64)).astype(np.float32)
    np.savez(tmp_path / "in.npz", **{"in": values})
    model, step = load(tmp_path / "net.tflite"), 1 / 64
    change = rounding(model, {id(named(model, "scores")): Grid(8, step, -128)}, ())
    told = judging(tmp_path, min_snr=None)
    plain, inside = (Noises(told, inside=wanted).of(model, [change]) for wanted in (False, True))
    assert plain.shape == (1, 1) and inside.shape == (1, 2) and inside[0, 0] == plain[0, 0]
    # Of numbers between 0 and 1, less their mean.
    assert inside[0, 1] == pytest.approx(step**2 / 12 / (1 / 12), rel=0.3)


def test_of_many_changes_of_a_large_model_few_samples_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of six samples is loud: whether it is looked at shows in the noise of those that are."""
    model = saved(tmp_path)
    values = np.load(tmp_path / "in.npz")["in"]
    values[1] *= 1000
    np.savez(tmp_path / "in.npz", **{"in": values})
    change = rounding(model, {id(named(model, "sizes")): Grid(8, 1 / 64, -128)}, ())
    monkeypatch.setattr("tfl_rewrite.calibration.trials.MOST_ELEMENTS", 192 * 2 * 6)
    every = Noises(judging(tmp_path, min_snr=None)).of(model, [change])[0, 0]
    few = Noises(judging(tmp_path, min_snr=None)).of(model, [change] * 6)[0, 0]
    assert every > 0.5 > 0.01 > few, "a sample beyond the grid is cut off, where it is seen"
