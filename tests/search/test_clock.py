"""The time limit of a search, with a clock that the test sets."""

from __future__ import annotations

import pytest

from tfl_rewrite.search.clock import Clock, TimeIsUp


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
        hands.work = 42.0
        assert clock.is_past()
    assert clock.is_past()
    waiting = hands.clock(10.0)
    with waiting.extended():
        assert not waiting.is_past()
        hands.day += 131.0
        assert waiting.is_past()
