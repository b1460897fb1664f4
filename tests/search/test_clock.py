"""The time limit of a search, with a clock that the test sets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tfl_rewrite.search.clock import Clock, TimeIsUp
from tfl_rewrite.search.sensitivity import measure_grids
from tfl_rewrite.search.units import Float64
from tfl_rewrite.weights.grids import find_constants

from ..nets import Net


class Hands:
    """What two clocks show: of the day, and of the processor."""

    def __init__(self) -> None:
        self.day = self.work = 0.0

    def clock(self, limit: float | None) -> Clock:
        return Clock(limit, now=lambda: self.day, work=lambda: self.work)


def test_time_is_kept_for_what_comes_after() -> None:
    hands = Hands()
    half = hands.clock(1000.0)
    hands.day = 500.0
    half.check()
    half.check(spare=400.0)
    with pytest.raises(TimeIsUp):
        half.check(spare=600.0)
    half.share = 0.4
    with pytest.raises(TimeIsUp):
        half.check()
    hands.clock(None).check(spare=1e9)


def test_time_is_left_for_the_last_verdict() -> None:
    """As it took half of the time to open the search; but no more than a quarter of all."""
    for opened, reserved in [(2.0, 1.0), (9.0, 2.5)]:
        hands = Hands()
        clock = hands.clock(10.0)
        hands.day = opened
        clock.reserve()
        assert clock.left == pytest.approx(10.0 - reserved - opened)
        hands.day = 10.0 - reserved / 2
        assert clock.is_past() and not clock.overrun and clock.used > 1
    none = hands.clock(None)
    none.reserve()
    assert none.left == np.inf


def test_what_must_be_done_gets_more_time_but_not_any_amount() -> None:
    hands = Hands()
    clock = hands.clock(10.0)
    hands.day = hands.work = 11.0
    assert clock.is_past() and clock.overrun == 1.0
    with clock.extended():
        assert not clock.is_past()
        # Others take the processor: that is not the search's fault.
        hands.day = 120.0
        assert not clock.is_past()
        hands.work = 72.0
        assert clock.is_past()
        # What is under way has more.
        with clock.extended(begun=True):
            with clock.extended():
                assert not clock.is_past()
            hands.work = 132.0
            assert clock.is_past()
        hands.work = 70.0
        assert not clock.is_past()
        hands.work = 72.0
    assert clock.is_past()
    assert clock.left == -110.0
    waiting = hands.clock(10.0)
    with waiting.extended():
        assert not waiting.is_past()
        hands.day += 251.0
        assert waiting.is_past()
        with waiting.extended(begun=True):
            assert not waiting.is_past()
            hands.day += 240.0
            assert waiting.is_past()


def test_what_ends_in_the_middle_is_what_may_be_left_out() -> None:
    hands = Hands()
    clock = hands.clock(10.0)
    hands.day = 11.0
    clock.interrupt()
    with clock.interruptible():
        with pytest.raises(TimeIsUp):
            clock.interrupt()
        with clock.extended(), clock.extended():
            clock.interrupt()
        with pytest.raises(TimeIsUp):
            clock.interrupt()
    clock.interrupt()


@pytest.mark.parametrize("runs", [0, 3])
def test_grids_are_measured_while_there_is_time(runs: int) -> None:
    hands, ran = Hands(), 0
    net = Net(3)
    for number in range(9):
        net.weights(f"w{number}", (8, 16))
    items, _ = find_constants(net.model, int8=False, min_elements=16)

    def noise(_: object) -> Float64:
        nonlocal ran
        ran += 1
        hands.day += 1.0
        return np.array([1e-4])

    trials: Any = SimpleNamespace(prepare_grids=lambda: items, noise=noise)
    clock = hands.clock(runs - 0.5 if runs else 1e-9)
    hands.day = 0.0 if runs else 1.0
    with pytest.raises(TimeIsUp):
        measure_grids(trials, 30.0, by_channel=False, clock=clock, progress=lambda *_: None)
    # Each is measured twice, and is not left in the middle.
    assert ran == (4 if runs else 0)
    found = measure_grids(trials, 30.0, by_channel=False, clock=hands.clock(None), progress=lambda *_: None)
    assert len(found) == len(items)
