"""Searches until the file holds on the inputs that were held out, too; then rounds weights in order.

While searching, each weight is rounded as if all others were floats, so that what was done for one file
serves all others. Rounded in order, each weight makes up for what those before it did, which is worth some
dB more, but has to be done anew for each file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tfl_rewrite.model.ir import Model
from tfl_rewrite.options.frozen import slotted
from tfl_rewrite.passes.remove_dead import names_nbytes
from tfl_rewrite.search.clock import TimeIsUp
from tfl_rewrite.search.goals import Goal
from tfl_rewrite.search.holdout_judge import HoldoutJudge
from tfl_rewrite.search.search import Search, key_of, snr_of
from tfl_rewrite.search.standing import Found, Judged, finished
from tfl_rewrite.search.trials import Measured, Trials
from tfl_rewrite.weights.rounders import Effort

TRIES = 4
"""How often the search is told to leave more room, or less of it, for what held-out inputs show."""
MOST_TRIES = 8
"""The same while held-out inputs refuse all that was found."""
_CLOSE = 0.7
"""So many dB above the bound are near enough."""
_APART = 3.0
"""By so many dB may the figures of different samples differ before it is said."""
_JUMP = 10.0
"""So many dB above the bound are no accident."""
EXACT_DB = 200.0
"""No ratio that is told is higher."""
_STRIDE = 3.0
"""By how many dB to tighten where what is bounded is not counted in dB."""
_SURE = 3
"""Samples that agree of which one may differ: with fewer than so many times as many it may be chance."""


def settle(
    search: Search, trials: Trials, goal: Goal, judge: HoldoutJudge, known: Judged | None = None
) -> Found:
    """Searches, judges what was found by held-out inputs, and moves the room that is left accordingly.

    Args:
        search: Has measured.
        trials: Makes files.
        goal: The bounds.
        judge: Judges by the inputs that were held out.
        known: What was judged before; what is judged now is added.
    """
    best, notes = Found(), list[str]()
    room, limit = Room(_room(search, goal), goal.in_db), goal.max_nbytes
    known = {} if known is None else known
    while not room.settled:
        if goal.bounds_error:
            found = _found(search, goal, room.margin)
        else:
            assert limit is not None
            found = search.largest_within(limit)
        if not search.curve_traced:
            search.trace(found.snr if found is not None else goal.min_snr)
        if found is None:
            break
        key = found.rounding, key_of(found.choice)
        if key not in known:
            try:
                with search.clock.extended():
                    search.clock.check()
                    found = finished(trials, found)
                    known[key] = found, judge.evaluate(trials.path)
            except TimeIsUp:
                break
        found, judged = known[key]
        if goal.max_nbytes is not None and found.nbytes > goal.max_nbytes:
            if goal.bounds_error:
                notes.append(f"the smallest file found that keeps the error has {found.nbytes:,} bytes")
                break
            # Rounded for all inputs, constants may not be as alike as before.
            assert limit is not None
            limit -= found.nbytes - goal.max_nbytes
            room.spend()
            continue
        missing = judged.missing(goal)
        if missing <= 0:
            if best.promised is None or found.cost < best.promised.cost:
                best = Found(found, judged, margin=room.margin)
        else:
            missed = f"the file missed the bound on {judge.inputs} at first"
            notes = [f"{missed}: the search kept {snr_of(found):.1f} dB then"]
        room.move(missing)
    return replace(best, notes=tuple(notes))


@slotted
class Room:
    """By how many dB the search is to keep the bounds: just enough for held-out inputs.

    Attributes:
        margin: To try next.
        in_db: Whether what is missing tells by how much to move on.
        settled: Whether there is nothing more to try.
    """

    margin: float
    in_db: bool
    settled: bool = False
    tries: int = 0
    low: float = 0.0
    high: float = math.inf
    stride: float = 0.25

    def spend(self) -> None:
        """Counts a try that says nothing of the margin."""
        self.tries += 1
        self.settled = self.tries >= MOST_TRIES

    def move(self, missing: float) -> None:
        """Takes in by how much held-out inputs missed the bounds with the margin at hand."""
        self.tries += 1
        if missing <= 0:
            near = self.margin == 0.0 or -missing < _CLOSE or not self.in_db
            self.high = self.margin
            self.settled = near or self.high - self.low < _CLOSE or self.tries >= TRIES
            self.margin = (self.low + self.high) / 2
            return
        self.low = self.margin
        if math.isfinite(self.high):
            self.settled = self.tries >= TRIES
            self.margin = (self.low + self.high) / 2
            return
        # Nothing was found yet: the same file may come again, or one that is no better, so stride on.
        self.settled = not math.isfinite(missing) or self.tries >= MOST_TRIES
        self.margin += max(missing + 0.1, self.stride) if self.in_db else _STRIDE
        self.stride *= 2


def _room(search: Search, goal: Goal) -> float:
    """Returns by how many dB to tighten from the start: where few samples cannot tell a share."""
    if goal.min_agreement is None or goal.max_nbytes is not None:
        return 0.0
    loosest = search.find(goal)
    if loosest is None:
        return 0.0
    return _STRIDE if loosest.verdict.sample_count < _SURE * _needed(goal.min_agreement) else 0.0


def _needed(agreement: float) -> float:
    """Returns of how many samples one may differ."""
    # 1 - 0.9 is a little less than a tenth.
    return math.ceil(1 / max(1e-9, 1 - agreement) - 1e-6) if agreement < 1 else math.inf


def _found(search: Search, goal: Goal, margin: float) -> Measured | None:
    if goal.in_db or margin == 0.0:
        return search.find(goal, margin=margin)
    # What is bounded says too little to move by; the ratio does.
    loosest = search.find(goal)
    if loosest is None or not math.isfinite(snr_of(loosest)):
        return None
    return search.find(goal, least=snr_of(loosest) + margin)


def _beyond_jump(goal: Goal, promised: Measured, curve: Sequence[Measured]) -> list[Measured]:
    """Returns the smaller files that miss the bound, where what is promised is far above it."""
    if goal.min_snr is None or snr_of(promised) < goal.min_snr + _JUMP:
        return []
    return [item for item in curve if item.cost < promised.cost and snr_of(item) < goal.min_snr]


def _channels(goal: Goal, promised: Measured, curve: Sequence[Measured]) -> list[str]:
    """Says so where a channel is what keeps files from being smaller, for the ratio does not tell."""
    if goal.min_snr is None or snr_of(promised) < goal.min_snr + _APART:
        return []
    kept = [
        (item.cost, output)
        for item in curve
        if item.cost < promised.cost and snr_of(item) >= goal.min_snr
        for output in item.verdict.outputs
        if output.rule == "channel"
    ]
    if not kept:
        return []
    _, output = max(kept, key=lambda each: each[0])
    return [
        f"smaller files keep {goal.min_snr:g} dB of each output, but not of each of its channels:"
        f" {output.label}: {output.reason}"
    ]


def _jumps(goal: Goal, promised: Measured, curve: Sequence[Measured]) -> list[str]:
    """Says so where files either keep nearly all or lose the bound by far."""
    lost = _beyond_jump(goal, promised, curve)
    if not lost:
        return []
    return [
        f"nothing was found between {max(map(snr_of, lost)):.1f} and {min(snr_of(promised), EXACT_DB):.1f}"
        " dB: where outputs jump (trees, masks, choices) they are kept or lost as a whole, on other inputs"
        " too"
    ]


def caveats(
    goal: Goal,
    settled: Found,
    curve: Sequence[Measured] = (),
    *,
    is_done: bool = True,
    held_out: bool = True,
) -> list[str]:
    """Returns what a reader should know of how sure this is, what was asked for first.

    Args:
        goal: The bounds.
        settled: What the search came to.
        curve: All files that were measured.
        is_done: Whether the search came to its end; if time ended it, gaps between files say nothing.
        held_out: Whether the search never saw the samples that judge.
    """
    if settled.proven is None or settled.promised is None:
        return []
    notes = _channels(goal, settled.promised, curve)
    notes = notes or (_jumps(goal, settled.promised, curve) if is_done else [])
    counts = [settled.promised.verdict.sample_count, settled.proven.verdict.sample_count]
    shown = settled.promised.verdict.worst_snr()
    hidden = settled.promised.hidden
    if hidden is not None and math.isfinite(hidden) and (shown is None or hidden < shown - _APART):
        behind = "more" if shown is None else f"{shown:.1f} dB"
        notes.append(
            f"{hidden:.1f} dB before the last SOFTMAX, LOGISTIC or TANH, {behind} behind it: the lower one"
            " counts, since outputs that are sure of themselves hide noise"
        )
    first, second = settled.promised.snr, settled.proven.snr
    if held_out and first is not None and second is not None and abs(first - second) > _APART:
        text = f"{first:.1f} dB on {counts[0]} samples and {second:.1f} dB on {counts[1]} others"
        notes.append(f"{text} are far apart: what other inputs show may differ as much")
    if goal.min_agreement is None:
        return notes
    needed = _needed(goal.min_agreement)
    if min(counts) >= needed:
        return notes
    many = f"at least {needed}" if math.isfinite(needed) else "many"
    return [
        f"agreement of {goal.min_agreement:.2%} cannot be told from {min(counts)} samples: give {many} to"
        " search with, and as many to hold out",
        *notes,
    ]


ORDERED_TRIES = {Effort.FAST: 0, Effort.BALANCED: 2, Effort.BEST: 5}
"""How many smaller files are tried."""
_UNUSED = 5.0
"""So many dB above the bound outputs jump, and rounding in order may be what the next smaller file lacks.
Nearer to it, it made none of the files of 10 models smaller at 30 and 40 dB (measured) and took a fifth of
the time: what it wins is less than what held-out inputs show less. With the most effort it is tried there."""
_WORTH = 0.3
"""So many dB won are worth a try."""
_SPARE = 0.2
"""So many dB are left to chance."""


def in_order(
    search: Search, trials: Trials, goal: Goal, judge: HoldoutJudge, settled: Found, tries: int
) -> Found:
    """Returns a smaller file, or with only a bound on the size a better one, if rounding in order gives it.

    Args:
        search: Has found something.
        trials: Makes files.
        goal: The bounds; nothing is done where one of them cannot be told in dB.
        judge: Judges by the inputs that were held out.
        settled: What was found.
        tries: How many smaller files to try, at most.
    """
    first = settled.promised
    if first is None or not tries or not goal.in_db or not trials.can_order or not first.choice:
        return settled
    try:
        if not goal.bounds_error:
            made = search.in_order(first)
            won = snr_of(made) > snr_of(first)
            return _proven(trials, goal, judge, settled, made)[0] if won else settled
        beyond = _fitted_beyond_jump(search, trials, goal, judge, settled)
        if beyond is not None or (goal.effort is not Effort.BEST and -first.missing(goal) < _UNUSED):
            return beyond or settled
        made = search.in_order(first)
        room = first.missing(goal) - made.missing(goal) - _SPARE
        return _smaller(search, trials, goal, judge, settled, room, tries)
    except TimeIsUp:
        return settled


def _fitted_beyond_jump(
    search: Search, trials: Trials, goal: Goal, judge: HoldoutJudge, settled: Found
) -> Found | None:
    """Tries the file beyond a jump with all weights behind it fitted; None where there is none that does.

    Where outputs jump it may be by an error that all samples share, such as that of a token which fills up
    all texts. The biases of weights behind it take that back, where they are fitted, too.
    """
    assert settled.promised is not None
    beyond = _beyond_jump(goal, settled.promised, search.curve)
    if not beyond:
        return None
    nearest = max(beyond, key=lambda item: item.cost)
    choice = {**settled.promised.choice, **nearest.choice}
    # Its own file may have been made by somebody with other options.
    cost = search.cost(choice) if search.offers(choice) else math.inf
    if cost >= settled.promised.cost:
        return None
    made = search.in_order(replace(nearest, choice=choice, cost=cost))
    if made.cost < settled.promised.cost and made.missing(goal) + settled.margin <= 0:
        return _proven(trials, goal, judge, settled, made)[0]
    return None


def _smaller(
    search: Search, trials: Trials, goal: Goal, judge: HoldoutJudge, settled: Found, room: float, tries: int
) -> Found:
    """Searches with less room by what was won, and by less again where that was too much."""
    best, tried = settled, set()
    while tries and room >= _WORTH and math.isfinite(room):
        assert best.promised is not None
        found = search.find(goal, margin=settled.margin - room)
        key = None if found is None else key_of(found.choice)
        if found is None or found.cost >= best.promised.cost or key in tried:
            break
        tried.add(key)
        tries -= 1
        try:
            made = search.in_order(found)
            missing = made.missing(goal) + settled.margin
            other = best
            if missing <= 0:
                other, missing = _proven(trials, goal, judge, best, made)
        except TimeIsUp:
            break
        if other is not best:
            best = other
            # What is left may do for a still smaller one.
            room += max(0.0, min(-missing, -made.missing(goal) - settled.margin))
            continue
        room -= max(missing, _WORTH)
    return best


def _proven(
    trials: Trials, goal: Goal, judge: HoldoutJudge, settled: Found, made: Measured
) -> tuple[Found, float]:
    """Returns what was made if it keeps the bounds on held-out inputs, and by how much it misses them."""
    made = finished(trials, made)
    if goal.max_nbytes is not None and made.nbytes > goal.max_nbytes:
        return settled, math.inf
    judged = judge.evaluate(trials.path)
    missing = judged.missing(goal)
    better = True
    if not goal.bounds_error and settled.proven is not None:
        better = judged.runs and snr_of(judged) >= snr_of(settled.proven)
    if missing > 0 or not better:
        return settled, missing
    note = "weights rounded one after the other, each behind those before it"
    notes = (*(text for text in settled.notes if text != note), note)
    return replace(settled, promised=made, proven=judged, notes=notes), missing


_MANY_NAMES = 0.02
"""Of a file, what names may take that nothing refers to before a note says so."""


def names_note(model: Model, goal: Goal, made: Measured | None) -> list[str]:
    """Returns a note where much of what was made are names that could be left out; else nothing."""
    nbytes = 0 if made is None or "names" in ",".join(goal.strip) else names_nbytes(model)
    if made is None or nbytes <= _MANY_NAMES * made.nbytes:
        return []
    return [f"names of tensors inside take about {nbytes:,} bytes; --strip names leaves them out"]
