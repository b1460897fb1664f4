"""A verdict on samples that a file was not made for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tfl_rewrite.judge.verdict import EntryVerdict, OutputComparison, Verdict, combined

FAILED = EntryVerdict(signature=None, label="main", status="fail", reasons=("off",), cause="outputs")
CRASHED = EntryVerdict(signature="a", label="a", status="fail", reasons=("died",), cause="crash")
PASSED = EntryVerdict(signature="b", label="b", status="pass")


def verdict(*entries: EntryVerdict) -> Verdict:
    status = "fail" if any(item.status == "fail" for item in entries) else "pass"
    cause = next((item.cause for item in entries if item.cause), "")
    reasons = tuple(reason for item in entries for reason in item.reasons)
    return Verdict(status=status, cause=cause, reasons=reasons, entries=entries)


def test_outputs_that_differ_say_nothing() -> None:
    made = verdict(FAILED, PASSED).of_unlike("made ones")
    assert (made.status, made.cause, made.reasons) == ("unverified", "unlike", ("made ones: off",))
    assert [item.status for item in made.entries] == ["unverified", "pass"]


@pytest.mark.parametrize("entries", [(CRASHED,), (CRASHED, FAILED), (PASSED,)])
def test_all_else_is_as_it_was(entries: tuple[EntryVerdict, ...]) -> None:
    before = verdict(*entries)
    made = before.of_unlike("made ones")
    assert made.status == before.status
    if FAILED not in entries:
        assert made == before


@pytest.mark.parametrize(("short", "status"), [(3.0, "unverified"), (math.inf, "fail")])
def test_what_is_no_matter_of_degree_is_none_of_samples(short: float, status: str) -> None:
    """NaN, say, where the original gives numbers."""
    one = OutputComparison(
        signature=None,
        name="y",
        position=0,
        dtype="float32",
        unit="values",
        samples=1,
        elements=4,
        rule="snr",
        passed=False,
        reason="off",
        bit_exact=False,
        max_abs_error=None,
        rmse=None,
        snr_db=None,
        cosine=None,
        equal_share=None,
        argmax_agreement=None,
        short_db=short,
        nonfinite_mismatches=0,
        reference_peak=1.0,
    )
    assert replace(verdict(FAILED, PASSED), outputs=(one,)).of_unlike("x").status == status


def test_runs_that_do_not_repeat_do_so_on_any_samples() -> None:
    apart = Verdict(status="fail", cause="unrepeatable", reasons=("two runs differ",), entries=(FAILED,))
    assert apart.of_unlike("x").status == "fail"


def test_each_judge_of_several_counts() -> None:
    passed, failed, died = verdict(PASSED), verdict(FAILED), verdict(CRASHED)
    made = combined([passed, failed]).of_unlike("x")
    assert [item.status for item in made.verdicts] == ["pass", "unverified"] and made.status == "unverified"
    made = combined([failed, died]).of_unlike("x")
    assert (made.status, made.cause) == ("fail", "crash"), "what fails for another reason is not hidden"


def test_what_has_no_entry_points_stays() -> None:
    crash = Verdict(status="fail", cause="crash", reasons=("died",))
    assert crash.of_unlike("x").status == "fail"
