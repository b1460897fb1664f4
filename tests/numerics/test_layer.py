"""One weight rounded for what it meets."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tfl_rewrite.numerics import layer as layer_module
from tfl_rewrite.numerics.gptq import GptqEffort
from tfl_rewrite.numerics.layer import Fit, Layer, LayerRounding, Plan, Trial
from tfl_rewrite.numerics.moments import Drift, Moments
from tfl_rewrite.numerics.products import Dense
from tfl_rewrite.numerics.symmetric import Channels, Levels

Array = np.ndarray[Any, Any]


def rounded(weight: Array, plan: Plan, moments: Moments) -> Layer:
    return LayerRounding(weight, plan, moments, GptqEffort()).layer(bias=False)


@pytest.mark.parametrize("behind", [False, True])
def test_strength_comes_back_only_behind_other_weights(behind: bool) -> None:
    random = np.random.default_rng(2)
    weight = random.standard_normal((8, 24)).astype(np.float32)
    product = Dense(weight.shape)
    moments = Drift(product) if behind else Moments(product)
    for number in range(4):
        vectors = random.standard_normal((200, 24)).astype(np.float32)
        if isinstance(moments, Drift):
            moments.add_pair(vectors, vectors, [number])
        else:
            moments.add(vectors, np.random.default_rng(number))
    plan = Plan(weight.shape, Channels.along(weight.shape, 0), Levels.full(4), centred=False)
    layer = rounded(weight, plan, moments)
    values = layer.integers * layer.scale[:, None]
    # Nothing drifted, so both get the same integers; the strength of the products differs.
    covariance = moments.covariance(centred=False)[0]
    seen = weight @ covariance
    strength = (seen * values).sum() / (seen * weight).sum()
    plain = rounded(weight, plan, moments_of(product, moments))
    weak = (seen * (plain.integers * plain.scale[:, None])).sum() / (seen * weight).sum()
    np.testing.assert_array_equal(layer.integers, plain.integers)
    assert weak < 0.999
    assert np.log(strength) == pytest.approx(np.log(weak) / 2 if behind else np.log(weak), rel=0.02)


def moments_of(product: Dense, other: Moments) -> Moments:
    """The same moments, without what the float model meets."""
    made = Moments(product)
    made.square, made.total, made.count, made.samples = other.square, other.total, other.count, other.samples
    return made


def met(product: Dense, halves: Sequence[Array]) -> Moments:
    moments = Moments(product)
    for half, vectors in enumerate(halves):
        moments.add(vectors.astype(np.float32), np.random.default_rng(half), half)
    return moments


def nearest_scale(weight: Array, levels: Levels) -> Array:
    return (np.abs(weight).max(axis=1) / levels.high).astype(np.float32)


def trial(weight: Array, halves: Sequence[Array], *, centred: bool) -> LayerRounding:
    product = Dense(weight.shape)
    plan = Plan(weight.shape, Channels.along(weight.shape, 0), Levels.narrow(4), centred=centred)
    return LayerRounding(weight, plan, met(product, halves), GptqEffort())


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_errors_on_a_half_are_those_of_the_products(behind: bool, bias: bool) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((1, 5, 12)).astype(np.float32)
    changed = weight + 0.1 * random.standard_normal(weight.shape)
    given = random.standard_normal((1, 5)) if bias else None
    moments = Drift(Dense((5, 12))) if behind else Moments(Dense((5, 12)))
    wanted = (random.standard_normal((2, 300, 12)) + 1).astype(np.float32)
    seen = wanted + 0.3 * random.standard_normal(wanted.shape).astype(np.float32) if behind else wanted
    for half in (0, 1):
        if isinstance(moments, Drift):
            moments.add_pair(seen[half], wanted[half], [half], half)
        else:
            moments.add(seen[half], random, half)
    for half in (0, 1):
        off = wanted[half] @ weight[0].T - seen[half] @ changed[0].T - (0 if given is None else given[0])
        expected = float(np.square(off).mean(axis=0).sum())
        assert moments.error(weight, changed, given, half) == pytest.approx(expected, rel=1e-4)


def test_what_holds_on_both_halves_is_taken() -> None:
    """Inputs far from zero: a bias takes a mean error back that is there in all samples."""
    random = np.random.default_rng(1)
    weight = random.standard_normal((16, 24)).astype(np.float32)
    halves = [random.standard_normal((400, 24)) * 0.3 + 2.0 for _ in range(2)]
    rounding = trial(weight, halves, centred=True)
    found = rounding.tried(nearest_scale(weight, Levels.narrow(4)))
    assert found.best is Fit.BIAS
    assert found.decibels()[Fit.BIAS.value] > found.decibels()[Fit.ROUNDING.value] + 2 > 4
    layer = rounding.layer(bias=True)
    assert layer.bias is not None and layer.bias.shape == (16,)


def test_a_mean_of_one_half_alone_is_not_taken_back() -> None:
    """The mean turns over from one half to the other: what a bias would take back is added there."""
    random = np.random.default_rng(2)
    weight = random.standard_normal((16, 24)).astype(np.float32)
    halves = [random.standard_normal((400, 24)) + side for side in (2.0, -2.0)]
    found = trial(weight, halves, centred=True).tried(nearest_scale(weight, Levels.narrow(4)))
    assert found.best is Fit.ROUNDING
    assert found.errors[Fit.BIAS] > 1.5 * found.errors[Fit.ROUNDING]


def test_what_is_fitted_to_next_to_nothing_is_not_taken() -> None:
    """A single vector in each half: rounding makes up errors along it, and makes them elsewhere."""
    random = np.random.default_rng(3)
    weight = random.standard_normal((16, 24)).astype(np.float32)
    halves = [random.standard_normal((1, 24)) for _ in range(2)]
    found = trial(weight, halves, centred=False).tried(nearest_scale(weight, Levels.narrow(4)))
    assert set(found.errors) == {Fit.NEAREST, Fit.ROUNDING}
    assert found.best is Fit.NEAREST
    assert found.decibels()[Fit.ROUNDING.value] < -1.5


def test_the_simplest_of_equals_is_taken() -> None:
    assert Trial(dict.fromkeys((Fit.NEAREST, Fit.ROUNDING, Fit.BIAS), 1.0)).best is Fit.NEAREST


def test_threads_change_nothing() -> None:
    random = np.random.default_rng(4)
    weight = random.standard_normal((16, 24)).astype(np.float32)
    halves = [random.standard_normal((400, 24)) + 1 for _ in range(2)]
    scale = nearest_scale(weight, Levels.narrow(4))
    alone = trial(weight, halves, centred=True).tried(scale)
    with ThreadPoolExecutor(4) as pool:
        assert trial(weight, halves, centred=True).tried(scale, pool.map) == alone


@pytest.mark.parametrize("behind", [False, True])
def test_trials_one_by_one_say_the_same(behind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(6)
    # Not all of these rows are tried.
    weight = random.standard_normal((600, 24)).astype(np.float32)
    product = Dense(weight.shape)
    moments = Drift(product) if behind else Moments(product)
    for number in range(4):
        vectors = (random.standard_normal((200, 24)) + 1).astype(np.float32)
        if isinstance(moments, Drift):
            moments.add_pair(vectors, vectors + 0.1 * vectors[:, ::-1], [number], number % 2)
        else:
            moments.add(vectors, random, number % 2)
    plan = Plan(weight.shape, Channels.along(weight.shape, 0), Levels.narrow(4), centred=True)
    rounding = LayerRounding(weight, plan, moments, GptqEffort())
    scale = nearest_scale(weight, Levels.narrow(4))
    together = rounding.tried(scale)
    assert set(together.errors) == set(Fit)
    monkeypatch.setattr(layer_module, "_STACKED_NBYTES", 0)
    assert rounding.tried(scale) == together
