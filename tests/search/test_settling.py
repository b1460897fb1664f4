"""How much room a search is told to leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tfl_rewrite.search.goals import Goal
from tfl_rewrite.search.settle import MOST_TRIES, Found, Room, _room, caveats

from .helpers import judged, measured, verdict


class OneFile:
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
    search: Any = OneFile(samples, goal)
    assert _room(search, goal) == room


@pytest.mark.parametrize(
    ("kept", "others", "said"), [(93.0, [12.0, 95.0], True), (93.0, [], False), (33.0, [12.0], False)]
)
def test_outputs_that_jump_are_named(kept: float, others: list[float], said: bool) -> None:
    goal = Goal(min_snr=30.0)
    found = measured(kept, 2000, goal)
    settled = Found(found, judged(kept))
    curve = [found, *(measured(snr, 1000, goal) for snr in others)]
    notes = [note for note in caveats(goal, settled, curve) if "nothing was found between" in note]
    assert bool(notes) is said
    if said:
        assert "between 12.0 and 93.0 dB" in notes[0]


def test_room_grows_until_held_out_inputs_are_content() -> None:
    """The same file may come again and again, or one that is no better."""
    room = Room(0.0, in_db=True)
    margins = []
    while not room.settled:
        margins.append(room.margin)
        room.move(0.05)
    assert len(margins) == MOST_TRIES and margins == sorted(margins) and margins[-1] > 10
    room = Room(0.0, in_db=True)
    for missing in (0.05, 0.05, -0.3):
        room.move(missing)
    assert room.settled
    room = Room(0.0, in_db=True)
    for missing in (4.0, -5.0, 1.0, -2.0):
        assert not room.settled
        room.move(missing)
    assert room.settled and room.low < room.high
