"""Where the download is to be small: float weights of few values, if those deflate to less."""

from __future__ import annotations

import math
import os
from dataclasses import replace

from tfl_rewrite import api
from tfl_rewrite.passes.base import run_passes
from tfl_rewrite.rounding_search.search import RoundingSearch
from tfl_rewrite.shrinking.goals import Objective
from tfl_rewrite.shrinking.jury import Jury
from tfl_rewrite.shrinking.sensitivity import Progress
from tfl_rewrite.shrinking.session import Session, Wanted
from tfl_rewrite.shrinking.settling import Settled
from tfl_rewrite.shrinking.trials import Measured, deflated_nbytes
from tfl_rewrite.storage import load, save

_TRIES = 3
"""How often to round more finely for what held-out inputs show."""
_SPARE = 0.3
"""So many dB are left to chance."""


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
        jury: Jurys by the inputs that were held out.
        progress: Called with what is going on.
    """
    goal = wanted.goal
    if goal.objective is not Objective.DOWNLOAD or goal.min_snr is None or not goal.in_db:
        return settled
    near = replace(wanted.verification, inputs=opened.parted.everything)
    path = opened.trials.path.with_name("rounded.tflite")
    wished = goal.min_snr
    with RoundingSearch(source, api.round_weights_pass(), near, aim=wished, progress=progress) as search:
        for _ in range(_TRIES):
            found = search.find(wished, max_abs_error=goal.max_error)
            model = load(source)
            run_passes(model, [*wanted.before, found.settings, *wanted.after])
            nbytes = save(model, path, force=True)
            proven = jury.hear(path)
            missing = proven.missing(goal)
            if missing <= 0 or not math.isfinite(missing):
                break
            wished += missing + _SPARE
    if missing > 0 or (goal.max_nbytes is not None and nbytes > goal.max_nbytes):
        return settled
    deflated = deflated_nbytes(path)
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
    )
    notes = (*settled.notes, "float weights stay, rounded to few values (round-weights)")
    return Settled(promised, proven, notes, found.settings)
