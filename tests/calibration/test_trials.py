"""Models that round their activations are measured on samples that their ranges do not come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.nets import Net
from tfl_rewrite import Judging, load, save
from tfl_rewrite.calibration.fitter import InputActivations
from tfl_rewrite.calibration.probe import Call, Probe, Runner
from tfl_rewrite.calibration.trials import kept_db
from tfl_rewrite.integers.plan import IntegerPlan
from tfl_rewrite.integers.recipe import Recipe
from tfl_rewrite.interpreter.process import RuntimeChoice
from tfl_rewrite.model.ir import Model, Operator
from tfl_rewrite.weights.rounders import Measure, Simulate

pytestmark = pytest.mark.runtime

Range = tuple[float, float]


def layer(last: str | None = None) -> Net:
    net = Net()
    made = net.dense(net.input("in", (1, 8)), net.weights("w", (4, 8)), "made")
    if last is not None:
        made = net.add(last, [made], "out", (1, 4), **({"beta": 1.0} if last == "SOFTMAX" else {}))
    net.output(made)
    return net


def trial(net: Net, samples: Any, tmp_path: Path, use: Callable[[Model, Measure], None]) -> int:
    """Has somebody measure; returns how often that was called."""
    save(net.model, tmp_path / "net.tflite")
    np.savez(tmp_path / "in.npz", **{"in": np.asarray(samples, np.float32)})
    model = load(tmp_path / "net.tflite")
    activations = InputActivations(Judging(inputs=(tmp_path / "in.npz",)))
    activations.ranges(0, model)
    called = 0

    def counted(measure: Measure) -> None:
        nonlocal called
        called += 1
        use(model, measure)

    activations.measured(0, model, counted)
    return called


def samples(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((count, 1, 8)).astype(np.float32)


def as_it_is(copy: Model) -> Mapping[tuple[int, int], Operator]:
    """Simulates nothing."""
    return {
        (number, position): operator
        for number, subgraph in enumerate(copy.subgraphs)
        for position, operator in enumerate(subgraph.operators)
    }


def plan(model: Model, ranges: Mapping[int, Range], **recipe: float) -> Simulate:
    return IntegerPlan(model, lambda _: 8, ranges, Recipe(**recipe)).simulate


def test_ranges_do_not_come_from_the_samples_that_judge(tmp_path: Path) -> None:
    given = samples(8)
    seen: list[Range] = []

    def use(model: Model, measure: Measure) -> None:
        def simulated(ranges: Mapping[int, Range]) -> Simulate:
            seen.append(ranges[id(model.subgraphs[0].inputs[0])])
            return as_it_is

        assert measure(simulated) == 150.0, "the model itself loses nothing"

    assert trial(layer(), given, tmp_path, use) == 1
    wanted = []
    for part in range(4):
        rest = np.delete(given, [part, part + 4], axis=0)
        wanted.append((float(rest.min()), float(rest.max())))
    assert seen == wanted


def test_clipping_what_few_samples_do_not_show_costs(tmp_path: Path) -> None:
    given = samples(4)
    given[0] *= 3

    def use(model: Model, measure: Measure) -> None:
        tight, wide = (
            measure(lambda ranges, by=by: plan(model, ranges, narrow=by, outputs=by)) for by in (1.0, 4.0)
        )
        assert tight + 10 < wide, (tight, wide)

    assert trial(layer(), given, tmp_path, use) == 1


def test_scores_behind_a_softmax_count(tmp_path: Path) -> None:
    given = 30 * samples(8)

    def use(model: Model, measure: Measure) -> None:
        # Sure of every sample, the softmax itself shows nothing of scores that are a tenth off.
        def simulated(_: object) -> Simulate:
            return lambda copy: as_it_is(scaled(copy))

        assert 25 < measure(simulated) < 33, "20 dB of the scores and 38 dB of the output, half each"

    def scaled(copy: Model) -> Model:
        weight = copy.subgraphs[0].operators[0].inputs[1]
        assert weight is not None
        weight.set_values(weight.values * np.float32(0.9))
        return copy

    assert trial(layer("SOFTMAX"), given, tmp_path, use) == 1


def test_a_copy_that_does_not_run_scores_least(tmp_path: Path) -> None:
    def broken(copy: Model) -> Mapping[tuple[int, int], Operator]:
        places = as_it_is(copy)
        places[0, 0].inputs.clear()
        return places

    def use(model: Model, measure: Measure) -> None:
        assert measure(lambda _: broken) == -math.inf

    assert trial(layer(), samples(4), tmp_path, use) == 1


def test_one_sample_judges_nothing(tmp_path: Path) -> None:
    assert trial(layer(), samples(1), tmp_path, lambda *_: None) == 0


def test_what_a_copy_keeps_is_measured_on_some_calls(tmp_path: Path) -> None:
    save(layer().model, tmp_path / "net.tflite")
    calls = [Call(0, (values,)) for values in samples(40)]

    def scaled(copy: Model) -> Mapping[tuple[int, int], Operator]:
        weight = copy.subgraphs[0].operators[0].inputs[1]
        assert weight is not None
        weight.set_values(weight.values * np.float32(0.9))
        return as_it_is(copy)

    with Runner(RuntimeChoice.parse("litert")) as one, Runner(RuntimeChoice.parse("litert")) as other:
        probe = Probe(tmp_path / "net.tflite", one)
        copies = [Probe(tmp_path / "net.tflite", other, simulate) for simulate in (None, scaled)]
        assert kept_db(probe, copies[0], calls) == 150.0
        assert kept_db(probe, copies[1], calls) == pytest.approx(20.0, abs=0.1)
        copies[0].model.subgraphs[0].operators[0].inputs.clear()
        assert kept_db(probe, copies[0], calls) == -math.inf
