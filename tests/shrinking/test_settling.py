"""How much room a search is told to leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_goals import verdict
from test_ordering import measured

from tfl_rewrite.shrinking.goals import Goal
from tfl_rewrite.shrinking.settling import _room


class Found:
    """A search that finds one file, measured on so many samples."""

    def __init__(self, samples: int, goal: Goal) -> None:
        few = replace(verdict({"snr_db": 25.0}), sample_count=samples)
        self._item = replace(measured(25.0, 1000, goal), verdict=few)

    def find(self, _goal: Goal) -> Any:
        return self._item


@pytest.mark.parametrize(
    ("goal", "samples", "room"),
    [
        (Goal(min_agreement=0.99), 75, 3.0),
        (Goal(min_agreement=0.99), 299, 3.0),
        (Goal(min_agreement=0.99), 300, 0.0),
        (Goal(min_agreement=0.9), 30, 0.0),
        (Goal(min_agreement=1.0), 10_000, 3.0),
        (Goal(min_snr=30.0), 2, 0.0),
        (Goal(min_agreement=0.99, max_nbytes=1000), 2, 0.0),
    ],
)
def test_few_samples_cannot_tell_a_share(goal: Goal, samples: int, room: float) -> None:
    search: Any = Found(samples, goal)
    assert _room(search, goal) == room
