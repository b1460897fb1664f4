"""What a call costs after a rewrite: told where both runs show it, and only there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tfl_rewrite import Judging
from tfl_rewrite.cli.render_judge import cost_lines
from tfl_rewrite.judge.agreement import cost_of, with_cost_of
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.verdict import JudgeInfo, Verdict

MS = 0.001


@pytest.mark.parametrize(
    ("before", "after", "cost"),
    [
        ((9, 2, 2, 2), (9, 8, 8, 9), 4.0),
        ((9, 8, 8, 9), (9, 2, 2, 2), 0.25),
        ((9, 2, 2, 2, 2), (9, 6, 8, 9, 6), 3.0),
        ((1, 2, 2, 2), (90, 2, 2, 2), None),  # the first one does not count
        ((9, 2, 2, 2), (9, 2.8, 2.8, 2.8), None),
        ((9, 2, 2, 2), (9, 8, 2.2, 8), None),  # one call says otherwise
        ((9, 2, 2), (9, 8, 8), None),
        ((9, 2, 2, 2), (9, 8, 8), None),  # it did not come to the end
        ((9, 0.1, 0.1, 0.1), (9, 0.5, 0.5, 0.5), None),  # nobody waits for that
        ((9, 2, 2, 2, 0), (9, 8, 8, 8, 0), 4.0),
        ((), (), None),
    ],
)
def test_what_is_told(before: tuple[float, ...], after: tuple[float, ...], cost: float | None) -> None:
    made = cost_of([each * MS for each in before], [each * MS for each in after])
    assert made == (None if cost is None else pytest.approx(cost))


def info(kernels: str) -> JudgeInfo:
    return JudgeInfo(runtime="any", version="1", resolver=kernels, threads=1, kernels=kernels)


def test_the_line() -> None:
    plain = Verdict(status="pass", judge=info("default"), cost=5.24)
    assert cost_lines(plain) == [
        "slower: a call takes 5.2 x the processor time it took, measured here (any 1, default, 1 thread)"
    ]
    assert "--dry-run" in cost_lines(plain, told_before=False)[0]
    assert cost_lines(replace(plain, cost=0.3)) == cost_lines(replace(plain, cost=None)) == []
    slow = replace(plain, judge=info("reference"))
    assert cost_lines(slow) == []
    assert cost_lines(replace(slow, verdicts=(slow, plain))) == cost_lines(plain)
    assert plain.to_dict()["cost"] == 5.24


def test_a_verdict_on_more_calls_tells_it() -> None:
    few = Verdict(status="pass", judge=info("default"))
    slow = replace(few, judge=info("reference"))
    both = replace(few, verdicts=(slow, few))
    more = Verdict(status="pass", judge=info("default"), cost=5.24)
    assert cost_lines(with_cost_of(both, more)) == cost_lines(more)
    assert [one.cost for one in with_cost_of(both, more).verdicts] == [None, 5.24]
    assert with_cost_of(replace(few, cost=2.0), more).cost == 2.0
    assert with_cost_of(few, replace(more, judge=info("builtin"))).cost is None


@pytest.mark.runtime
def test_both_runs_are_timed(fixtures: Path) -> None:
    path = fixtures / "dense.tflite"
    with Judge(path, Judging(samples=5)) as judge:
        judge.reference()
        settled = judge.settled
        assert settled is not None
        assert len(settled.execution.cpu) == len(settled.execution.ran)
        assert all(0 < seconds < 60 for seconds in settled.execution.cpu)
