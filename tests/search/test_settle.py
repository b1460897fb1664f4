"""What rounding weight by weight is used for, with stand-ins for the search and the judge."""

from __future__ import annotations

import contextlib
import math
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tfl_rewrite.search.clock import Clock, TimeIsUp
from tfl_rewrite.search.goals import Goal
from tfl_rewrite.search.holdout_judge import Figures
from tfl_rewrite.search.settle import MOST_TRIES, Room, _room, caveats, in_order, settle
from tfl_rewrite.search.standing import Found, finished, metric_of_original
from tfl_rewrite.search.trials import Measured, Rounding
from tfl_rewrite.weights.rounders import Effort

from .helpers import judged, measured, verdict

BEST = Goal(min_snr=30.0, effort=Effort.BEST)


class World:
    """A search whose files lose 1 dB for every 100 bytes less, and win some by rounding in order.

    Args:
        goal: What is searched for.
        won: By rounding in order, in dB.
        held: How much less held-out inputs show.
        more: Bytes that the final file takes beyond those measured.
    """

    def __init__(self, goal: Goal, *, won: float = 3.0, held: float = 0.0, more: int = 0) -> None:
        self.goal, self.won, self.held, self.more = goal, won, held, more
        self.can_order, self.path = True, Path("made.tflite")
        self.ordered: list[Measured] = []
        self.finished: list[Measured] = []
        self.curve: list[Measured] = []

    def offers(self, _choice: Any) -> bool:
        return True

    def cost(self, choice: Any) -> float:
        return self.curve[0].cost + len(choice)

    def at(self, snr: float) -> Measured:
        return measured(snr, round(1000 + 100 * snr), self.goal)

    def find(self, goal: Goal, *, margin: float = 0.0) -> Measured | None:
        assert goal.min_snr is not None
        return self.at(goal.min_snr + margin)

    def in_order(self, found: Measured) -> Measured:
        snr = found.snr
        assert snr is not None
        self.ordered.append(found)
        return replace(
            measured(snr + self.won, found.nbytes, self.goal), choice=found.choice, rounding=Rounding.IN_ORDER
        )

    def finish(self, found: Measured) -> int:
        self.finished.append(found)
        return found.nbytes + self.more

    def evaluate(self, _path: Path) -> Figures:
        snr = self.finished[-1].snr
        assert snr is not None
        return judged(snr - self.held)


def settled(world: World, snr: float = 30.0) -> Found:
    first = world.at(snr)
    return Found(first, judged(snr - world.held), notes=("before",))


def run(world: World, start: Found, tries: int = 5) -> Found:
    stand_in: Any = world
    return in_order(stand_in, stand_in, world.goal, stand_in, start, tries)


def test_what_it_wins_makes_the_file_smaller() -> None:
    world = World(BEST)
    start = settled(world)
    found = run(world, start)
    assert (
        found.promised is not None
        and start.promised is not None
        and found.promised.rounding is Rounding.IN_ORDER
    )
    assert found.promised.snr is not None and 30.0 <= found.promised.snr < 30.5
    assert start.promised.nbytes - 300 <= found.promised.nbytes <= start.promised.nbytes - 250
    assert found.notes[0] == "before" and "one after the other" in found.notes[1]


@pytest.mark.parametrize(("won", "is_taken"), [(26.0, True), (24.0, False)])
def test_beyond_a_jump_all_that_the_file_before_it_fits_is_fitted(won: float, is_taken: bool) -> None:
    world = World(BEST, won=won)
    start, other = settled(world, 41.0), world.at(5.0)
    assert start.promised is not None
    # What the smaller file leaves as it is, a weight behind the others, has a bias that makes up for them.
    form: Any = "int4"
    other = replace(other, choice={9: form})
    world.curve = [other, start.promised]
    found = run(world, start)
    assert found.promised is not None
    assert world.ordered[0].choice == {**start.promised.choice, 9: form}
    assert (found.promised.choice == world.ordered[0].choice) is is_taken


@pytest.mark.parametrize(("snr", "is_tried"), [(34.5, False), (35.5, True)])
def test_with_less_effort_it_is_for_files_that_leave_much_unused(snr: float, is_tried: bool) -> None:
    world = World(Goal(min_snr=30.0))
    start = settled(world, snr)
    found = run(world, start)
    assert bool(world.ordered) is is_tried is (found is not start)


def test_nothing_to_win() -> None:
    world = World(BEST, won=0.2)
    start = settled(world)
    assert run(world, start) is start
    assert len(world.ordered) == 1 and not world.finished


@pytest.mark.parametrize("tries", [0, 1, 2])
def test_no_more_files_than_allowed(tries: int) -> None:
    world = World(BEST, held=1.0)
    run(world, settled(world, 31.0), tries)
    assert len(world.ordered) <= tries + 1
    assert bool(world.ordered) == bool(tries)


def test_held_out_inputs_decide() -> None:
    # They show 1.5 dB less than the search: what the search would take is too small.
    world = World(BEST, held=1.5)
    found = run(world, settled(world, 31.5))
    assert found.promised is not None and found.proven is not None
    assert (found.proven.snr or 0.0) >= 30.0
    assert len(world.finished) > 1
    # However far off they are, what was proven before stays.
    world = World(BEST, held=50.0)
    start = settled(world, 80.0)
    assert run(world, start, 1) is start


def test_a_size_alone_gets_what_is_better() -> None:
    world = World(Goal(max_nbytes=5000))
    start = settled(world)
    found = run(world, start)
    assert found.promised is not None and found.promised.rounding is Rounding.IN_ORDER
    assert found.promised.nbytes == start.promised.nbytes  # type: ignore[union-attr]
    world = World(Goal(max_nbytes=5000), more=2000)
    start = settled(world)
    assert run(world, start) is start
    world = World(Goal(max_nbytes=5000), held=9.0)
    start = replace(settled(world), proven=judged(29.0))
    assert run(world, start) is start


def test_left_alone() -> None:
    agreement = World(Goal(min_agreement=0.9))
    assert run(agreement, settled(agreement)).promised == agreement.at(30.0)
    assert not agreement.ordered
    world = World(BEST)
    world.can_order = False
    run(world, settled(world))
    assert not world.ordered
    nothing = Found()
    assert run(World(BEST), nothing) is nothing


def test_out_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(BEST)
    start = settled(world)

    def late(_: Measured) -> Measured:
        raise TimeIsUp

    monkeypatch.setattr(world, "in_order", late)
    assert run(world, start) is start


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
        # Of a search that time ended nobody knows.
        assert not caveats(goal, settled, curve, is_done=False)


@pytest.mark.parametrize("inputs", ["held-out inputs", "the same inputs"])
def test_what_missed_the_bound_at_first_is_called_what_it_is(inputs: str) -> None:
    goal = Goal(min_snr=30.0)
    world: Any = World(goal, held=5.0)
    world.inputs, world.curve_traced, world.clock = inputs, True, Clock()
    (note,) = settle(world, world, goal, world).notes
    assert note.startswith(f"the file missed the bound on {inputs} at first: the search kept 3")


def test_few_samples_that_were_searched_with_are_no_others() -> None:
    goal = Goal(min_snr=30.0, min_agreement=0.99)
    settled = Found(measured(43.0, 2000, goal), judged(33.0))
    told = caveats(goal, settled)
    # What was asked for comes first.
    assert "cannot be told from 0 samples" in told[0] and "are far apart" in told[1]
    assert not any("are far apart" in note for note in caveats(goal, settled, held_out=False))


def test_a_channel_that_keeps_files_from_being_smaller_is_named() -> None:
    goal = Goal(min_snr=30.0)
    found = measured(43.0, 2000, goal)
    refused = {"snr_db": 38.0, "rule": "channel", "reason": "channel 7 of axis 1 keeps 18.2 dB"}
    smaller = replace(measured(38.0, 1000, goal), verdict=verdict(refused))
    settled = Found(found, judged(43.0))
    (note,) = [note for note in caveats(goal, settled, [found, smaller]) if "channel" in note]
    assert "out: channel 7 of axis 1 keeps 18.2 dB" in note
    assert not [
        note for note in caveats(goal, settled, [found, measured(38.0, 1000, goal)]) if "channel" in note
    ]


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


def test_what_is_proven_stays_where_time_ends_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(BEST, won=6.0, held=-3.0)
    start, made = settled(world), world.in_order

    def late(found: Measured) -> Measured:
        if len(world.ordered) == 2:
            raise TimeIsUp
        return made(found)

    monkeypatch.setattr(world, "in_order", late)
    found = run(world, start)
    assert found.promised is not None and start.promised is not None
    assert found.promised.nbytes < start.promised.nbytes


@pytest.mark.parametrize(
    ("first", "other", "told"),
    [
        (0.75, 0.5, 0.5),
        (0.5, 0.75, 0.5),
        (0.5, math.nan, math.nan),
        (math.nan, 0.5, math.nan),
        (0.5, None, 0.5),
    ],
)
def test_where_nothing_was_found_the_lower_figure_of_the_original_counts(
    first: float, other: float | None, told: float
) -> None:
    original = replace(measured(math.inf, 1000, BEST), metric=first)
    judge = SimpleNamespace(evaluate=lambda _path: replace(judged(math.inf), metric=other))
    trials: Any = SimpleNamespace(measure=lambda _choice: original, finish=lambda _made: 0, path=Path("made"))
    entered: Any = lambda: contextlib.nullcontext(judge)  # noqa: E731
    assert str(metric_of_original(trials, entered, Found())) == str(told)
    # The file's own are told elsewhere.
    assert str(metric_of_original(trials, entered, Found(original))) == str(first)


def test_a_download_has_the_compressed_size_of_the_file_itself(tmp_path: Path) -> None:
    goal = Goal(min_snr=30.0, objective="download")
    (tmp_path / "made").write_bytes(bytes(1000))
    trials: Any = SimpleNamespace(path=tmp_path / "made", goal=goal, finish=lambda _made: 1000)
    # Halves of the inputs make others.
    made = finished(trials, replace(measured(31.0, 990, goal), deflated=50))
    assert (made.nbytes, made.deflated) == (1000, len(zlib.compress(bytes(1000), 9)))
