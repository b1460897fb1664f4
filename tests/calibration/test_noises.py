"""What rounding does to outputs on real inputs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.nets import Net, growing_cell, named, nearest
from tfl_rewrite import Judging, Tolerance, UnsupportedError, load, save
from tfl_rewrite.calibration.ranges import Ranges
from tfl_rewrite.calibration.trials import Noises
from tfl_rewrite.integers.groups import Grid
from tfl_rewrite.integers.mixture import Choice, Computes, Mixture
from tfl_rewrite.integers.trials import operators_by_place, rounding
from tfl_rewrite.integers.wish import Known, Search, decibels
from tfl_rewrite.judge.channels import MOST_COMPARED, thinned
from tfl_rewrite.model.blob import OwnedBlob
from tfl_rewrite.model.ir import Model, Operator
from tfl_rewrite.weights.rounders import Simulate

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


def noises(
    told: Judging, model: Model, changes: Sequence[Simulate], *, inside: bool = False
) -> npt.NDArray[np.float64]:
    """Measures changes that are the same on any ranges."""
    simulated = [functools.partial(lambda change, _: change, change) for change in changes]
    return Noises(told, inside=inside).of(model, Ranges(told), simulated)


def test_the_noise_of_a_step_is_its_square_over_twelve(tmp_path: Path) -> None:
    model, step = saved(tmp_path), 1 / 64
    coarse, fine = (
        rounding(model, {id(named(model, "sizes")): Grid(8, size, -128)}, ()) for size in (step, step / 2)
    )
    found = noises(judging(tmp_path, min_snr=None), model, [coarse, operators_by_place, fine])
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
        noises(judging(tmp_path, min_snr=bound), model, [wide, change])[0, 0] for bound in (None, 20.0)
    )
    assert parts > 4 * whole, "the first channel, which is a hundredth of the others, is lost"


def test_a_copy_that_does_not_run_is_as_bad_as_can_be(tmp_path: Path) -> None:
    model = saved(tmp_path)

    def break_it(copy: Model) -> dict[tuple[int, int], Operator]:
        copy.subgraphs[0].operators[0].inputs[:] = []
        return {}

    assert np.isinf(noises(judging(tmp_path), model, [break_it])).all()


def test_a_model_that_does_not_run_is_named(tmp_path: Path) -> None:
    model = saved(tmp_path)
    model.subgraphs[0].operators[0].inputs[:] = []
    with pytest.raises(UnsupportedError, match="could not be run"):
        noises(judging(tmp_path), model, [operators_by_place])


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
    plain, inside = (noises(told, model, [change], inside=wanted) for wanted in (False, True))
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
    every = noises(judging(tmp_path, min_snr=None), model, [change])[0, 0]
    few = noises(judging(tmp_path, min_snr=None), model, [change] * 6)[0, 0]
    assert every > 0.5 > 0.01 > few, "a sample beyond the grid is cut off, where it is seen"


Range = tuple[float, float]


def of_ranges(model: Model, tmp_path: Path, samples: int) -> list[Range]:
    """Returns the ranges of the input on which samples of -n to n, one of each, are measured."""
    values = np.arange(1, samples + 1)[:, None, None] * np.linspace(-1, 1, 64, dtype=np.float32)
    np.savez(tmp_path / "in.npz", **{"in": values.astype(np.float32)})
    seen: list[Range] = []

    def simulated(ranges: Mapping[int, Range]) -> Simulate:
        seen.append(ranges[id(model.subgraphs[0].inputs[0])])
        return operators_by_place

    told = judging(tmp_path, min_snr=None)
    Noises(told).of(model, Ranges(told), [simulated])
    return seen


def test_samples_are_measured_on_ranges_that_others_gave(tmp_path: Path) -> None:
    """Samples 1 and 5, 2 and 6, 3 and 7, 4 and 8 are left out in turn."""
    assert of_ranges(saved(tmp_path), tmp_path, 8) == [(-8, 8), (-8, 8), (-8, 8), (-7, 7)]


def test_few_samples_are_measured_on_ranges_that_they_gave(tmp_path: Path) -> None:
    model = saved(tmp_path)
    assert of_ranges(model, tmp_path, 4) == [(-4, 4)]
    assert len(of_ranges(model, tmp_path, 5)) == 4


def test_a_mixture_that_fits_only_the_samples_at_hand_is_not_chosen(tmp_path: Path) -> None:
    """A single loud sample: 8 bits end where it does, and clip such a one where it is not among the others.

    16 bits have room for it, and nothing is lost by that.
    """
    net = Net()
    made = net.dense(net.input("in", (1, 8)), net.weights("w", (8, 8)), "made")
    net.output(net.dense(net.add("RELU", [made], "cut", (1, 8)), net.weights("v", (4, 8)), "out"))
    save(net.model, tmp_path / "net.tflite")
    values = np.random.default_rng(1).normal(size=(8, 1, 8)).astype(np.float32)
    values[5] *= 1.9 * np.abs(values[[0, 1, 2, 3, 4, 6, 7]]).max() / np.abs(values[5]).max()
    for count, is_fooled in ((4, True), (8, False)):
        # Of four, the loud one is among those that give the ranges.
        np.savez(tmp_path / "in.npz", **{"in": values[-count:]})
        model, told = load(tmp_path / "net.tflite"), judging(tmp_path, min_snr=None)
        ranges = Ranges(told)
        mixture = Mixture(model, Choice.parse(Computes.INT8, (), (), ()), ranges.of(model))
        measure = functools.partial(Noises(told).of, model, ranges)
        search = Search(mixture, lambda _: nearest, measure, Known())
        found = search.settle(20.0)
        assert (decibels(search.narrowest) > 21.0) == is_fooled == (not found.wide)
        assert decibels(search.widest) > 25.0 and found.snr > 21.0


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("independent", [False, True])
def test_calls_are_one_sequence_unless_they_are_independent(
    independent: bool, apart: bool, tmp_path: Path
) -> None:
    """A cell that forgets at once gives the same in the first call, and in no other of a sequence."""
    save(growing_cell().model, tmp_path / "net.tflite")
    np.savez(tmp_path / "in.npz", **{"in": np.full((6, 1, 1, 1), 0.1, np.float32)})
    model = load(tmp_path / "net.tflite")

    def forgets(copy: Model) -> Mapping[tuple[int, int], Operator]:
        named(copy, "b1").buffer.blob = OwnedBlob(np.full(1, -20, np.float32).tobytes())
        return operators_by_place(copy)

    told = Judging(inputs=(tmp_path / "in.npz",), independent=independent, tolerance=Tolerance(min_snr=None))
    found = Noises(told).of(model, Ranges(told), [lambda _: forgets], apart=apart)
    cell = np.tanh(0.1 * np.arange(1, 7))
    lost = np.sum((np.tanh(cell) - np.tanh(cell[0])) ** 2) / np.sum(np.tanh(cell) ** 2)
    assert found[0, 0] == pytest.approx(0.0 if independent else lost, rel=0.1, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((1, 8, 4), (1, 8, 4)),
        ((2, 512, 512, 2), (2, 57, 171, 2)),
        ((1, 3, 512, 300), (1, 3, 57, 300)),
        ((1, 90_000), (1, 90_000)),
        ((1, 2, 50_000), (1, 2, 50_000)),
    ],
)
def test_of_a_large_output_some_places_are_compared_with_all_channels(
    shape: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    found = thinned(values)
    assert found.shape == kept and np.shares_memory(found, values)
    assert found.reshape(-1)[0] == 0 and found.size <= 2 * MOST_COMPARED
