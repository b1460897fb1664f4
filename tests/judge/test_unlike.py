"""A verdict on samples that a file was not made for."""

from __future__ import annotations

import pytest

from tfl_rewrite.judge.verdict import EntryVerdict, Verdict, combined

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


def test_each_judge_of_several_counts() -> None:
    passed, failed, died = verdict(PASSED), verdict(FAILED), verdict(CRASHED)
    made = combined([passed, failed]).of_unlike("x")
    assert [item.status for item in made.verdicts] == ["pass", "unverified"] and made.status == "unverified"
    made = combined([failed, died]).of_unlike("x")
    assert (made.status, made.cause) == ("fail", "crash"), "what fails for another reason is not hidden"


def test_what_has_no_entry_points_stays() -> None:
    crash = Verdict(status="fail", cause="crash", reasons=("died",))
    assert crash.of_unlike("x").status == "fail"
