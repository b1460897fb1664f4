"""Where the download is to be small: float weights of few values, if those deflate to less."""

from __future__ import annotations

import os
from dataclasses import replace

from tfl_rewrite.editing.base import run_passes
from tfl_rewrite.files.store import load, save
from tfl_rewrite.passes import calls
from tfl_rewrite.search.goals import Objective
from tfl_rewrite.search.holdout_judge import Jury
from tfl_rewrite.search.rounding import RoundingSearch
from tfl_rewrite.search.sensitivity import Progress
from tfl_rewrite.search.session import Session, Wanted
from tfl_rewrite.search.settle import Room, Settled
from tfl_rewrite.search.trials import Measured, deflated_nbytes
from tfl_rewrite.weights.encoding import Effort


def rounded_instead(
    source: str | os.PathLike[str],
    wanted: Wanted,
    opened: Session,
    settled: Settled,
    jury: Jury,
    progress: Progress,
) -> Settled:
    """Returns the pass that rounds float weights instead, where that keeps the bounds and deflates to less.

    Args:
        source: The original.
        wanted: What to search for; nothing is done unless it is a download of some SNR.
        opened: The search.
        settled: What it came to.
        jury: Judges by the inputs that were held out.
        progress: Called with what is going on.
    """
    goal = wanted.goal
    if goal.objective is not Objective.DOWNLOAD or goal.min_snr is None or not goal.in_db:
        return settled
    rounded = _rounded(source, wanted, opened, jury, progress)
    if rounded is None or rounded.promised is None:
        return settled
    deflated = rounded.promised.deflated
    if settled.promised is None:
        return rounded
    opened.trials.finish(settled.promised)
    other = deflated_nbytes(opened.trials.path)
    text = f"{deflated:,} bytes deflated with float weights of few values, {other:,} with others stored"
    notes = (*settled.notes, text)
    if other <= deflated:
        return replace(settled, notes=notes)
    return replace(rounded, notes=(*notes, *rounded.notes))


def _rounded(
    source: str | os.PathLike[str], wanted: Wanted, opened: Session, jury: Jury, progress: Progress
) -> Settled | None:
    """Returns the rounding of float weights that deflates best and keeps the bounds, if one was found."""
    goal = wanted.goal
    assert goal.min_snr is not None
    near = replace(wanted.verification, inputs=opened.parted.everything, holdout=())
    path = opened.trials.path.with_name("rounded.tflite")
    room, best = Room(0.0, in_db=True), None
    effort = "fast" if wanted.settings.effort is Effort.FAST else "balanced"
    settings, prepared = calls.round_weights_pass(effort=effort), opened.trials.prepared
    if prepared is None:
        return None
    with (
        # Grids belong to positions of buffers, as the first passes leave them.
        RoundingSearch(prepared, settings, near, aim=goal.min_snr, progress=progress) as search,
        near.judge(source, exact=False) as judge,
    ):
        while not room.settled:
            found = search.find(goal.min_snr + room.margin, max_abs_error=goal.max_error)
            model = load(prepared)
            run_passes(model, [found.settings, *wanted.after])
            nbytes = save(model, path, force=True)
            heard, deflated = jury.hear(path), deflated_nbytes(path)
            missing = heard.missing(goal)
            room.move(missing)
            if missing > 0 or (goal.max_nbytes is not None and nbytes > goal.max_nbytes):
                continue
            if best is None or best.promised is None or deflated < best.promised.deflated:
                verdict = judge.compare(path, tolerance=goal.tolerance)
                cost = float(deflated)
                promised = Measured(choice={}, nbytes=nbytes, deflated=deflated, cost=cost, verdict=verdict)
                note = "float weights stay, rounded to few values (round-weights)"
                best = Settled(promised, heard, (note,), found.settings)
    return best
