"""Verdicts on parts of the samples against one on all of them."""

from __future__ import annotations

import numpy as np
import pytest

from tfl_rewrite.interpreter.interface import TensorFacts
from tfl_rewrite.judge.channels import ChannelSums, Movement
from tfl_rewrite.judge.compare import compared, merged
from tfl_rewrite.judge.settings import Tolerance
from tfl_rewrite.judge.tally import OutputTally, RowSums
from tfl_rewrite.judge.verdict import Verdict


def facts() -> TensorFacts:
    return TensorFacts(name="out", tensor="out", dtype="float32", shape=(1, 5), shape_signature=(1, 5))


def judged(pairs: list[tuple[np.ndarray, np.ndarray]], tolerance: Tolerance) -> Verdict:
    tally = OutputTally(facts(), signature=None, position=0)
    for before, after in pairs:
        tally.add(before, after)
    item = compared(tally, tolerance)
    return Verdict(
        status="pass" if item.passed else "fail",
        cause="" if item.passed else "outputs",
        sample_count=len(pairs),
        outputs=(item,),
    )


@pytest.mark.parametrize("seed", range(4))
def test_the_same_as_one_run_of_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    pairs = []
    for number in range(7):
        before = random.normal(size=(1, 5)).astype(np.float32)
        noise = random.normal(size=(1, 5)) * 10.0 ** -(1 + number % 3)
        pairs.append((before, (before + noise).astype(np.float32)))
    for least in (5.0, 15.0, 60.0):
        tolerance = Tolerance(min_snr=least)
        whole = judged(pairs, tolerance)
        found = merged([judged(pairs[:3], tolerance), judged(pairs[3:], tolerance)], tolerance)
        one, other = whole.outputs[0], found.outputs[0]
        assert (found.status, found.cause, found.sample_count) == (whole.status, whole.cause, 7)
        assert other.snr_db == pytest.approx(one.snr_db)
        assert other.rmse == pytest.approx(one.rmse)
        assert other.max_abs_error == one.max_abs_error
        assert other.argmax_agreement == pytest.approx(one.argmax_agreement)
        assert other.passed == one.passed and bool(other.reason) == bool(one.reason)


def test_a_half_without_noise() -> None:
    same = np.ones((1, 5), np.float32)
    tolerance = Tolerance(min_snr=30.0)
    exact = judged([(same, same)], tolerance)
    noisy = judged([(same, same * 1.1)], tolerance)
    found = merged([exact, noisy], tolerance).outputs[0]
    assert found.snr_db == pytest.approx(23.01, abs=0.01) and not found.bit_exact
    assert merged([exact, exact], tolerance).outputs[0].bit_exact


def test_a_half_that_does_not_run_decides() -> None:
    same = np.ones((1, 5), np.float32)
    good = judged([(same, same)], Tolerance())
    broken = Verdict(status="fail", cause="crash", reasons=("the rewritten file does not run",))
    assert merged([good, broken], Tolerance()).cause == "crash"


def test_one_verdict_is_itself() -> None:
    same = np.ones((1, 5), np.float32)
    alone = judged([(same, same)], Tolerance())
    assert merged([alone], Tolerance(min_snr=99.0)) is alone


def test_verdicts_on_other_outputs_are_not_added_up() -> None:
    """Such as of a run whose last entry point was not reached: what is known of the first is said."""
    same = np.ones((1, 5), np.float32)
    one = judged([(same, same)], Tolerance())
    none = Verdict(status="pass", outputs=())
    assert merged([one, none], Tolerance()) is one
    assert merged([none, one], Tolerance()) is none


@pytest.mark.parametrize("channels", [1, 2, 31, 32, 40])
def test_sums_do_not_depend_on_how_many_channels_there_are(channels: int) -> None:
    """Short rows are summed the other way round; what comes of it is the same."""
    random = np.random.default_rng(channels)
    before = random.normal(size=(200, channels))
    after = before + random.normal(size=before.shape) * 0.3
    sums = ChannelSums.of(3, before)
    sums.add(before, after)
    np.testing.assert_allclose(sums.signal, before.var(axis=0) * 200)
    np.testing.assert_allclose(sums.signal_after, after.var(axis=0) * 200)
    np.testing.assert_allclose(sums.noise, (after - before).var(axis=0) * 200)
    off = (before - before.mean(axis=0)) ** 2
    np.testing.assert_allclose(sums.spread, off.sum(axis=0) ** 2 / (off**2).sum(axis=0))
    rows = RowSums()
    rows.add(before, after)
    assert rows.agreeing == sum(one.argmax() == two.argmax() for one, two in zip(before, after, strict=True))
    assert rows.spread == pytest.approx(((before - before.mean(axis=1, keepdims=True)) ** 2).sum())


def test_how_far_values_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfl_rewrite.judge.channels.PIECE", 4)
    first = np.arange(9, dtype=np.float32)
    for change, span, inner in [(0.0, 0.0, 8.0), (5.0, 5.0, 8.0), (np.nan, np.inf, np.inf)]:
        moved, other = Movement(), first.copy()
        other[3] += change
        for values in (first, other):
            moved.add(values)
        assert (moved.span, moved.inner) == (span, inner)
    moved = Movement()
    for _ in range(2):
        moved.add(np.array([1, np.nan, np.inf, 2, 3], np.float32))
    assert (moved.span, moved.inner) == (0.0, np.inf)
