"""The metrics and the rules, on arrays."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfl_rewrite.errors import UsageError
from tfl_rewrite.verification import Tolerance, Verdict
from tfl_rewrite.verification.compare import OutputTally
from tfl_rewrite.verification.interface import TensorFacts


def facts(dtype="float32", shape=(1, 4), **more):
    return TensorFacts(name="y", tensor="y", dtype=dtype, shape=shape, shape_signature=shape, **more)


def judged(before, after, tolerance=None, **more):
    before, after = np.asarray(before), np.asarray(after)
    dtype = "string" if before.dtype.kind == "O" else before.dtype.name
    tally = OutputTally(facts(dtype, before.shape, **more), signature=None, position=0)
    tally.add(before, after)
    return tally.comparison(tolerance or Tolerance())


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


@pytest.mark.parametrize(("snr", "passed", "noted"), [(25, True, False), (15, True, True), (9, False, False)])
def test_snr_bounds(snr, passed, noted):
    before = np.random.default_rng(0).standard_normal((1, 1000))
    error = np.random.default_rng(1).standard_normal(before.shape)
    error *= math.sqrt((before**2).sum() / (error**2).sum() / 10 ** (snr / 10))
    result = judged(before, before + error)
    assert result.snr_db == pytest.approx(snr)
    assert result.passed is passed
    assert any("noticeable" in note for note in result.notes) is noted
    assert judged(before, before + error, Tolerance(min_snr=None)).passed


def test_samples_are_summed_not_averaged():
    tally = OutputTally(facts(), signature=None, position=0)
    tally.add(f32(100, 0, 0, 0), f32(100, 0, 0, 0))
    tally.add(f32(0.1, 0, 0, 0), f32(0.0, 0, 0, 0))
    assert tally.comparison(Tolerance()).snr_db == pytest.approx(60, abs=0.01)


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
    assert result.passed and "all values are NaN" in result.notes[0]
    assert not judged(f32(np.nan, np.nan), f32(np.nan, 0)).passed


def test_near_zero_reference_is_judged_by_its_absolute_error():
    zero = f32(0, 0, 0, 0)
    result = judged(zero, f32(0, 5e-5, 0, 0))
    assert result.passed and result.rule == "near zero" and "absolute error" in result.notes[0]
    result = judged(zero, f32(0, 5e-3, 0, 0))
    assert not result.passed and result.rule == "near zero"
    assert judged(zero, f32(0, 5e-3, 0, 0), Tolerance(near_zero_abs=0.01)).passed
    # Not nearly zero: the ratio counts, small as the error is.
    assert not judged(f32(2e-4, 0, 0, 0), zero).passed
    # In steps where it is quantized.
    quantized = {"scales": (0.1,), "zero_points": (5,)}
    values = [np.array([[5, 5, last]], dtype=np.int8) for last in (6, 5, 8)]
    assert judged(values[0], values[1], **quantized).rule == "near zero"
    assert judged(values[0], values[1], **quantized).passed
    assert not judged(values[1], values[2], **quantized).passed


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


def test_argmax_agreement_ties_and_where_it_applies():
    assert judged(f32(1, 2, 3), f32(1, 3, 2)).argmax_agreement == 0
    assert judged(f32(1, 3, 3), f32(1, 3, 2.9)).argmax_agreement == 1
    assert (
        judged(np.ones((1, 5, 5, 4), np.float32) * 7, np.ones((1, 5, 5, 4), np.float32)).argmax_agreement
        is None
    )
    assert (
        judged(np.full((1, 5, 4), 0.25, np.float32), np.full((1, 5, 4), 0.25, np.float32)).argmax_agreement
        == 1
    )


def test_error_larger_than_the_variation_is_told():
    before, after = f32(100.0, 100.1, 99.9, 100.2), f32(101, 101, 101, 101)
    result = judged(before, after)
    assert result.passed and any("variation" in note for note in result.notes)


@pytest.mark.parametrize(
    "wrong",
    [{"min_snr": math.nan}, {"max_abs_error": -1.0}, {"max_abs_error": math.nan}, {"min_agreement": 1.1}],
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
    assert all(line.isprintable() for line in verdict.summary_lines())


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
