"""Kernels that compute integers must agree, and those that a pass implies judge where the original runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tfl_rewrite.cli.render_judge import verdict_lines, verdict_rest
from tfl_rewrite.judge.agreement import agreed, growth_of
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.judge.verdict import (
    EntryVerdict,
    JudgeInfo,
    OutputComparison,
    Verdict,
    combined,
    with_entries,
)
from tfl_rewrite.pipeline.verify import verify

from .. import tiny_models
from ..interpreter import fake_runtime

EVERY = ("default", "builtin", "reference")


def output(snr_db: float, energies: tuple[tuple[float, float], ...] = ()) -> OutputComparison:
    """One that passed."""
    return OutputComparison(
        signature=None,
        name="y",
        position=0,
        dtype="float32",
        unit="values",
        samples=len(energies),
        elements=4,
        rule="snr",
        passed=True,
        reason=None,
        bit_exact=False,
        max_abs_error=None,
        rmse=None,
        snr_db=snr_db,
        cosine=None,
        equal_share=None,
        argmax_agreement=None,
        nonfinite_mismatches=0,
        reference_peak=None,
        energies=energies,
    )


def judged(
    *outputs: OutputComparison, status: str = "pass", own: float = math.inf, agree: bool = True
) -> Verdict:
    """What three judges say of one output."""
    verdicts = [
        Verdict(
            status=status,
            outputs=(one,),
            judge=JudgeInfo(runtime="r", version="1", resolver=name, threads=1, kernels=name),
        )
        for name, one in zip(EVERY, outputs, strict=True)
    ]
    if not agree:
        return combined(verdicts)
    return agreed(combined(verdicts), [{}, {0: own}, {0: own}])


def test_ratios_far_apart_are_a_failure() -> None:
    verdict = judged(output(51.7), output(39.9), output(24.6))
    assert verdict.status == "fail" and verdict.cause == "outputs"
    (reason,) = verdict.reasons
    assert reason == "y: kernels disagree: 24.6 dB with reference kernels, 51.7 dB with default kernels"
    head = verdict_lines(verdict)[0]
    assert head == "FAIL: 3 judges do not agree (3 pass each alone)"


def test_what_is_close_or_good_anyway_passes() -> None:
    assert judged(output(28.0), output(25.1), output(26.0)).passed
    assert judged(output(70.0), output(40.0), output(41.0)).passed
    assert judged(output(28.0), output(24.9), output(26.0)).status == "fail"


def test_what_differs_as_much_between_the_kernels_of_the_original_is_no_fault() -> None:
    """Hybrid kernels round activations, XNNPACK's of floats do not: each judge has another original."""
    apart = output(36.2), output(27.4), output(27.4)
    assert judged(*apart, own=28.0).passed
    assert judged(*apart, own=40.0).status == "fail"


def test_few_samples_leave_room_for_chance() -> None:
    even = tuple((1.0, 0.003) for _ in range(8))
    one_sample = ((1.0, 0.02), *((1.0, 0.0001) for _ in range(7)))
    assert output(25.0, even).doubt_db < 0.01 < 2 < output(25.0, one_sample).doubt_db
    assert judged(output(29.0), output(25.0, even), output(29.0)).status == "fail"
    assert judged(output(29.0), output(25.0, one_sample), output(29.0)).passed
    assert judged(output(49.0), output(25.0, one_sample), output(49.0)).status == "fail"


def test_a_ratio_of_fewer_samples_has_their_chance_too() -> None:
    """Slow kernels ran three samples: those may be good ones."""
    even = tuple((1.0, 0.003) for _ in range(8))
    few = (1.0, 0.0001), (1.0, 0.0002), (1.0, 0.003)
    assert judged(output(25.0, even), output(25.0, even), output(29.0, few)).passed
    assert judged(output(25.0, even), output(25.0, even), output(49.0, few)).status == "fail"
    assert judged(output(25.0, even), output(25.0, even), output(29.0, (*few, *few, *few))).status == "fail"


@pytest.mark.runtime
def test_kernels_that_are_too_slow_run_three_samples(
    tmp_path: Path, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = (fake_runtime.model(tmp_path / name) for name in "ab")
    judging = Judging(runtime=(runtime,), implied=EVERY, samples=6)
    counts = [one.sample_count for one in verify(before, after, judging).verdicts]
    monkeypatch.setattr("tfl_rewrite.judge.agreement.SLOW_SECONDS", 0.0)
    verdict = verify(before, after, judging)
    assert counts == [6, 6, 6] and verdict.passed
    assert [one.sample_count for one in verdict.verdicts] == [6, 6, 3]
    assert "3 of 6 samples: these kernels take over a second for each" in verdict.verdicts[2].notes
    asked = verify(before, after, replace(judging, implied=(), resolver=EVERY))
    assert [one.sample_count for one in asked.verdicts] == [6, 6, 6], "asked for, all are run"


def test_what_says_nothing_and_what_failed_already_stay() -> None:
    silent = replace(output(0.0), silence="constant")
    assert judged(output(60.0), silent, output(60.0)).passed
    failed = judged(output(60.0), output(10.0), output(60.0), status="fail")
    assert failed.status == "fail" and failed.reasons == ()


@pytest.fixture
def runtime(tmp_path: Path) -> str:
    return fake_runtime.install(tmp_path)


@pytest.mark.parametrize(("own", "passes"), [(({}, {}, {0: 20.0}), False), (({}, {0: 20.0}, {}), True)])
def test_only_the_kernels_that_differ_are_excused(own: tuple[dict[int, float], ...], passes: bool) -> None:
    """The builtin kernels are low: that those of the reference differ is no reason for it."""
    verdict = judged(output(60.0), output(21.0), output(60.0), agree=False)
    assert agreed(verdict, own).passed is passes


@pytest.mark.runtime
def test_what_the_original_differs_by_is_measured(tmp_path: Path, runtime: str) -> None:
    before = fake_runtime.model(tmp_path / "a", by_kernels={"reference": 0.95})
    after = fake_runtime.model(tmp_path / "b", by_kernels={"reference": 0.95 * 1.05}, factor=1.001)
    asked = Judging(runtime=(runtime,), implied=EVERY)
    assert verify(before, after, asked).passed
    same = fake_runtime.model(tmp_path / "c")
    apart = fake_runtime.model(tmp_path / "d", by_kernels={"reference": 1.05}, factor=1.001)
    verdict = verify(same, apart, asked)
    assert verdict.status == "fail" and "kernels disagree" in verdict.reasons[0]


def test_one_judge_agrees_with_itself() -> None:
    """The others were dismissed: the original runs with one set of kernels alone."""
    alone = combined(judged(output(30.0), output(30.0), output(30.0), agree=False).verdicts[:1])
    assert agreed(alone, [{}]) == alone


def test_a_disagreement_outlives_entry_points_that_are_weighed_anew() -> None:
    passed = EntryVerdict(signature=None, label="y", status="pass", reasons=(), cause="")
    apart = judged(output(51.7), output(39.9), output(24.6), agree=False)
    failed = agreed(replace(apart, entries=(passed,)), ({}, {}, {}))
    verdict = with_entries(failed, (passed, passed))
    assert verdict.status == "fail" and verdict.reasons == failed.reasons


def test_the_short_text_names_what_passes_beside_what_does_not() -> None:
    def entry(label: str, status: str) -> EntryVerdict:
        return EntryVerdict(signature=label, label=label, status=status)

    verdict = Verdict(status="unverified", entries=(entry("infer", "pass"), entry("train", "unverified")))
    assert verdict_rest(verdict)[0] == "infer PASS; train UNVERIFIED"
    many = replace(verdict, entries=(*verdict.entries, *(entry(f"f{at}", "pass") for at in range(9))))
    assert verdict_rest(many)[0].endswith("f5 PASS; and 3 more (-v)")
    assert verdict_rest(replace(verdict, entries=verdict.entries[:1])) == []


@pytest.mark.runtime
def test_a_runtime_that_was_named_is_not_dismissed(tmp_path: Path, runtime: str) -> None:
    (tmp_path / "other").mkdir()
    other = fake_runtime.install(tmp_path / "other", "tflite_runtime")
    lacks = [{"package": "tflite_runtime", "error": "no such operator"}]
    before = fake_runtime.model(tmp_path / "a", allocating=lacks)
    after = fake_runtime.model(tmp_path / "b", factor=0.99)
    verdict = verify(before, after, Judging(runtime=(runtime, other), implied=EVERY))
    assert verdict.status == "unverified"


@pytest.mark.runtime
def test_only_implied_kernels_must_agree(tmp_path: Path, runtime: str) -> None:
    before = fake_runtime.model(tmp_path / "a")
    after = fake_runtime.model(tmp_path / "b", by_kernels={"reference": 0.95})
    asked = Judging(runtime=(runtime,), resolver=EVERY)
    assert verify(before, after, asked).passed
    for judging in (replace(asked, implied=EVERY), replace(asked, resolver=(), implied=EVERY)):
        verdict = verify(before, after, judging)
        assert verdict.status == "fail" and "kernels disagree: 32.5 dB" in verdict.reasons[0]
    # Where each keeps what the user asked for, it is told.
    said = verify(before, after, replace(asked, implied=EVERY, agreeing=False))
    assert said.passed and any("kernels disagree: 32.5 dB" in note for note in said.notes)


@pytest.mark.runtime
def test_implied_kernels_that_the_original_does_not_run_with_do_not_judge(
    tmp_path: Path, runtime: str
) -> None:
    lacks = [{"resolver": "reference", "error": "no such operator"}]
    before = fake_runtime.model(tmp_path / "a", allocating=lacks)
    after = fake_runtime.model(tmp_path / "b", factor=0.99)
    implied = Judging(runtime=(runtime,), implied=EVERY)
    verdict = verify(before, after, implied)
    assert verdict.passed and [one.judge.kernels for one in verdict.verdicts if one.judge] == [*EVERY[:2]]
    (note,) = verdict.notes
    assert "reference kernels: the original does not run" in note and "no such operator" in note
    # What the user asked for stays.
    assert verify(before, after, Judging(runtime=(runtime,), resolver=EVERY)).status == "unverified"
    # So does it where the rewritten file is what does not run, and where nobody could judge.
    broken = fake_runtime.model(tmp_path / "c", allocating=lacks)
    assert verify(after, broken, implied).status == "fail"
    nowhere = fake_runtime.model(tmp_path / "d", allocating=[{"error": "never"}])
    assert verify(nowhere, after, implied).status == "unverified"


# -- What grows from call to call ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noises", "least", "said"),
    [
        ([1e-6, 1e-4, 1e-3, 1e-2], 10, "60 dB in the first calls, 20 dB in the last of 4; growing so, it"),
        ([0.0, 1e-6, 1e-4, 1e-2], 10, "no error in the first calls, 20 dB in the last of 4"),
        ([1e-6, 1e-4, 1e-3, 1e-2], None, "60 dB in the first calls, 20 dB in the last of 4"),
        ([1e-6, 1e-4, 1e-3], 10, ""),
        ([1e-6, 1e-2] * 3, 10, ""),
        ([1e-3] * 9, 10, ""),
        ([2e-3] * 3 + [1e-3] * 3 + [5e-4] * 3, 10, ""),
        ([0.0] * 9, 10, ""),
    ],
)
def test_an_error_that_grows_from_call_to_call(noises: list[float], least: float | None, said: str) -> None:
    told = growth_of(output(30, tuple((1.0, noise) for noise in noises)), least)
    assert told.startswith(f"y: {said}") if said else told == ""


def test_where_growth_goes_on_is_told_by_how_it_fell() -> None:
    """Noise that grows with the square of the calls, in power, loses 20 dB in each ten times as many."""
    energies = tuple((1.0, 1e-6 * call**2) for call in range(1, 61))
    assert growth_of(output(30, energies), 20).endswith("growing so, it misses 20 dB after some 100")


@pytest.mark.runtime
def test_a_state_that_leaks_is_judged_over_many_calls(tmp_path: Path) -> None:
    """A hundredth a call, and a five-hundredth: four calls keep 36 dB of the first."""
    before = tiny_models.accumulating(tmp_path / "before.tflite")
    leaks = [tiny_models.accumulating(tmp_path / f"{keeps}.tflite", keeps=keeps) for keeps in (0.99, 0.998)]
    first, second = (verify(before, after) for after in leaks)
    assert first.status == "fail" and first.sample_count == 64
    assert second.passed and second.headline == "PASS (made samples, for 64 calls in a row)"
    assert "growing so, it misses 20 dB after some 100" in second.not_judged[-1]
    # Calls of their own have nothing before them; and of what keeps nothing there are as many as ever.
    apart = verify(before, leaks[0], Judging(independent=True))
    assert apart.passed and apart.sample_count == 4 and apart.not_judged == ()
    # Samples of the user's are those that there are.
    feeds = np.random.default_rng(0).random((8, 1, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=feeds)
    given = verify(before, leaks[0], Judging(inputs=(tmp_path / "x.npz",)))
    assert given.headline == "PASS (for 8 calls in a row)"


@pytest.mark.runtime
def test_what_one_signature_leaves_shows_in_what_another_gives(tmp_path: Path) -> None:
    """Whichever comes first in the file: after all calls of each they are called in turn."""
    before = tiny_models.remembering(tmp_path / "before.tflite")
    after = tiny_models.remembering(tmp_path / "after.tflite", factor=1.0)
    found = verify(before, after)
    assert found.status == "fail" and [entry.status for entry in found.entries] == ["fail", "pass"]
    feeds = np.random.default_rng(0).random((2, 1, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=feeds)
    assert verify(before, after, Judging(inputs=(tmp_path / "x.npz",))).status == "fail"
    assert verify(before, before).passed
