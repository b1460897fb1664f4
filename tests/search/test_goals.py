"""Budgets: which are refused, and by how much a verdict misses them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tfl_rewrite import UsageError
from tfl_rewrite.judge.verdict import ChannelComparison
from tfl_rewrite.search.goals import Goal
from tfl_rewrite.search.holdout_judge import noise_of
from tfl_rewrite.search.units import ratio

from .helpers import verdict


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({}, "no budget"),
        ({"min_agreement": 1.5}, "min_agreement"),
        ({"min_agreement": 0.0}, "min_agreement"),
        ({"max_error": -1.0}, "max_error"),
        ({"max_error": math.nan}, "max_error"),
        ({"min_snr": math.inf}, "min_snr"),
        ({"max_error": math.inf}, "max_error"),
        ({"min_metric": math.nan}, "min_metric"),
        ({"min_metric": -math.inf}, "min_metric"),
        ({"min_metric": 1.0}, "go together"),
        ({"max_nbytes": 0}, "max_nbytes"),
        ({"min_snr": 30.0, "encodings": ["int3"]}, "int3"),
    ],
)
def test_refused(budget: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        Goal(**budget)


def test_the_worst_output_counts() -> None:
    goal = Goal(min_snr=30.0)
    assert goal.shortfall(verdict({}, {"snr_db": 41.0})) == pytest.approx(3.0)
    assert goal.shortfall(verdict({"snr_db": 33.0}, {"snr_db": 41.0})) == pytest.approx(-3.0)


def test_another_rule_that_is_broken_is_a_shortfall() -> None:
    channel = {"rule": "channel", "snr_db": 45.0, "passed": False, "short_db": 7.0}
    assert Goal(min_snr=30.0).shortfall(verdict(channel, {"snr_db": 35.0})) == pytest.approx(7.0)
    assert Goal(max_error=1.0).shortfall(verdict(channel)) == pytest.approx(7.0)


def test_what_a_channel_has_left_counts_where_it_is_less() -> None:
    near, far = (ChannelComparison(axis=1, number=0, snr_db=snr) for snr in (16.0, 28.0))
    goal = Goal(min_snr=30.0)
    assert goal.shortfall(verdict({"snr_db": 45.0, "channel": near})) == pytest.approx(-1.0)
    assert goal.shortfall(verdict({"snr_db": 35.0, "channel": far})) == pytest.approx(-5.0)
    assert noise_of(verdict({"snr_db": 45.0, "channel": near}), goal.tolerance) == pytest.approx(ratio(31.0))
    assert noise_of(verdict({"snr_db": 35.0, "channel": far}), goal.tolerance) == pytest.approx(ratio(35.0))
    assert noise_of(verdict({"snr_db": 45.0, "channel": near})) == pytest.approx(ratio(45.0))


def test_largest_error_in_db() -> None:
    assert Goal(max_error=0.01).shortfall(verdict({})) == pytest.approx(20.0)
    assert Goal(max_error=1.0).shortfall(verdict({})) == pytest.approx(-20.0)


def test_agreement_and_metric_are_kept_or_not() -> None:
    assert Goal(min_agreement=0.9).shortfall(verdict({})) > 0
    assert Goal(min_agreement=0.75).shortfall(verdict({})) < 0
    assert Goal(min_metric=0.5, metric="a:b").shortfall(verdict({}), 0.4) > 0
    assert Goal(min_metric=0.5, metric="a:b").shortfall(verdict({}), 0.5) < 0
    assert Goal(min_metric=0.5, metric="a:b").shortfall(verdict({}), math.nan) > 0


@pytest.mark.parametrize("cause", ["error", "crash", "interface", "timeout"])
def test_what_does_not_run_is_never_good(cause: str) -> None:
    assert Goal(min_snr=1.0).shortfall(verdict({}, cause=cause)) == math.inf


def test_not_a_number_is_never_good() -> None:
    assert Goal(min_snr=1.0).shortfall(verdict({"nonfinite_mismatches": 1})) == math.inf
