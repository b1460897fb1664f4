"""Steps of coded integers, on files whose sizes and figures the test says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tfl_rewrite.search.clock import Clock
from tfl_rewrite.search.downloads import CodeSearch, Probed, by_steps
from tfl_rewrite.search.goals import Goal
from tfl_rewrite.search.holdout_judge import Figures
from tfl_rewrite.search.sensitivity import State
from tfl_rewrite.search.trials import Measured, Rounding
from tfl_rewrite.weights.codes import Code

from .helpers import judged, measured

WIDTHS = {"int12": 12, "int10": 10, "int8": 8}


class Steps(CodeSearch):
    """A search for the steps of one constant, whose file is as wide as its integers."""

    def __init__(self, goal: Goal, clock: Clock | None = None) -> None:
        stand_in: Any = self
        super().__init__(
            stand_in,
            [],
            goal=goal,
            state=State(None, ""),
            clock=clock or Clock(),
            progress=lambda *_: None,
            coder=stand_in,
            coded={1: tuple(WIDTHS)},
        )
        self.path, self.tried = Path("made.tflite"), list[tuple[float, str]]()

    def _choice(self, aim: float) -> dict[int, Any]:
        return {1: Code(10.0 ** (-aim / 20.0), self.coded[1][0])}

    def bits(self, _position: int, _step: float) -> float:
        return 1.0

    def measure(self, choice: Mapping[int, Code], cost: float, **_: Rounding) -> Measured:
        code, aim = choice[1], -20.0 * math.log10(choice[1].step)
        self.tried.append((aim, code.form))
        # Narrow integers clip.
        kept = aim - (12 - WIDTHS[code.form]) / 4
        made = measured(kept, 100 * WIDTHS[code.form], self.goal)
        return replace(made, choice=dict(choice), cost=cost)

    def finish(self, made: Measured) -> int:
        self.last = made
        return made.nbytes

    def evaluate(self, _path: Path, *, strict: bool) -> Figures:
        assert not strict
        return judged(self.last.snr or 0.0)


@pytest.mark.parametrize(
    ("most", "form"), [(None, "int12"), (1200, "int12"), (1100, "int10"), (900, "int8"), (700, None)]
)
def test_a_file_that_is_too_large_is_not_the_end(most: int | None, form: str | None) -> None:
    search: Any = Steps(Goal(min_snr=30.0, max_nbytes=most))
    found = search.settle(search).promised
    assert len(search.tried) <= 16
    if form is None:
        assert found is None and search.tried[-1][1] == "int8"
        return
    assert found is not None and found.choice[1].form == form and 30.0 <= found.snr < 30.5


def test_no_time_to_look_at_activations_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it end what comes after it."""
    clock, asked = Clock(1e-9), []

    def looks(_: object) -> CodeSearch:
        asked.append(clock.share)
        clock.interrupt()
        raise AssertionError

    monkeypatch.setattr("tfl_rewrite.search.downloads.code_search", looks)
    opened: Any = SimpleNamespace(wanted=SimpleNamespace(goal=Goal(min_snr=30.0)), clock=clock)
    judge: Any = None
    assert by_steps(opened, judge) is None and asked == [0.75] and clock.share == 1.0
    clock.interrupt()


class Slow(Steps):
    """A search in which each measurement takes 10 seconds, and gives what the test says."""

    def __init__(self, limit: float | None, gains: Mapping[int, float], vectors: frozenset[int]) -> None:
        self.seconds, self.gains = 0.0, gains
        super().__init__(Goal(min_snr=30.0), Clock(limit, now=lambda: self.seconds))
        self.constants = {
            number: SimpleNamespace(
                position=number,
                elements=1000 - number,
                is_vector=number in vectors,
                profile=lambda: SimpleNamespace(power=np.ones(1)),
            )
            for number in gains
        }

    def first_step(self, position: int, _snr: float) -> float:
        return 0.1 + position

    def _probed(self, group: list[Any], aim: float) -> Probed:
        self.seconds += 10.0
        (item,) = group
        step, gain = self.first_step(item.position, aim), self.gains[item.position]
        cost = np.array([0.5, 1.0]) * gain * item.elements * step**2 / 12
        return Probed(group, [step], cost, gain)


def test_what_there_is_no_time_to_measure_is_taken_for_others() -> None:
    gains = {1: 2.0, 2: 3.0, 3: 900.0, 4: 3.0, 5: 900.0, 6: 3.0}
    vectors = frozenset({3, 5})
    whole, short = Slow(None, gains, vectors), Slow(60.0, gains, vectors)
    whole.probe()
    short.probe()
    assert [each.items[0].position for each in whole.measured] == [1, 2, 3, 4, 5, 6]
    # Of 60 seconds 0.6 go into measurements; the bias stays as it is, and the last weight is like the third.
    assert [each.items[0].position for each in short.measured] == [1, 2, 3, 4, 6]
    guessed, known = short.measured[-1], whole.measured[-1]
    assert guessed.gain == 3.0 and guessed.steps == known.steps and np.allclose(guessed.cost, known.cost)
