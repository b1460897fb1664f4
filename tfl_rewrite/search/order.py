"""Rounds the weights of what was found one after the other, and stores some smaller for what that wins.

While searching, each weight is rounded as if all others were floats, so that what was done for one file
serves all others. Rounded in order, each weight makes up for what those before it did, which is worth some
dB more, but has to be done anew for each file.
"""

from __future__ import annotations

import math
from dataclasses import replace

from tfl_rewrite.search.goals import Goal
from tfl_rewrite.search.holdout_judge import Jury
from tfl_rewrite.search.search import Search, key_of, snr_of
from tfl_rewrite.search.settle import Settled
from tfl_rewrite.search.state import TimeIsUp
from tfl_rewrite.search.trials import Measured, Trials
from tfl_rewrite.weights.encoding import Effort

TRIES = {Effort.FAST: 0, Effort.BALANCED: 2, Effort.BEST: 5}
"""How many smaller files are tried."""
_WORTH = 0.3
"""So many dB won are worth a try."""
_SPARE = 0.2
"""So many dB are left to chance."""


def in_order(search: Search, trials: Trials, goal: Goal, jury: Jury, settled: Settled, tries: int) -> Settled:
    """Returns a smaller file, or with only a bound on the size a better one, if rounding in order gives it.

    Args:
        search: Has found something.
        trials: Makes files.
        goal: The bounds; nothing is done where one of them cannot be told in dB.
        jury: Judges by the inputs that were held out.
        settled: What was found.
        tries: How many files to try, at most.
    """
    first = settled.promised
    if first is None or not tries or not goal.in_db or not trials.can_order or not first.choice:
        return settled
    try:
        made = search.in_order(first)
        won = snr_of(made) - snr_of(first)
        if not goal.bounds_error:
            return _proven(trials, goal, jury, settled, made)[0] if won > 0 else settled
        return _smaller(search, trials, goal, jury, settled, won, tries)
    except TimeIsUp:
        return settled


def _smaller(
    search: Search, trials: Trials, goal: Goal, jury: Jury, settled: Settled, won: float, tries: int
) -> Settled:
    """Searches with less room by what was won, and by less again where that was too much."""
    best, room, tried = settled, won - _SPARE, set()
    while tries and room >= _WORTH and math.isfinite(room):
        assert best.promised is not None
        found = search.find(goal, margin=settled.margin - room)
        key = None if found is None else key_of(found.choice)
        if found is None or found.cost >= best.promised.cost or key in tried:
            break
        tried.add(key)
        tries -= 1
        made = search.in_order(found)
        missing = made.missing(goal) + settled.margin
        if missing <= 0:
            other, missing = _proven(trials, goal, jury, best, made)
            if other is not best:
                best = other
                # What is left may do for a still smaller one.
                room += max(0.0, min(-missing, -made.missing(goal) - settled.margin))
                continue
        room -= max(missing, _WORTH)
    return best


def _proven(
    trials: Trials, goal: Goal, jury: Jury, settled: Settled, made: Measured
) -> tuple[Settled, float]:
    """Returns what was made if it keeps the bounds on held-out inputs, and by how much it misses them."""
    made = replace(made, nbytes=trials.finish(made))
    if goal.max_nbytes is not None and made.nbytes > goal.max_nbytes:
        return settled, math.inf
    heard = jury.hear(trials.path)
    missing = heard.missing(goal)
    better = True
    if not goal.bounds_error and settled.proven is not None:
        better = heard.runs and snr_of(heard) >= snr_of(settled.proven)
    if missing > 0 or not better:
        return settled, missing
    note = "weights rounded one after the other, each behind those before it"
    notes = (*(text for text in settled.notes if text != note), note)
    return replace(settled, promised=made, proven=heard, notes=notes), missing
