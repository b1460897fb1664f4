"""What figures of few samples are worth for others."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tfl_rewrite.interpreter.interface import TensorFacts
from tfl_rewrite.judge.compare import compared
from tfl_rewrite.judge.settings import Tolerance
from tfl_rewrite.judge.tally import OutputTally
from tfl_rewrite.judge.verdict import Verdict
from tfl_rewrite.search.clock import Clock
from tfl_rewrite.search.goals import Goal
from tfl_rewrite.search.holdout_judge import Figures, HoldoutJudge, counts_hidden, figures_of
from tfl_rewrite.search.search import Search
from tfl_rewrite.search.trials import Measured

from .helpers import OUTPUT, verdict

PAIRS = ((1.0, 0.001), (2.0, 0.004), (1.0, 0.001), (4.0, 0.002))


def ratio(pairs: tuple[tuple[float, float], ...]) -> float:
    return 10 * math.log10(sum(signal for signal, _ in pairs) / sum(noise for _, noise in pairs))


def test_one_sample_and_samples_that_agree() -> None:
    assert replace(OUTPUT, energies=()).doubt_db == 0
    assert replace(OUTPUT, energies=((1.0, 0.0), (2.0, 0.0))).doubt_db == 0
    assert replace(OUTPUT, energies=((5.0, 0.1),)).doubt_db == pytest.approx(3.01, abs=0.01)
    assert replace(OUTPUT, energies=((1.0, 0.01), (3.0, 0.03))).doubt_db == pytest.approx(0, abs=1e-9)
    # All of the noise in one of two, and in one of many.
    assert replace(OUTPUT, energies=((1.0, 0.01), (1.0, 0.0))).doubt_db == pytest.approx(4.53, abs=0.01)
    many = ((1.0, 0.01), *(((1.0, 0.0),) * 99))
    assert replace(OUTPUT, energies=many).doubt_db == pytest.approx(3.0, abs=0.05)


@pytest.mark.parametrize(("count", "spread"), [(3, 0.5), (6, 1.0), (30, 1.0)])
def test_as_many_other_samples_mostly_show_no_less(count: int, spread: float) -> None:
    random = np.random.default_rng(count)
    kept = 0
    for _ in range(400):
        signals = random.uniform(0.5, 2.0, 2 * count)
        noises = 1e-3 * signals * np.exp(spread * random.normal(size=2 * count))
        pairs = tuple(zip(signals.tolist(), noises.tolist(), strict=True))
        first, others = pairs[:count], pairs[count:]
        ratios = [
            10 * math.log10(sum(s for s, _ in part) / sum(n for _, n in part)) for part in (first, others)
        ]
        kept += ratios[1] >= ratios[0] - replace(OUTPUT, energies=first).doubt_db
    # Half of them without it; both draws vary, so not five of six.
    assert 0.64 < kept / 400 < 0.95


def test_what_may_be_chance_is_missing() -> None:
    goal = Goal(min_snr=26.0)
    few = verdict({"snr_db": 27.0, "energies": PAIRS})
    doubt = few.outputs[0].doubt_db
    assert doubt > 0.5
    found = Figures(verdict=few)
    assert found.snr == 27.0 and found.sure == 27.0 - doubt
    assert found.missing(goal) == pytest.approx(doubt - 1.0)
    hidden = Figures(verdict=few, hidden=24.0, hidden_sure=22.5)
    assert (hidden.snr, hidden.sure) == (24.0, 22.5)
    assert hidden.missing(goal) == 3.5
    assert hidden.missing(Goal(max_error=1.0)) <= 0


def test_held_out_samples_that_happen_to_agree_tell_no_more_than_so_many_do() -> None:
    goal = Goal(min_snr=30.0)
    alike = verdict({"snr_db": 32.0, "samples": 2, "energies": ((1.0, 0.001), (2.0, 0.002))})
    assert alike.outputs[0].doubt_db == pytest.approx(0, abs=1e-9)
    assert figures_of([alike], [None], goal).missing(goal) == pytest.approx(-2.0)
    strict = figures_of([alike], [None], goal, strict=True)
    assert strict.missing(goal) == pytest.approx(1.0)
    assert strict.sure == pytest.approx(29.0)
    many = verdict({"snr_db": 32.0, "samples": 50, "energies": ((1.0, 0.001),) * 50})
    assert figures_of([many], [None], goal, strict=True).missing(goal) == pytest.approx(-1.4)
    # Those that differ by more say so themselves.
    unlike = verdict({"snr_db": 32.0, "samples": 2, "energies": ((1.0, 0.002), (1.0, 0.0))})
    doubt = unlike.outputs[0].doubt_db
    assert doubt > 4 and figures_of([unlike], [None], goal, strict=True).sure == pytest.approx(32.0 - doubt)
    # Nothing is chance where that was not asked for.
    assert strict.missing(replace(goal, sure=False)) == pytest.approx(-2.0)


def test_a_file_that_was_chosen_among_many_is_judged_strictly_by_held_out_samples() -> None:
    alike = verdict({"snr_db": 32.0, "samples": 2, "energies": ((1.0, 0.001), (2.0, 0.002))})

    class Judge:
        def begin(self, _path: Path, *, tolerance: Tolerance) -> Any:
            assert tolerance.min_snr == 30.0
            return SimpleNamespace(wait=lambda: None, verdict=lambda: alike)

    judge = HoldoutJudge.__new__(HoldoutJudge)
    stand_in: Any = Judge()
    judge.goal, judge.metric, judge._judge, judge._inside = Goal(min_snr=30.0), None, stand_in, None
    assert judge.evaluate(Path("any")).missing(judge.goal) == pytest.approx(1.0)
    assert judge.evaluate(Path("any"), strict=False).missing(judge.goal) == pytest.approx(-2.0)


def test_held_out_samples_tell_of_what_is_hidden_no_more_than_so_many_do() -> None:
    goal = Goal(min_snr=30.0)
    alike = verdict({"snr_db": 32.0, "samples": 2, "energies": ((1.0, 0.001), (2.0, 0.002))})
    assert figures_of([alike], [alike], goal, strict=True).hidden_sure == pytest.approx(29.0, abs=0.02)


def test_large_numbers_do_not_overflow() -> None:
    plain = replace(OUTPUT, energies=PAIRS).doubt_db
    large = tuple((signal * 1e250, noise * 1e250) for signal, noise in PAIRS)
    assert replace(OUTPUT, energies=large).doubt_db == pytest.approx(plain)


def test_what_is_not_finite_is_not_taken_for_its_size() -> None:
    fine, broken = verdict({"snr_db": 20.0}), verdict({"snr_db": 60.0, "nonfinite_mismatches": 1})
    assert Figures(verdict=fine).sound and not Figures(verdict=broken).sound
    goal = Goal(max_nbytes=1000)
    assert Figures(verdict=broken).missing(goal) == math.inf and Figures(verdict=fine).missing(goal) < 0
    search: Any = Search.__new__(Search)
    search.known = {
        number: Measured(choice={}, nbytes=900, deflated=0, cost=900.0, verdict=item)
        for number, item in enumerate((fine, broken))
    }
    search._bytes, search.units, search.notes = True, [], []
    search.progress, search.clock = lambda *_: None, Clock(0.0, now=iter((0.0, 1.0, 2.0, 3.0)).__next__)
    found = search.largest_within(1000)
    assert found is not None and found.verdict is fine


def told(snr: float) -> Verdict:
    """One sample whose output is off by so much."""
    facts = TensorFacts(name="y", tensor="y", dtype="float64", shape=(1,), shape_signature=(1,))
    tally = OutputTally(facts, signature=None, position=0)
    tally.add(np.ones(1), np.ones(1) + 10 ** (-snr / 20))
    return Verdict(status="pass", outputs=(compared(tally, Tolerance(min_snr=26.0)),))


def test_what_is_hidden_counts_over_all_parts() -> None:
    goal = Goal(min_snr=26.0)
    parts = [told(40.0)] * 2
    inside = [told(snr) for snr in (20.0, 30.0)]
    found = figures_of(parts, inside, goal)
    assert found.hidden == pytest.approx(22.6, abs=0.01)
    assert found.hidden_sure is not None and found.hidden_sure < found.hidden - 2
    assert figures_of(parts, [inside[0], None], goal).hidden is None


@pytest.mark.parametrize(
    ("goal", "decisions", "counts"),
    [
        (Goal(min_snr=30.0), 1, True),
        (Goal(min_snr=30.0), 0, False),
        (Goal(min_snr=30.0), 257, False),
        (Goal(min_agreement=0.99), 1, False),
        (Goal(max_nbytes=1000), 10, True),
    ],
)
def test_where_what_is_hidden_counts(goal: Goal, decisions: int, counts: bool) -> None:
    assert counts_hidden(goal, decisions) is counts


def test_chance_is_taken_off_what_is_hidden_where_that_counts() -> None:
    few = verdict({"snr_db": 27.0, "energies": PAIRS})
    found = Figures(verdict=few, hidden=40.0, hidden_sure=39.0)
    assert found.sure == 27.0 and found.missing(Goal(min_snr=26.0)) == -1.0
    assert Figures(verdict=few).missing(Goal(min_snr=26.0)) > -1.0
