"""The metrics and the rules, on arrays."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfl_rewrite.cli.render_judge import verdict_lines
from tfl_rewrite.errors import UsageError
from tfl_rewrite.interpreter.interface import TensorFacts
from tfl_rewrite.judge.compare import compared
from tfl_rewrite.judge.settings import Tolerance
from tfl_rewrite.judge.tally import OutputTally, joined
from tfl_rewrite.judge.verdict import Verdict


def facts(dtype="float32", shape=(1, 4), **more):
    return TensorFacts(name="y", tensor="y", dtype=dtype, shape=shape, shape_signature=shape, **more)


def judged(before, after, tolerance=None, **more):
    before, after = np.asarray(before), np.asarray(after)
    dtype = "string" if before.dtype.kind == "O" else before.dtype.name
    tally = OutputTally(facts(dtype, before.shape, **more), signature=None, position=0)
    tally.add(before, after)
    return compared(tally, tolerance or Tolerance())


def f32(*values):
    return np.array([values], dtype=np.float32)


def test_snr_is_that_of_the_formula():
    before = f32(1, 2, 3, 4)
    after = before + f32(0.1, -0.1, 0.1, 0.1)
    result = judged(before, after)
    assert result.snr_db == pytest.approx(10 * math.log10(30 / 0.04), abs=1e-4)
    assert result.rmse == pytest.approx(0.1, abs=1e-6)
    assert result.max_abs_error == pytest.approx(0.1, abs=1e-6)
    norms = np.linalg.norm(before) * np.linalg.norm(after)
    assert result.cosine == pytest.approx(float((before * after).sum() / norms))
    assert result.passed and not result.bit_exact and not result.notes


@pytest.mark.parametrize(("snr", "passed"), [(25, True), (21, True), (19, False)])
def test_snr_bounds(snr, passed):
    before = np.random.default_rng(0).standard_normal((1, 1000))
    error = np.random.default_rng(1).standard_normal(before.shape)
    error *= math.sqrt((before**2).sum() / (error**2).sum() / 10 ** (snr / 10))
    result = judged(before, before + error)
    assert result.snr_db == pytest.approx(snr)
    assert result.passed is passed
    assert not any("noticeable" in note for note in result.notes)
    noticed = judged(before, before + error, Tolerance(min_snr=15))
    assert any("noticeable" in note for note in noticed.notes) is (snr == 19)
    assert judged(before, before + error, Tolerance(min_snr=None)).passed


def test_samples_are_summed_not_averaged():
    tally = OutputTally(facts(), signature=None, position=0)
    tally.add(f32(100, 0, 0, 0), f32(100, 0, 0, 0))
    tally.add(f32(0.1, 0, 0, 0), f32(0.0, 0, 0, 0))
    assert compared(tally, Tolerance()).snr_db == pytest.approx(60, abs=0.01)


def test_max_abs_error_is_one_more_bound():
    before, after = f32(1, 2, 3, 4), f32(1, 2, 3, 4.1)
    assert judged(before, after, Tolerance(max_abs_error=0.2)).passed
    result = judged(before, after, Tolerance(max_abs_error=0.05))
    assert not result.passed and "0.05" in result.reason
    assert not judged(before, -before, Tolerance(max_abs_error=100)).passed
    # Quantized outputs count in real values: 3 steps of 0.1.
    steps = [np.array([[50, 60, 70, 80 + more]], dtype=np.int8) for more in (0, 3)]
    quantized = {"scales": (0.1,), "zero_points": (0,)}
    assert judged(*steps, Tolerance(max_abs_error=0.31), **quantized).passed
    assert not judged(*steps, Tolerance(max_abs_error=0.29), **quantized).passed


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f32(1, np.nan), f32(1, 2)),
        (f32(1, 2), f32(1, np.nan)),
        (f32(np.nan, 2), f32(2, np.nan)),
        (f32(1, np.inf), f32(1, 3e38)),
        (f32(1, np.inf), f32(1, -np.inf)),
        (f32(1, np.nan), f32(1, np.inf)),
    ],
)
def test_nonfinite_on_one_side_is_a_difference(before, after):
    result = judged(before, after, Tolerance(min_snr=None))
    assert not result.passed
    assert result.rule == "finite"
    assert result.nonfinite_mismatches >= 1


def test_nonfinite_at_the_same_places_is_none():
    result = judged(f32(np.nan, np.inf, -np.inf, 4), f32(np.nan, np.inf, -np.inf, 4.1))
    assert result.passed and result.snr_db == pytest.approx(32, abs=0.1)
    result = judged(f32(np.nan, np.nan), f32(np.nan, np.nan))
    assert result.passed and result.silence == "all its values are NaN"
    assert not judged(f32(np.nan, np.nan), f32(np.nan, 0)).passed


def test_near_zero_is_measured_against_the_output_itself():
    """Metres, volts and probabilities may all be small: what matters is how much of them is kept."""
    before = np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32) * np.float32(1e-6)
    assert judged(before, before * np.float32(1.01)).passed
    result = judged(before, before * 0)
    assert not result.passed and result.rule == "snr" and result.short_db == pytest.approx(20)
    assert not judged(f32(0, 0, 0, 0), f32(0, 1e-12, 0, 0)).passed


def samples_of(before, after, tolerance=None, kernels=None, **more):
    """Judges ``[samples, ...]`` arrays, a sample at a time; ``kernels`` are the original's from elsewhere."""
    tallies = []
    for other in (after, kernels):
        tally = OutputTally(facts(before.dtype.name, before.shape[1:], **more), signature=None, position=0)
        for number in range(len(before) if other is not None else 0):
            tally.add(before[number], other[number])
        tallies.append(tally)
    return compared(
        tallies[0], tolerance or Tolerance(), (lambda: tallies[1]) if kernels is not None else None
    )


def test_a_channel_that_drowns_beside_stronger_ones():
    random = np.random.default_rng(0)
    boxes = random.normal(300, 100, (4, 1, 50, 4))
    scores = random.uniform(0, 1, (4, 1, 50, 1))
    before = np.concatenate([boxes, scores], axis=-1).astype(np.float32)
    dead, weak, well = before.copy(), before.copy(), before * np.float32(1.001)
    dead[..., 4] = 0
    weak[..., 4] += random.normal(0, 0.3, (4, 1, 50))
    result = samples_of(before, dead)
    assert result.snr_db > 50 and not result.passed
    assert result.rule == "channel" and result.channel.dead
    assert (result.channel.axis, result.channel.number) == (2, 4)
    assert "channel 4 of axis 2 does not vary any more" in result.reason
    result = samples_of(before, weak)
    assert not result.passed and result.channel.number == 4 and -3 < result.channel.snr_db < 3
    assert samples_of(before, weak, Tolerance(min_snr=None)).passed
    result = samples_of(before, well)
    assert result.passed and result.channel.snr_db > 40
    # The same along axis 1, where channels come first.
    turned = [np.moveaxis(array, -1, 2).copy() for array in (before, dead)]
    result = samples_of(*turned)
    assert not result.passed and (result.channel.axis, result.channel.number) == (1, 4)


def test_a_channel_of_two_values_may_rest_where_more_are_judged_besides():
    random = np.random.default_rng(0)
    before = random.normal(0, 100, (2, 1, 40)).astype(np.float32)
    before[1, 0, 7] = before[0, 0, 7] + 0.2
    after = np.round(before)
    after[:, 0, 7] = after[0, 0, 7]
    assert "channel 7 of axis 1 does not vary any more" in samples_of(before, after).reason
    result = samples_of(before, after, Tolerance(few_channels=True))
    assert result.passed and result.untold == "channels: 2 values of each tell too little"
    more = [np.concatenate([array] * 2) for array in (before, after)]
    assert not samples_of(*more, Tolerance(few_channels=True)).passed


def test_a_channel_counts_only_if_its_signal_is_real():
    random = np.random.default_rng(0)
    before = np.concatenate([random.normal(300, 100, (4, 9, 4)), random.normal(0, 1e-5, (4, 9, 1))], -1)
    before = before.astype(np.float32)
    after, elsewhere = before.copy(), before.copy()
    after[..., 4] = 0
    assert not samples_of(before, after, kernels=elsewhere).passed
    # Other kernels give something else there: rounding, not signal.
    elsewhere[..., 4] = random.normal(0, 1e-5, (4, 9))
    assert samples_of(before, after, kernels=elsewhere).passed
    # One value alone makes the variation.
    lonely = np.zeros((8, 1, 3), np.float32)
    lonely[..., 0] = random.normal(size=(8, 1))
    lonely[3, 0, 2] = 0.01
    gone = lonely.copy()
    gone[3, 0, 2] = 0
    assert samples_of(lonely, gone).passed


def test_a_class_of_one_sample_that_is_lost_is_named():
    random = np.random.default_rng(0)
    before = np.abs(random.normal(0, 1e-3, (8, 10)))
    before[np.arange(8), np.arange(8)] += 5
    before[7, 9] = 0.4
    before = (before / before.sum(-1, keepdims=True)).astype(np.float32)
    after = before.copy()
    after[:, 9] *= np.float32(1e-3)
    result = samples_of(before, after)
    assert result.passed and result.untold == "channel 9 of axis 0: one value alone moves"
    assert samples_of(before, before * np.float32(1.01)).untold is None


def test_what_varies_counts_beside_a_large_offset():
    random = np.random.default_rng(0)
    before = (40 + random.normal(0, 0.1, (8, 1, 1))).astype(np.float32)
    result = samples_of(before, np.full_like(before, 40))
    assert result.snr_db > 50 and not result.passed and result.channel.dead
    assert result.reason == "it does not vary any more"
    assert samples_of(before, before + np.float32(0.01)).passed


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((1, 5), 1),
        ((1, 25, 13, 13), 1),
        ((1, 3, 5, 8, 8), 2),
        ((1, 3, 5, 300), 2),
        ((5, 20, 20), 0),
        ((5, 300), 0),
        ((1, 110, 30), 1),
    ],
)
def test_what_does_not_vary_any_more_is_seen_in_any_layout(shape, axis):
    rng = np.random.default_rng(3)
    before = rng.normal(100, 30, (5, *shape)).astype(np.float32)
    where = (slice(None),) * (axis + 1) + (3,)
    before[where] /= 1000  # A score beside boxes in pixels.
    after = before.copy()
    after[where] = 0.5
    result = samples_of(before, after)
    assert result.snr_db > 20 and not result.passed and result.channel.dead
    assert (result.channel.axis, result.channel.number) == (axis, 3)
    assert f"channel 3 of axis {axis} does not vary any more" in result.reason
    assert samples_of(before, after, Tolerance(min_snr=None)).passed
    assert samples_of(before, before * np.float32(1.001)).passed


@pytest.mark.parametrize("shape", [(40, 1), (1, 40, 1), (1, 40, 30, 1)])
@pytest.mark.parametrize(("span", "passes"), [(15.0, True), (20.0, False)])
def test_places_of_one_channel_may_rest_within_the_tolerance(shape, span, passes):
    """Anchors where nothing is, on a coarse grid: the output varies by 30, and may be off by 5 dB less."""
    rng = np.random.default_rng(3)
    before = rng.normal(0, 30, (2, *shape)).astype(np.float32)
    axis = 1 if len(shape) == 2 else 2
    where = (slice(None),) * axis + (3,)
    before[where] = np.linspace(0, span, before[where].size).reshape(before[where].shape)
    after = before.copy()
    after[where] = span / 2
    result = samples_of(before, after, Tolerance(min_snr=20))
    assert result.snr_db > 20 and result.passed is passes, result.reason


@pytest.mark.parametrize(("places", "resting", "passes"), [(40, 4, True), (40, 30, False), (8, 1, False)])
def test_what_rests_is_no_background_where_most_does_or_places_are_few(
    places: int, resting: int, passes: bool
) -> None:
    rng = np.random.default_rng(3)
    before = rng.normal(0, 30, (20, places, 1)).astype(np.float32)
    before[:, :resting] = rng.uniform(0, 3, (20, resting, 1))
    after = before.copy()
    after[:, :resting] = 1.5
    result = samples_of(before, after, Tolerance(min_snr=20))
    assert result.snr_db > 20 and result.passed is passes, result.reason


def test_one_outlier_does_not_hide_what_is_dead():
    before = np.full((16, 1, 2), 300.0, np.float32)
    before[:, 0, 1] += np.arange(16) * 0.01
    before[7, 0, 1] += 40
    after = before.copy()
    after[:, 0, 1] = 300.1
    result = samples_of(before, after)
    assert result.snr_db > 25 and result.rule == "channel" and "does not vary" in result.reason
    # A number alone.
    result = samples_of(before[:, 0, 1:], after[:, 0, 1:])
    assert result.snr_db > 25 and result.reason == "it does not vary any more"


def test_what_one_value_alone_moves_is_lost_to_rounding_and_named():
    before = np.zeros((8, 1, 4), np.float32)
    before[..., :3] = np.random.default_rng(0).normal(0, 10, (8, 1, 3))
    before[5, 0, 3] = 0.01
    after = before.copy()
    after[5, 0, 3] = 0
    result = samples_of(before, after)
    assert result.passed and "channel 3 of axis 1: one value alone moves" in result.untold
    assert samples_of(before, before).untold is None
    # Along an axis that counts places, a few are nothing to speak of.
    places = np.random.default_rng(1).normal(0, 10, (4, 1, 30, 30, 2)).astype(np.float32)
    places[:, :, 9] = 0
    places[:, 0, 9, 3, 0] = (0.01, 0.02, 0.03, 0.04)
    after = places.copy()
    after[:, :, 9] = 0
    assert samples_of(places, after).passed


def test_two_samples_tell_what_is_constant_and_no_more_of_a_channel():
    rng = np.random.default_rng(0)
    before = rng.normal(0, 1, (2, 1, 500)).astype(np.float32)
    before[1, 0, 9] = before[0, 0, 9] + np.float32(0.02)
    after = before + rng.normal(0, 0.01, before.shape).astype(np.float32)
    after[1, 0, 9] = after[0, 0, 9] + np.float32(0.001)
    result = samples_of(before, after)
    assert result.passed and "2 values of each tell too little" in result.untold
    assert samples_of(before, before).untold is None
    after[:, 0, 9] = 0.3
    assert "channel 9 of axis 1 does not vary any more" in samples_of(before, after).reason


def test_what_other_kernels_do_not_repeat_is_not_dead():
    rng = np.random.default_rng(0)
    before = rng.normal(0, 100, (8, 1, 5, 7)).astype(np.float32)
    before[:, :, 2] = rng.normal(0, 1e-4, (8, 1, 7))
    after = before.copy()
    after[:, :, 2] = 0
    assert not samples_of(before, after).passed
    other = before.copy()
    other[:, :, 2] = 0
    assert samples_of(before, after, kernels=other).passed


@pytest.mark.parametrize("axis", [1, 3], ids=["channels first", "channels last"])
def test_a_sensitive_channel_excuses_no_dead_one_beside_it(axis):
    """What other kernels do not repeat is excused channel by channel, not by the largest error of all.

    One value makes nearly all of the variation of a channel: only that it is constant tells that it is dead.
    """
    rng = np.random.default_rng(0)
    before = rng.normal(0, 100, (8, 1, 6, 6, 5)).astype(np.float32)
    before[..., 1:4] = rng.normal(0, 0.01, (8, 1, 6, 6, 3))
    noise = before + rng.normal(0, 1, before.shape) * (
        1,
        0,
        0,
        0,
        0,
    )  # well repeated; the largest error of all
    noise = noise.astype(np.float32)
    before[2, 0, 3, 3, 1:4] += 5
    noise[2, 0, 3, 3, 2:4] += 5
    noise[6, 0, 1, 1, 1] += 5  # channel 1 has it elsewhere

    def result_of(*dead):
        after = before.copy()
        after[..., list(dead)] = 0.25
        turned = [np.moveaxis(item, -1, axis + 1).copy() for item in (before, after, noise)]
        return samples_of(turned[0], turned[1], kernels=turned[2])

    assert result_of(1).passed
    for dead in ((3,), (1, 3), (1, 2, 3)):
        found = result_of(*dead)
        assert not found.passed and found.channel.dead, dead
        assert found.channel.axis == axis and found.channel.number in dead and found.channel.number != 1
    assert "2 of 5 channels" in result_of(1, 2, 3).reason
    assert f"channel 3 of axis {axis} does not" in result_of(1, 3).reason


@pytest.mark.parametrize("dtype", ["int32", "int64", "bool", "uint8"])
def test_flags_and_numbers_that_are_stuck(dtype):
    rng = np.random.default_rng(0)
    before = rng.integers(0, 2, (10, 1, 30)).astype(dtype)
    after = before.copy()
    after[..., 7] = 0
    result = samples_of(before, after)
    assert result.equal_share > 0.95 and "channel 7 of axis 1 does not vary any more" in result.reason


def test_a_flag_that_is_wrong_more_often_than_a_quarter():
    before = np.random.default_rng(0).random((20, 1, 30)) < 0.5
    after = before.copy()
    after[..., 7] ^= True
    result = samples_of(before, after)
    assert result.equal_share > 0.95 and "channel 7 of axis 1 keeps -6.0 dB" in result.reason
    after = before.copy()
    after[:2, 0, 7] ^= True
    assert samples_of(before, after).passed


@given(seed=st.integers(0, 1 << 30), cut=st.integers(1, 5))
@settings(max_examples=30)
def test_still_slices_of_parts_add_up(seed, cut):
    rng = np.random.default_rng(seed)
    before = rng.integers(0, 3, (6, 2, 3, 4)).astype(np.float32)
    after = before * (rng.random((1, 2, 3, 4)) < 0.3) + rng.integers(0, 2)
    whole = samples_of(before, after).tally
    both = joined(
        [samples_of(b, a).tally for b, a in zip(np.split(before, [cut]), np.split(after, [cut]), strict=True)]
    )
    for axis, one in whole.stillness.axes.items():
        two = both.stillness.axes[axis]
        assert np.array_equal(one.still, two.still)
        dead = one.still
        for name in ("low", "high", "rest", "count", "moved"):
            assert np.array_equal(getattr(one, name)[dead], getattr(two, name)[dead])
        moved = np.moveaxis(after, axis + 1, 0).reshape(after.shape[axis + 1], -1)
        assert np.array_equal(one.still, moved.min(axis=1) == moved.max(axis=1))


def test_channels_of_parts_add_up():
    random = np.random.default_rng(1)
    before = random.normal(3, 1, (9, 1, 6, 5)).astype(np.float32)
    after = before + random.normal(0, 0.1, before.shape).astype(np.float32)
    whole = samples_of(before, after)
    halves = [samples_of(before[part], after[part]).tally for part in (slice(0, 4), slice(4, 9))]
    both = compared(joined(halves), Tolerance())
    assert both.channel.number == whole.channel.number
    assert both.channel.snr_db == pytest.approx(whole.channel.snr_db)
    sums = both.tally.channels[2]
    assert sums.spread == pytest.approx(whole.tally.channels[2].spread)
    assert sums.signal == pytest.approx(((before - before.mean((0, 1, 2))) ** 2).sum((0, 1, 2)), rel=1e-5)


def test_classes_are_a_gate_of_their_own():
    random = np.random.default_rng(0)
    before = (1000 + random.normal(0, 1, (20, 1, 10))).astype(np.float32)
    after = before + random.normal(0, 0.5, before.shape).astype(np.float32)
    result = samples_of(before, after)
    assert result.snr_db > 60 and not result.passed and result.rule == "classes"
    assert "the largest of 10 is another in" in result.reason
    assert samples_of(before, after, Tolerance(min_snr=15, min_agreement=0.0)).passed
    # What the model itself reads on is no choice among classes.
    assert samples_of(before, after, consumed=True).argmax_agreement is None


def test_how_many_rows_may_differ():
    counts = (1, 2, 3, 9, 10, 19, 20, 100)
    assert [Tolerance().may_differ(count) for count in counts] == [0, 0, 1, 1, 1, 1, 2, 10]
    assert Tolerance(min_agreement=1.0).may_differ(1000) == 0
    assert Tolerance(min_agreement=0.99).may_differ(9) == 1
    assert [Tolerance(min_agreement=share).may_differ(8) for share in (0.0, 0.5, 0.99)] == [8, 4, 1]


def test_near_ties_may_swap():
    before = f32(5, 1, 4.9, 0)
    assert judged(before, f32(4.9, 1, 5, 0)).passed
    assert not judged(f32(5, 1, 3, 0), f32(4.4, 1, 4.5, 0), Tolerance(min_snr=10)).passed
    # One step of quantized scores is the rounding of the format.
    scores = [np.array([[9, 8, 1]], np.int8), np.array([[9, 9, 1]], np.int8), np.array([[9, 9, 9]], np.int8)]
    quantized = {"scales": (0.1,), "zero_points": (0,)}
    assert judged(scores[0], scores[1], Tolerance(min_snr=5), **quantized).passed
    assert not judged(scores[0], scores[2], Tolerance(min_snr=-5), **quantized).passed


def test_a_tie_that_the_original_did_not_have_is_no_agreement():
    before = np.random.default_rng(0).standard_normal((6, 1, 10)).astype(np.float32)
    result = samples_of(before, np.zeros_like(before), Tolerance(min_snr=-1))
    assert result.argmax_agreement == 0 and not result.passed
    assert "the largest of 10 is another in 6 of 6 rows" in result.reason


SATURATED = "it is saturated: it moves by less than float32 can tell"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.full((3, 1, 4), np.nan), "all its values are NaN"),
        (np.zeros((3, 0, 4)), "it has no elements"),
        (np.tile(np.arange(4.0), (3, 1, 1)), "it is the same for all samples"),
        (1.0 - 1e-8 * np.arange(12).reshape(3, 1, 4), SATURATED),
        (np.full((1, 1, 4), 2.0), "one sample shows one value only"),
        (np.arange(4.0).reshape(1, 1, 4), None),
        (np.arange(12.0).reshape(3, 1, 4), None),
    ],
)
def test_what_says_nothing(values, why):
    assert samples_of(values, values.copy()).silence == why


def test_integers_compare_as_integers():
    before = np.full((1, 3), 2**53, dtype=np.int64)
    result = judged(before, before + 1)
    assert not result.passed and result.equal_share == 0 and result.max_abs_error == 1
    lowest, highest = np.array([[-(2**63)]]), np.array([[2**63 - 1]])
    assert judged(lowest, highest).max_abs_error == 2**64 - 1
    assert judged(np.array([[0]], np.uint64), np.array([[2**64 - 1]], np.uint64)).max_abs_error == 2**64 - 1


def test_integers_and_bools_by_their_share():
    before = np.arange(100, dtype=np.int32)
    after = before.copy()
    after[:10] += 1
    result = judged(before, after)
    assert result.passed and result.equal_share == 0.9 and "10.00%" in result.notes[0]
    after[10] += 1
    assert not judged(before, after).passed
    assert judged(before, after, Tolerance(min_agreement=0.8)).passed
    assert not judged(before, after, Tolerance(min_agreement=0.8, max_abs_error=0.5)).passed
    flags = np.zeros(10, dtype=bool)
    assert judged(flags, flags).bit_exact
    assert not judged(flags, ~flags).passed


def test_quantized_outputs_lose_their_zero_point():
    before = np.array([[-128, -127, -126]], dtype=np.int8)
    after = np.array([[-128, -127, -125]], dtype=np.int8)
    result = judged(before, after, scales=(1 / 256,), zero_points=(-128,))
    assert result.snr_db == pytest.approx(10 * math.log10(5))
    assert result.unit == "steps" and result.max_abs_error == 1
    assert judged(before, after, scales=(1 / 256,), zero_points=(0,)).passed


def test_strings_are_equal_or_not():
    before = np.array([b"a", b"b\0"], dtype=object)
    assert judged(before, before.copy()).bit_exact
    assert not judged(before, np.array([b"a", b"b"], dtype=object)).passed


def test_exact_means_every_byte():
    exact = Tolerance(exact=True)
    assert judged(f32(1, np.nan), f32(1, np.nan), exact).passed
    assert not judged(f32(0.0), f32(-0.0), exact).passed
    assert judged(f32(0.0), f32(-0.0)).passed
    other_nan = np.array([[0x7FC00001]], dtype=np.uint32).view(np.float32)
    assert not judged(f32(np.nan), other_nan, exact).passed
    assert judged(f32(np.nan), other_nan).passed
    one = np.array([[1, 2]], dtype=np.int32)
    assert not judged(one, one + 1, exact).passed


def test_shape_dtype_and_nothing():
    result = judged(f32(1, 2), f32(1, 2, 3))
    assert not result.passed and "float32[1, 3] instead of float32[1, 2]" in result.reason
    assert not judged(f32(1, 2), f32(1, 2).astype(np.float64)).passed
    empty = np.zeros((0, 4), dtype=np.float32)
    result = judged(empty, empty)
    assert result.passed and result.rule == "empty"
    assert judged(np.zeros((0,), np.int64), np.zeros((0,), np.int64)).passed
    scalar = np.array(2.5, dtype=np.float32)
    assert judged(scalar, scalar).bit_exact
    pair = np.array([[1 + 2j, 3]], dtype=np.complex64)
    assert judged(pair, pair * np.complex64(1.01)).passed
    assert not judged(pair, pair * np.complex64(1j)).passed


def test_huge_values_do_not_pass_by_overflow():
    before = np.array([[1e300, 1e300]])
    assert not judged(before, -before).passed


def test_argmax_agreement_and_ties():
    assert judged(f32(1, 2, 3), f32(1, 3, 2)).argmax_agreement == 0
    assert judged(f32(1, 3, 3), f32(1, 3, 2.9)).argmax_agreement == 1
    even = np.full((1, 5, 4), 0.25, np.float32)
    assert judged(even, even).argmax_agreement == 1
    assert judged(f32(1), f32(1)).argmax_agreement is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_snr": math.nan},
        {"min_snr": math.inf},
        {"max_abs_error": math.inf},
        {"max_abs_error": -1.0},
        {"max_abs_error": math.nan},
        {"min_agreement": 1.1},
    ],
)
def test_senseless_tolerances_are_refused(wrong):
    with pytest.raises(UsageError):
        Tolerance(**wrong)


def test_report_is_json_and_printable():
    verdict = Verdict(
        status="pass",
        outputs=(judged(f32(1, 2), f32(1, 2)), judged(f32(0, 0), f32(0, 1))),
        notes=("note",),
    )
    text = json.dumps(verdict.to_dict(), allow_nan=False)
    assert json.loads(text)["outputs"][0]["snr_db"] == "inf"
    assert all(line.isprintable() for line in verdict_lines(verdict))


arrays = st.lists(st.floats(width=32), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(arrays, arrays)
def test_any_floats_give_a_verdict(first, second):
    size = min(len(first), len(second))
    before, after = f32(*first[:size]), f32(*second[:size])
    result = judged(before, after)
    json.dumps(Verdict(status="pass", outputs=(result,)).to_dict(), allow_nan=False)
    assert judged(before, before.copy()).passed
    assert judged(before, before.copy(), Tolerance(exact=True)).passed
    if (np.isnan(before) != np.isnan(after)).any():
        assert not result.passed
