"""Where the download is to be small: float weights of few values, if those deflate to less."""

from __future__ import annotations

import os
from dataclasses import replace

from tfl_rewrite import api
from tfl_rewrite.passes.base import run_passes
from tfl_rewrite.rounding_search.search import search_rounding
from tfl_rewrite.shrinking.goals import Objective
from tfl_rewrite.shrinking.sensitivity import Progress
from tfl_rewrite.shrinking.session import Session, Wanted
from tfl_rewrite.shrinking.settling import Settled
from tfl_rewrite.shrinking.trials import Measured, deflated_nbytes
from tfl_rewrite.storage import load, save
from tfl_rewrite.verification import Judge


def rounded_instead(
    source: str | os.PathLike[str],
    wanted: Wanted,
    opened: Session,
    settled: Settled,
    jury: Judge,
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
    near = replace(wanted.verification, inputs=opened.parted.everything)
    found = search_rounding(
        source,
        api.round_weights_pass(),
        near,
        min_snr=goal.min_snr,
        max_abs_error=goal.max_error,
        progress=progress,
    )
    path = opened.trials.path.with_name("rounded.tflite")
    model = load(source)
    run_passes(model, [*wanted.before, found.settings, *wanted.after])
    nbytes = save(model, path)
    deflated = deflated_nbytes(path)
    proven = jury.compare(path, tolerance=goal.tolerance)
    if goal.shortfall(proven) > 0 or (goal.max_nbytes is not None and nbytes > goal.max_nbytes):
        return settled
    if settled.promised is not None:
        opened.trials.finish(settled.promised)
        other = deflated_nbytes(opened.trials.path)
        text = f"{deflated:,} bytes deflated with float weights of few values, {other:,} with others stored"
        settled = replace(settled, notes=(*settled.notes, text))
        if other <= deflated:
            return settled
    with near.judge(source, exact=False) as judge:
        verdict = judge.compare(path, tolerance=goal.tolerance)
    promised = Measured(
        choice={},
        nbytes=nbytes,
        deflated=deflated,
        cost=float(deflated),
        verdict=verdict,
        metric=None,
        shortfall=goal.shortfall(verdict),
    )
    notes = (*settled.notes, "float weights stay, rounded to few values (round-weights)")
    return Settled(promised, proven, notes, found.settings)
