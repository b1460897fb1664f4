"""Where the rules of the comparison change their minds: just within a bound and just beyond it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tfl_rewrite.interpreter.interface import TensorFacts
from tfl_rewrite.judge.compare import DEAD_DB, LEAST_SHARE, STEP_DB, compared
from tfl_rewrite.judge.settings import Tolerance
from tfl_rewrite.judge.tally import OutputTally


def tally_of(before, after, **more):
    """The sums over ``[samples, ...]`` arrays."""
    shape = before.shape[1:]
    facts = TensorFacts(
        name="y", tensor="y", dtype=before.dtype.name, shape=shape, shape_signature=shape, **more
    )
    tally = OutputTally(facts, signature=None, position=0)
    for one, two in zip(before, after, strict=True):
        tally.add(one, two)
    return tally


@pytest.mark.parametrize(
    ("squash", "scale", "shown"),
    [
        *(("softmax", 3, True), ("logistic", 3, True), ("one logistic", 3, True)),
        *(("softmax", 1e3, False), ("logistic", 1e2, False), ("tanh", 1, False), ("none", 1, False)),
    ],
)
def test_an_output_shows_what_goes_into_its_last_operator_unless_it_is_sure(squash, scale, shown):
    random = np.random.default_rng(1)
    inside = scale * random.normal(size=(6, 1, 1 if squash == "one logistic" else 5))
    noisy = inside + 0.1 * scale * random.normal(size=inside.shape)

    def given(values):
        if "logistic" in squash:
            return (1 / (1 + np.exp(-values))).astype(np.float32)
        if squash == "softmax":
            shares = np.exp(values - values.max(axis=-1, keepdims=True))
            return (shares / shares.sum(axis=-1, keepdims=True)).astype(np.float32)
        return (np.tanh(values) if squash == "tanh" else values).astype(np.float32)

    parts = [tally_of(given(inside[some]), given(noisy[some])) for some in (slice(3), slice(3, 6))]
    whole = tally_of(given(inside), given(noisy))
    assert math.isnan(whole.inside_db) is not shown
    if shown:
        if squash == "softmax":
            inside, noisy = (each - each.mean(axis=-1, keepdims=True) for each in (inside, noisy))
        known = 10 * math.log10((inside**2).sum() / ((inside - noisy) ** 2).sum())
        assert whole.inside_db == pytest.approx(known, abs=0.01)
        assert parts[0].joined(parts[1]).inside_db == pytest.approx(known, abs=0.01)
        assert tally_of(given(inside), given(inside)).inside_db == math.inf


def judged(before, after, tolerance=None, kernels=None, **more):
    other = None if kernels is None else lambda: tally_of(before, kernels, **more)
    return compared(tally_of(before, after, **more), tolerance or Tolerance(), other)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape)


# -- The tolerance -------------------------------------------------------------------------------------------


def test_what_a_tolerance_asks_of_channels():
    asked = {None: None, 100.0: 85.0, 15.5: 0.5, 15.0: 0.0, 10.0: 0.0, -3.0: 0.0}
    assert {least: Tolerance(min_snr=least).min_channel_snr for least in asked} == asked


def test_none_may_differ_where_all_are_to_agree():
    assert [Tolerance(min_agreement=1.0).may_differ(count) for count in (0, 3, 5, 9, 10)] == [0] * 5
    assert Tolerance(min_agreement=0.9).may_differ(2) == 0 and Tolerance().may_differ(30) == 3


def test_an_error_of_nothing_is_a_bound_too():
    one = noise(1, 4).astype(np.float32)
    bound = Tolerance(max_abs_error=0.0)
    assert judged(one, one.copy(), bound).passed
    found = judged(one, one + np.float32(1e-6), bound)
    assert found.rule == "largest error" and found.short_db == math.inf


def test_how_far_off_the_largest_error_is():
    before = np.array([[8.0, 4.0, 2.0, 1.0]])
    after = before + np.array([[0.5, 0.0, 0.0, 0.0]])
    assert judged(before, after, Tolerance(max_abs_error=0.5)).reason is None
    assert judged(before, after, Tolerance(max_abs_error=0.125)).short_db == pytest.approx(20 * math.log10(4))


def test_what_passes_is_short_of_nothing():
    found = judged(noise(4, 3, 5), noise(4, 3, 5) * 1.001)
    assert found.passed and found.reason is None and found.short_db == 0.0
    assert found.channel.reason is None and found.channel.short_db == 0.0


def test_how_far_off_the_ratio_is():
    before = np.full((1, 2, 8), 1.0) * (1, -1, 1, -1, 1, -1, 1, -1)
    found = judged(before, before * (1 - 10 ** (-12 / 20)), Tolerance(min_snr=20))
    assert found.rule == "snr" and found.short_db == pytest.approx(8.0)


# -- Classes -------------------------------------------------------------------------------------------------


def swapped(margin, scale=1.0):
    """A row and the same with its two largest exchanged, ``margin`` apart; the rows vary by about 1."""
    row = np.array([[[1.0, 1.0 - margin, -1.0, -1.0 + margin]]]) * scale
    return row, row[..., [1, 0, 2, 3]]


@pytest.mark.parametrize(
    ("least", "near", "far"),
    [(20.0, 0.095, 0.096), (None, 0.095, 0.096), (-5.0, 0.72, 0.8), (0.0, 0.72, 0.8)],
)
def test_a_near_tie_is_what_the_ratio_may_exchange(least, near, far):
    """A tenth of what the row varies by at 20 dB, and all of it at most."""
    tolerance = Tolerance(min_snr=least)
    told = "the largest of 4 is another in 1 of 1 rows"
    assert told not in (judged(*swapped(near), tolerance).reason or "")
    assert told in judged(*swapped(far), tolerance).reason


def test_a_near_tie_among_numbers_too_large_to_square():
    assert "largest of 4 is another" in judged(*swapped(0.5, 1e200)).reason


def test_one_step_is_a_near_tie_and_two_are_none():
    scores = np.array([[[9, 8, 0]]], np.int8)
    quantized = {"scales": (0.1,), "zero_points": (0,)}
    one, two = np.array([[[8, 9, 0]]], np.int8), np.array([[[7, 9, 0]]], np.int8)
    assert "largest of 3" not in (judged(scores, one, **quantized).reason or "")
    scores[0, 0, 1] = 7
    assert "largest of 3" in judged(scores, two, **quantized).reason


# -- Channels ------------------------------------------------------------------------------------------------


def shares(third):
    """Rows of probabilities whose last one is given."""
    first = 0.4 + 0.2 * np.random.default_rng(0).random(len(third))
    return np.stack([first, 1 - first - third, third], axis=-1).reshape(-1, 1, 3).astype(np.float32)


def constant(rows, value=0.1):
    after = rows.copy()
    after[..., 2] = value
    return after


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_probabilities_that_hardly_vary_do_not_count(factor):
    swinging = shares(0.1 + LEAST_SHARE * factor * np.resize([1, -1], 16))
    # One value makes the variation: only the distance between the extremes tells.
    jumping = shares(0.1 + 4 * LEAST_SHARE * factor * np.eye(16)[3] - 1e-3 * np.eye(16)[5] * factor)
    for rows in (swinging, jumping):
        found = judged(rows, constant(rows))
        assert found.passed is (factor < 1), found.reason
        assert found.passed or "channel 2 of axis 1 does not vary any more" in found.reason


@pytest.mark.parametrize("largest", [200, 150])
def test_probabilities_of_many_classes_are_some_although_most_round_to_nothing(largest):
    rows = np.zeros((16, 1, 500), np.uint8)
    rows[..., 0] = largest + np.arange(16)[:, None] % 3
    after = rows.copy()
    rows[[3, 8], :, 7] = 1
    found = judged(rows, after, scales=(1 / 256,), zero_points=(0,))
    # The sum of a row is 0.78, and 0.59.
    assert found.passed is (largest == 200), found.reason


@pytest.mark.parametrize("steps", [5, 6])
def test_probabilities_count_in_what_their_steps_are_worth(steps):
    third = 25 + steps * np.eye(16, dtype=np.int64)[3] - np.eye(16, dtype=np.int64)[5] * 0
    third[5] += 1
    first = 100 + np.arange(16)
    rows = np.stack([first, 256 - first - third, third], axis=-1).reshape(-1, 1, 3).astype(np.uint8)
    found = judged(rows, constant(rows, 25), scales=(1 / 256,), zero_points=(0,))
    assert found.passed is (steps / 256 < 4 * LEAST_SHARE), found.reason


def test_small_numbers_that_are_no_probabilities_count():
    rows = (40 + 1e-3 * noise(16, 1, 1)).astype(np.float64)
    for left in (0.0, 1e-3):
        found = judged(rows, 40 + left * (rows - 40))
        assert found.snr_db > 80 and found.reason == "it does not vary any more"


def test_the_original_is_not_asked_again_without_need():
    def never():
        raise AssertionError("other kernels were run")

    rows = noise(8, 1, 5)
    assert compared(tally_of(rows, rows * 1.001), Tolerance(), never).passed
    dead = rows.copy()
    dead[..., 3] = 0
    with pytest.raises(AssertionError, match="other kernels were run"):
        compared(tally_of(rows, dead), Tolerance(), never)


def test_what_is_dead_is_not_untold():
    rows = noise(8, 1, 5)
    dead = rows.copy()
    dead[..., 3] = 0
    assert judged(rows, dead).untold is None
    # Two that one value alone moves are counted, and the first is named.
    rows[..., 1:3] = 0
    rows[4, 0, 1:3] = 0.01
    still = rows.copy()
    still[4, 0, 1:3] = 0
    assert judged(rows, still).untold == "2 channels, such as 1, of axis 1: one value alone moves"


@pytest.mark.parametrize(("samples", "told"), [(2, True), (3, True), (4, False)])
def test_how_many_values_tell_of_a_channel(samples, told):
    rows = noise(samples, 1, 5)
    untold = judged(rows, rows * 1.001).untold
    assert untold == (f"channels: {samples} values of each tell too little" if told else None)


def repeated_at(rows, decibels, where):
    """What other kernels give: a slice of it with so much noise."""
    other = rows.copy()
    one = rows[where]
    error = noise(*one.shape, seed=5)
    error -= error.mean()
    about = one - one.mean()
    other[where] = one + error * math.sqrt((about**2).sum() / (error**2).sum() / 10 ** (decibels / 10))
    return other


@pytest.mark.parametrize("least", [20.0, 30.0])
@pytest.mark.parametrize("beyond", [-0.5, 0.5])
def test_how_well_other_kernels_must_repeat_a_channel(least, beyond):
    """By 10 dB more than is asked of the rewrite."""
    rows = noise(8, 1, 6, 5) * (1000, 1000, 1000, 1, 1000)
    dead = rows.copy()
    dead[..., 3] = 0
    kernels = repeated_at(rows, least + 10 + beyond, np.s_[..., 3])
    found = judged(rows, dead, Tolerance(min_snr=least), kernels)
    assert found.passed is (beyond < 0), found.reason


def test_other_kernels_that_tell_nothing_of_a_channel_excuse_it_not():
    rows = noise(8, 1, 5) * (1000, 1000, 1000, 1, 1000)
    dead = rows.copy()
    dead[..., 3] = 0
    tally = tally_of(rows, dead)
    for other in (
        None,
        tally_of(rows[..., :4], rows[..., :4]),
        tally_of(rows[:, 0, 0, None], rows[:, 0, 0, None]),
    ):
        assert not compared(tally, Tolerance(), lambda other=other: other).passed


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_slices_along_other_axes_are_excused_by_their_distance(factor):
    """Axis 0 counts no channels here: what varies by less than other kernels may err by is excused."""
    rows = noise(6, 5, 30) * 100
    rows[:, 2] = 0.1 * noise(6, 30)
    dead = rows.copy()
    dead[:, 2] = 0
    span = rows[:, 2].max() - rows[:, 2].min()
    kernels = rows.copy()
    # An error of this size is allowed for at 20 dB and 10 more.
    kernels[0, 0, 0] += factor * span / 10 ** (30 / 20)
    assert not judged(rows, dead).passed
    found = judged(rows, dead, kernels=kernels)
    assert found.passed is (factor > 1), found.reason
    assert not compared(tally_of(rows, dead), Tolerance(), lambda: None).passed


def test_counts_that_other_kernels_do_not_repeat_are_excused():
    rows = np.random.default_rng(0).integers(0, 9, (10, 1, 30)).astype(np.int32)
    stuck = rows.copy()
    stuck[..., 7] = 3
    other = rows.copy()
    assert not judged(rows, stuck, kernels=other).passed
    other[0, 0, 0] += 1
    assert judged(rows, stuck, kernels=other).passed


@pytest.mark.parametrize("beyond", [-1.0, 1.0])
def test_a_channel_that_varies_next_to_nothing_is_dead(beyond):
    rows = noise(64, 1, 5) * (1000, 1000, 1000, 1, 1000)
    after = rows.copy()
    after[..., 3] *= 10 ** ((DEAD_DB + beyond) / 20)
    found = judged(rows, after)
    assert not found.passed and found.channel.dead is (beyond < 0)
    said = "does not vary any more" if beyond < 0 else "keeps 1.0 dB"
    assert f"channel 3 of axis 1 {said}" in found.reason


def differing(*samples, kept=1.001):
    """Samples that differ in shape, and a rewrite that keeps them but for channel 3."""
    facts = TensorFacts(name="y", tensor="y", dtype="float64", shape=(1, 5), shape_signature=(-1, -1))
    tally = OutputTally(facts, signature=None, position=0)
    for one in samples:
        two = one * 1.001
        two[:, 3] = one[:, 3] * kept
        tally.add(one, two)
    return compared(tally, Tolerance())


def test_channels_of_samples_that_differ_in_length():
    samples = [noise(count, 5, seed=count) * (100, 100, 100, 1, 100) for count in (4, 6, 9)]
    assert differing(*samples).passed
    assert "channel 3 of axis 1 does not vary any more" in differing(*samples, kept=0.0).reason


def test_what_rests_is_seen_in_samples_that_differ_in_length():
    samples = [noise(count, 5, seed=count) for count in (14, 16, 19)]
    for one in samples:
        one[:, 3] = 0
    samples[1][0, 3], samples[2][5, 3] = 0.1, 0.001
    assert differing(*samples).passed
    assert "channel 3 of axis 1 does not vary any more" in differing(*samples, kept=0.0).reason


@pytest.mark.parametrize("places", [4, 40])
def test_samples_that_differ_in_channels_are_judged_as_a_whole(places):
    samples = [noise(places, count, seed=count) for count in (5, 6, 7)]
    found = differing(*samples)
    assert found.passed and found.channel is None


def test_what_never_varied_cannot_stop():
    rows = noise(8, 1, 5)
    rows[..., 3] = 7
    after = rows.copy()
    after[..., 3] = 7.01
    found = judged(rows, after)
    assert found.passed and found.untold is None


def test_places_of_which_one_value_moves_are_not_named():
    rows = noise(6, 5, 30)
    rows[:, 2] = 0
    rows[4, 2, 7] = 0.01
    after = rows.copy()
    after[4, 2, 7] = 0
    found = judged(rows, after)
    assert found.passed and found.untold is None


@pytest.mark.parametrize("moved", [17, 18])
def test_a_tenth_of_a_place_must_move_to_be_missed(moved):
    rows = noise(6, 5, 30)
    rows[:, 2] = 0
    rows[0, 2, :moved] = 0.01
    after = rows.copy()
    after[:, 2] = 0
    assert judged(rows, after).passed is (moved < 18)


def test_how_far_off_a_channel_is():
    """By what is asked of a channel at 40 dB, 25 dB, less what it keeps."""
    rows = noise(64, 1, 5) * (1000, 1000, 1000, 1, 1000)
    after = repeated_at(rows, 24.0, np.s_[..., 3])
    found = judged(rows, after, Tolerance(min_snr=40))
    assert found.rule == "channel" and "channel 3 of axis 1 keeps 24.0 dB, less than 25 dB" in found.reason
    assert found.short_db == found.channel.short_db == pytest.approx(1.0, abs=1e-3)
    dead = rows.copy()
    dead[..., 3] = rows[..., 3].mean()
    assert judged(rows, dead, Tolerance(min_snr=40)).short_db == pytest.approx(25.0, abs=1e-3)
    # At least a step, where nothing but that it varies is asked of it.
    assert judged(rows, dead, Tolerance(min_snr=10)).short_db == pytest.approx(STEP_DB)


def test_a_number_alone_is_no_channel_of_many():
    rows = 40 + 0.1 * noise(64, 1, 1)
    found = judged(rows, repeated_at(rows, 3.0, np.s_[...]))
    assert found.reason == "what varies of it keeps 3.0 dB, less than 5 dB"


def test_a_flag_may_be_wrong_in_a_quarter_of_the_samples():
    before = np.arange(40).reshape(-1, 1, 1) % 2 == np.arange(30) % 2
    for count, passed in ((9, True), (11, False)):
        after = before.copy()
        after[:count, 0, 7] ^= True
        assert judged(before, after).passed is passed
