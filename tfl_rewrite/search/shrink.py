"""The smallest file within a budget: search, prove it on inputs that the search never saw, publish."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tfl_rewrite.editing.base import Pass
from tfl_rewrite.errors import UsageError, check_number
from tfl_rewrite.files.claims import OUTPUT, Claim, check_claims, claims_of
from tfl_rewrite.files.source import Source
from tfl_rewrite.files.store import load
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.pipeline.report import Plan
from tfl_rewrite.pipeline.rewrite import carry_out
from tfl_rewrite.reading.metadata import with_media
from tfl_rewrite.samples.inputs import expand_paths
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.search.holdout_judge import HoldoutJudge
from tfl_rewrite.search.report import ShrinkFailed, ShrinkReport
from tfl_rewrite.search.sensitivity import Progress
from tfl_rewrite.search.session import Session, Wanted, session
from tfl_rewrite.search.settle import ORDERED_TRIES, Found, caveats, in_order, settle
from tfl_rewrite.search.trials import Frame, deflated_nbytes
from tfl_rewrite.search.units import ENCODINGS, base_pass
from tfl_rewrite.weights.encoding import unmatched_notes
from tfl_rewrite.weights.rounders import Effort
from tfl_rewrite.work import working


def _on_grids(opened: Session, found: Found, judge: HoldoutJudge) -> Found:
    """Returns float weights of few values instead, where those keep the bounds and deflate to less."""
    goal, trials = opened.wanted.goal, opened.trials
    if opened.wanted.grids is None or goal.min_snr is None:
        return found
    on_grids = settle(opened.grids(goal.min_snr), trials, goal, judge)
    if on_grids.promised is None:
        return found
    trials.finish(on_grids.promised)
    deflated = deflated_nbytes(trials.path)
    promised = replace(on_grids.promised, deflated=deflated, cost=float(deflated))
    note = "float weights stay, rounded to few values (round-weights)"
    on_grids = replace(on_grids, promised=promised, notes=(note,))
    if found.promised is None:
        return on_grids
    trials.finish(found.promised)
    other = deflated_nbytes(trials.path)
    text = f"{deflated:,} bytes deflated with float weights of few values, {other:,} with others stored"
    notes = (*found.notes, text)
    if other <= deflated:
        return replace(found, notes=notes)
    return replace(on_grids, notes=(*notes, note))


def shrink(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    goal: Goal,
    *,
    settings: QuantizeWeights,
    before: Sequence[Pass],
    after: Sequence[Pass],
    judging: Judging | None = None,
    metric: str | None = None,
    encodings: Sequence[str] = ENCODINGS,
    time_limit: float | None = None,
    state: str | os.PathLike[str] | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
    ready: Callable[[ShrinkReport], None] | None = None,
) -> ShrinkReport:
    """Finds the smallest file that keeps a budget, and publishes it; see :func:`tfl_rewrite.shrink`.

    Args:
        source: The file to read.
        target: The file to make.
        goal: The budget.
        settings: Which constants, how much effort, and the oldest runtime; its encodings are not used.
        before: Passes that lose nothing, run first.
        after: The same, run last.
        judging: What to measure with; its tolerance is not used.
        metric: ``module:function`` for ``goal.min_metric``.
        encodings: What is tried for each constant.
        time_limit: Seconds after which the search ends with the best that it has.
        state: A file that measurements are kept in, so that a search can be continued. It is read and
            written.
        force: Whether the target may exist, and ``state`` hold the measurements of another search.
        dry_run: Do everything but the publishing.
        threads: For rounding and writing.
        progress: Called with what is going on, and how many of how many steps are done.
        ready: Called with the report just before the file gets its name; what it raises keeps that from
            happening.

    Raises:
        ShrinkFailed: No file keeps the bounds.
        UnsupportedError: The original cannot be run, so nothing can be measured.
        UsageError: The target cannot be written, or an input does not fit.
    """
    checked = judging or Judging()
    if time_limit is not None:
        check_number("time_limit", time_limit, (0, 1e6))
    reads = claims_of(source, checked.inputs, checked.holdout)
    writes = [Claim(OUTPUT, os.fspath(target))]
    if state is not None:
        writes.append(Claim("state", os.fspath(state), mine=True))
    check_claims(reads, writes, force=force)
    expand_paths([*checked.inputs, *checked.holdout])
    # Whatever looks into it below gets it parsed.
    source = Source.of(source)
    checked = with_media(checked, source)
    if (goal.min_metric is None) != (metric is None):
        raise UsageError("a metric and its bound go together", remedy="give both --metric and --min-metric")
    if checked.mode == "off":
        raise UsageError("a search has to run the files", remedy="leave out --verify off")
    talk = progress or (lambda _what, _done, _total: None)
    grids = None
    if goal.objective is Objective.DOWNLOAD and goal.min_snr is not None and goal.in_db:
        effort = Effort.FAST if settings.effort is Effort.FAST else Effort.BALANCED
        grids = RoundWeights(effort=effort)
    wanted = Wanted(
        goal=goal,
        frame=Frame(source, before, after),
        judging=checked,
        base=base_pass(settings),
        grids=grids,
        metric=metric,
        encodings=encodings,
        time_limit=time_limit,
        state=state,
        force=force,
    )
    with session(wanted, talk) as opened:
        search, trials = opened.encodings(), opened.trials
        with opened.judge() as judge:
            found = settle(search, trials, goal, judge)
            found = in_order(search, trials, goal, judge, found, ORDERED_TRIES[settings.effort])
            found = _on_grids(opened, found, judge)
        made = ShrinkReport(
            goal=goal,
            source=source.path,
            target=os.fspath(target),
            nbytes_before=Path(source).stat().st_size,
            report=None,
            promised=found.promised,
            proven=found.proven.verdict if found.proven is not None else None,
            proven_snr=found.proven.snr if found.proven is not None else None,
            proven_sure=found.proven.sure if found.proven is not None else None,
            curve=tuple(search.curve),
            units=tuple(search.units),
            split=opened.split,
            files=trials.files,
            notes=(
                *_unmatched(source, settings),
                *search.notes,
                *found.notes,
                *caveats(goal, found, search.curve),
            ),
        )
        if found.promised is None or found.proven is None:
            raise ShrinkFailed(
                f"no file was found that keeps {goal.text()}, nothing was written",
                made,
                "choose a point of the table, or another budget",
            )
        lossy = trials.passes(found.promised.choice, ordered=found.promised.ordered)
        # Nothing is fitted any more: these judge only.
        last = replace(opened.far, inputs=(), holdout=opened.far.inputs, tolerance=goal.tolerance)
        plan = Plan(
            source=source,
            target=target,
            passes=(*before, *lossy, *after),
            settings=last,
            force=force,
            dry_run=dry_run,
            ready=lambda report: ready(replace(made, report=report)) if ready is not None else None,
        )
        with working(threads=threads):
            report = carry_out(plan)
    return replace(made, report=report)


def _unmatched(source: str | os.PathLike[str], settings: QuantizeWeights) -> list[str]:
    model = load(source)
    return unmatched_notes(settings.selection, model, Graph.of(model))
