"""Sums over activations, what is believed of them, and what a drift asks of the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfl_rewrite.numerics import moments as module
from tfl_rewrite.numerics.moments import Drift, Moments, memory_rounds, parts_of
from tfl_rewrite.numerics.products import Dense

Array = np.ndarray[Any, Any]


def filled(samples: list[Array]) -> Moments:
    found = Moments(Dense((1, samples[0].shape[-1])))
    for number, sample in enumerate(samples):
        found.add(sample.astype(np.float32), np.random.default_rng(number))
    return found


def test_sums_are_those_of_numpy() -> None:
    random = np.random.default_rng(0)
    samples = [random.standard_normal((9, 5)) + 1 for _ in range(5)]
    found = filled(samples)
    halves = [np.concatenate(samples[0::2]), np.concatenate(samples[1::2])]
    for half, rows in enumerate(halves):
        np.testing.assert_allclose(found.square[half, 0], rows.T @ rows, rtol=1e-4)
        np.testing.assert_allclose(found.total[half, 0], rows.sum(axis=0), rtol=1e-5)
    assert found.count.tolist() == [27, 18]
    np.testing.assert_allclose(found.mean()[0], np.concatenate(samples).mean(axis=0), rtol=1e-5)


def test_long_vectors_are_cut_and_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parts_of(10, 4) == 5 and parts_of(12, 4) == 3 and parts_of(7, 4) == 7 and parts_of(4, 4) == 1
    monkeypatch.setattr(module, "parts_of", lambda inner: parts_of(inner, 4))
    random = np.random.default_rng(1)
    rows = random.standard_normal((20, 8))
    found = filled([rows, rows])
    assert found.parts == 2 and found.square.shape == (2, 2, 4, 4)
    for part in range(2):
        cut = rows[:, 4 * part : 4 * part + 4]
        np.testing.assert_allclose(found.square[0, part], cut.T @ cut, rtol=1e-4, atol=1e-5)
    weight = random.standard_normal((1, 3, 8))
    assert (found.joined(found.split(weight)) == weight).all()


@pytest.mark.parametrize("inner", [64000, 1 << 20])
def test_moments_of_very_long_vectors_take_little(inner: int) -> None:
    """A layer of a million inputs, each part as long as its bytes allow."""
    product = Dense((2, inner))
    assert Moments.nbytes_of(product) <= module.LARGEST_NBYTES
    assert inner % module.parts_for(product) == 0
    assert module.parts_for(Dense((2, 6912))) == 3


def test_many_samples_are_believed_and_few_are_not() -> None:
    random = np.random.default_rng(2)
    mix = random.standard_normal((40, 40))
    many = filled([random.standard_normal((4000, 40)) @ mix for _ in range(6)])
    few = filled([random.standard_normal((1, 40)) @ mix for _ in range(6)])
    alone = filled([random.standard_normal((4000, 40)) @ mix])
    truth = mix.T @ mix
    index = np.arange(40)

    def kept(found: Moments) -> float:
        made = found.covariance(centred=True)[0].copy()
        made[index, index] = 0
        wanted = truth.copy()
        wanted[index, index] = 0
        return float(np.vdot(made, wanted) / np.vdot(wanted, wanted))

    assert kept(many) == pytest.approx(1, abs=0.1)
    assert kept(few) < 0.75
    assert kept(alone) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("centred", [True, False])
def test_covariance_is_positive_definite(centred: bool) -> None:
    random = np.random.default_rng(3)
    rows = np.maximum(random.standard_normal((3, 50)), 0)
    rows[:, :5] = 0
    made = filled([rows, rows * 0.5, rows + 0.1]).covariance(centred=centred)
    assert np.linalg.eigvalsh(made[0]).min() > 0


def test_what_rested_in_few_samples_is_not_taken_for_dead() -> None:
    random = np.random.default_rng(6)
    # Each element is active in one of four samples, as the pixels of a picture are.
    samples = [random.random((1, 60)) * (random.random((1, 60)) < 0.25) for _ in range(8)]
    rested = ~np.concatenate(samples).any(axis=0)
    assert rested.any()
    made = np.einsum("gii->gi", filled(samples).covariance(centred=True))[0]
    assert made[rested].min() > 0.2 * made.mean()
    # Where every sample has many vectors that agree, what rests stays nearly at rest.
    active = (np.arange(60) < 30) * 1.0
    sure = filled([random.standard_normal((900, 60)) * active for _ in range(8)])
    found = np.einsum("gii->gi", sure.covariance(centred=True))[0]
    assert found[active == 0].max() < 0.02 * found.mean()


def test_covariance_stays_positive_definite_where_halves_differ() -> None:
    random = np.random.default_rng(7)
    # Neighbours are nearly equal, powers differ from sample to sample: so it is in pictures.
    sizes = np.repeat([[4.0, 1.0, 1.0], [2.0, 2.0, 2.0]], 9, axis=1)
    samples = []
    for number in range(2):
        common = random.standard_normal((4000, 3)).repeat(9, axis=1)
        samples.append((common + 0.05 * random.standard_normal((4000, 27))) * sizes[number])
    for centred in (True, False):
        made = filled(samples).covariance(centred=centred)
        assert np.linalg.eigvalsh(made[0]).min() > 0


def test_uncentred_has_the_mean_in_it() -> None:
    random = np.random.default_rng(4)
    found = filled([random.standard_normal((500, 4)) + 3 for _ in range(4)])
    apart = found.covariance(centred=False) - found.covariance(centred=True)
    np.testing.assert_allclose(apart[0], np.outer(found.mean()[0], found.mean()[0]), rtol=1e-6)


def test_infinite_activations_are_refused() -> None:
    with pytest.raises(ValueError, match="infinite"):
        filled([np.array([[1.0, np.inf]])])


def test_a_drift_is_made_up_for() -> None:
    random = np.random.default_rng(5)
    # What is met lacks a tenth of one input and leaks it into another.
    bend = np.eye(6)
    bend[0, 0], bend[0, 1] = 0.9, 0.3
    found = Drift(Dense((2, 6)))
    seen = []
    for number in range(4):
        wanted = random.standard_normal((800, 6)).astype(np.float32)
        met = (wanted @ bend + 0.02 * random.standard_normal((800, 6))).astype(np.float32)
        seen.append((met, wanted))
        found.add_pair(met, wanted, [number])
    weight = random.standard_normal((1, 2, 6)).astype(np.float32)
    target = found.target(weight, found.covariance(centred=True), centred=True)
    before = after = 0.0
    for met, wanted in seen:
        before += float(((met - wanted) @ weight[0].T).var())
        after += float((met @ target[0].T - wanted @ weight[0].T).var())
    assert after < 0.05 * before


def test_rounds_fit_in_memory() -> None:
    products = [Dense((4, 100)), Dense((4, 100)), Dense((4, 400)), Dense((4, 10))]
    need = [Moments.nbytes_of(product) for product in products]
    assert need[0] == Moments(products[0]).square.nbytes
    assert memory_rounds(products, 2 * need[0]) == [[0, 1], [2], [3]]
    assert memory_rounds(products, sum(need)) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("value", [1e17, 1e38, -1e38])
def test_what_overflows_when_squared_is_refused(value: float) -> None:
    """Before anything is added: what was seen until then is still right."""
    moments = Moments(Dense((1, 5)))
    stream = np.random.default_rng(0)
    with np.errstate(all="raise"), pytest.raises(ValueError, match="too large for its squares"):
        moments.add(np.full((9, 5), value, np.float32), stream)
    assert moments.samples == 0 and not moments.square.any()
