"""The smallest file within a budget: search, prove it on inputs that the search never saw, publish."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tfl_rewrite import __version__
from tfl_rewrite.calibration.holdout import Split, divide
from tfl_rewrite.editing.base import Pass, run_passes
from tfl_rewrite.errors import UsageError, check_number
from tfl_rewrite.files.atomic import PLAIN, access_of
from tfl_rewrite.files.claims import OUTPUT, Claim, check_claims
from tfl_rewrite.files.store import load, save
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.model.graph import Graph
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.pipeline.rewrite import Plan, carry_out, check_present, claims_of
from tfl_rewrite.reading.metadata import with_media
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.search.holdout_judge import HoldoutJudge
from tfl_rewrite.search.metric import MetricProcess
from tfl_rewrite.search.report import ShrinkFailed, ShrinkReport
from tfl_rewrite.search.rounding import RoundingSearch
from tfl_rewrite.search.search import Search
from tfl_rewrite.search.sensitivity import Clock, Progress, State
from tfl_rewrite.search.settle import ORDERED_TRIES, Chosen, Found, Room, caveats, in_order, settle
from tfl_rewrite.search.timing import Stopwatch
from tfl_rewrite.search.trials import Fold, Measured, PassMaker, Trials, deflated_nbytes
from tfl_rewrite.search.units import ENCODINGS, base_pass, find_units
from tfl_rewrite.weights.recipe import unmatched_notes
from tfl_rewrite.weights.rounders import Effort
from tfl_rewrite.work import working

_ROUNDING = 0.4
"""Of the time limit: what is not rounded for its activations by then is rounded without them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to search for, and with what; see :func:`tfl_rewrite.search.shrink.shrink`."""

    goal: Goal
    settings: QuantizeWeights
    before: Sequence[Pass]
    after: Sequence[Pass]
    judging: Judging
    metric: str | None = None
    encodings: Sequence[str] = ENCODINGS
    time_limit: float | None = None
    state: str | os.PathLike[str] | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """A search that has measured.

    Attributes:
        far: How to verify with the inputs that were held out.
        far_figure: The user's own figure on those.
    """

    trials: Trials
    search: Search
    parted: Split
    far: Judging
    far_figure: MetricProcess | None


@contextlib.contextmanager
def session(source: str | os.PathLike[str], wanted: Wanted, progress: Progress) -> Iterator[Session]:
    """Opens a search and measures what each encoding of each constant costs.

    Raises:
        UnsupportedError: The original cannot be run, so nothing can be measured.
        UsageError: An input does not fit.
    """
    checked, goal, metric = wanted.judging, wanted.goal, wanted.metric
    clock = Clock(wanted.time_limit)
    with Scratch() as scratch:
        halves = wanted.settings.effort is not Effort.FAST
        parted = _split(source, checked, scratch, halves=halves)
        parts = [replace(checked, inputs=part, holdout=()) for part in parted.folds]
        far = replace(checked, inputs=parted.judge, holdout=(), seed=checked.seed + (not parted.judge))
        plain = base_pass(wanted.settings)
        everything = parted.everything if parted.crossed else ()
        final, ordered = _equipped(plain, checked, everything, progress, partial(clock.is_past, 1.0))
        folds = []
        for number, part in enumerate(parts):
            others = parted.others(number) if parted.crossed else ()
            until = _ROUNDING * (number + 1) / len(parts)
            base, behind = _equipped(plain, checked, others, progress, partial(clock.is_past, until))
            folds.append(Fold(base, partial(Judge, judging=part), behind))
        figure = MetricProcess(metric, source, parts, scratch.folder()) if metric is not None else None
        if figure is not None:
            figure.check()
        far_figure = MetricProcess(metric, source, [far], scratch.folder()) if metric is not None else None
        with Trials(
            source,
            before=wanted.before,
            folds=folds,
            final=final,
            after=wanted.after,
            folder=scratch.folder(),
            goal=goal,
            metric=figure,
            ordered=ordered,
        ) as trials:
            units = find_units(trials.fresh, plain, wanted.encodings, goal.objective)
            key = _key(source, parted, checked, plain, wanted.encodings)
            state = State(
                Path(wanted.state) if wanted.state is not None else None,
                key,
                force=wanted.force,
                access=access_of(source) & PLAIN,
            )
            search = Search(trials, units, goal=goal, state=state, clock=clock, progress=progress)
            search.measure(Path(source).stat().st_size)
            if goal.objective is Objective.LATENCY:
                Stopwatch(trials, scratch.folder(), checked.runtime[0]).price(search.units, progress)
            yield Session(trials, search, parted, far, far_figure)


def _split(
    source: str | os.PathLike[str],
    judging: Judging,
    scratch: Scratch,
    *,
    halves: bool,
) -> Split:
    if not judging.inputs:
        judge = judging.holdout
        text = "made inputs; " + ("those of --holdout" if judge else "other ones") + " held out"
        return Split(((),), judge, text, True)
    return divide(load(source), judging.inputs, judging.holdout, scratch.folder(), halves=halves)


def _equipped(
    base: QuantizeWeights,
    judging: Judging,
    inputs: Sequence[str | os.PathLike[str]],
    progress: Progress,
    time_is_up: Callable[[], bool],
) -> tuple[QuantizeWeights, PassMaker | None]:
    """Gives the pass a rounder that looks at inputs; one for all trials, so that nothing is done twice.

    Returns:
        The pass, and what makes it with a rounder that goes weight by weight.
    """
    from tfl_rewrite.calibration.rounder import EFFORTS, Calibrated, Settings

    if not inputs or base.effort is Effort.FAST:
        return base, None
    calibration = replace(
        Settings.of(replace(judging, inputs=tuple(inputs))),
        effort=EFFORTS[base.effort],
        correct_bias=base.bias_correction,
    )

    def hundredths(what: str, done: int, total: int) -> None:
        # A rounder counts bytes, and a search steps.
        progress(what, min(99, 100 * done // total) if total else 0, 100)

    def ordered() -> QuantizeWeights:
        return replace(base, rounder=Calibrated(replace(calibration, in_order=True), hundredths))

    return replace(base, rounder=Calibrated(calibration, hundredths, time_is_up)), ordered


def _key(
    source: str | os.PathLike[str],
    parted: Split,
    judging: Judging,
    base: QuantizeWeights,
    encodings: Sequence[str],
) -> str:
    """Returns what measurements belong to: the file, the inputs and the settings."""
    digest = hashlib.sha256()
    for path in (source, *parted.everything):
        for file in sorted(Path(path).rglob("*")) if Path(path).is_dir() else [Path(path)]:
            with open(file, "rb") as opened:
                while piece := opened.read(1 << 20):
                    digest.update(piece)
    words = (judging.samples, judging.seed, judging.runtime, judging.resolver)
    settings = (base.effort, base.min_runtime, base.bias_correction, tuple(encodings), parted.crossed)
    digest.update(repr((__version__, words, settings)).encode())
    return digest.hexdigest()


def rounded_instead(
    source: str | os.PathLike[str],
    wanted: Wanted,
    opened: Session,
    settled: Found,
    judge: HoldoutJudge,
    progress: Progress,
) -> Found:
    """Returns the pass that rounds float weights instead, where that keeps the bounds and deflates to less.

    Args:
        source: The original.
        wanted: What to search for; nothing is done unless it is a download of some SNR.
        opened: The search.
        settled: What it came to.
        judge: Judges by the inputs that were held out.
        progress: Called with what is going on.
    """
    goal = wanted.goal
    if goal.objective is not Objective.DOWNLOAD or goal.min_snr is None or not goal.in_db:
        return settled
    rounded = _rounded(source, wanted, opened, judge, progress)
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
    source: str | os.PathLike[str], wanted: Wanted, opened: Session, judge: HoldoutJudge, progress: Progress
) -> Found | None:
    """Returns the rounding of float weights that deflates best and keeps the bounds, if one was found."""
    goal = wanted.goal
    assert goal.min_snr is not None
    near = replace(wanted.judging, inputs=opened.parted.everything, holdout=())
    path = opened.trials.path.with_name("rounded.tflite")
    room, best = Room(0.0, in_db=True), None
    effort = Effort.FAST if wanted.settings.effort is Effort.FAST else Effort.BALANCED
    settings, prepared = RoundWeights(effort=effort), opened.trials.prepared
    if prepared is None:
        return None
    with (
        # Grids belong to positions of buffers, as the first passes leave them.
        RoundingSearch(prepared, settings, near, aim=goal.min_snr, progress=progress) as search,
        Judge(source, near) as own,
    ):
        while not room.settled:
            found = search.find(goal.min_snr + room.margin, max_abs_error=goal.max_error)
            model = load(prepared)
            run_passes(model, [found.settings, *wanted.after])
            nbytes = save(model, path, force=True)
            judged, deflated = judge.evaluate(path), deflated_nbytes(path)
            missing = judged.missing(goal)
            room.move(missing)
            if missing > 0 or (goal.max_nbytes is not None and nbytes > goal.max_nbytes):
                continue
            if best is None or best.promised is None or deflated < best.promised.deflated:
                verdict = own.compare(path, tolerance=goal.tolerance)
                cost = float(deflated)
                promised = Measured(choice={}, nbytes=nbytes, deflated=deflated, cost=cost, verdict=verdict)
                note = "float weights stay, rounded to few values (round-weights)"
                best = Found(promised, judged, (note,), found.settings)
    return best


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
        check_number("time_limit", time_limit)
    reads = claims_of(source, checked)
    writes = [Claim(OUTPUT, os.fspath(target))]
    if state is not None:
        writes.append(Claim("state", os.fspath(state), mine=True))
    check_claims(reads, writes, force=force)
    check_present(*checked.inputs, *checked.holdout)
    checked = with_media(checked, source)
    if (goal.min_metric is None) != (metric is None):
        raise UsageError("a metric and its bound go together", remedy="give both --metric and --min-metric")
    if checked.mode == "off":
        raise UsageError("a search has to run the files", remedy="leave out --verify off")
    talk = progress or (lambda _what, _done, _total: None)
    wanted = Wanted(
        goal=goal,
        settings=settings,
        before=before,
        after=after,
        judging=checked,
        metric=metric,
        encodings=encodings,
        time_limit=time_limit,
        state=state,
        force=force,
    )
    with session(source, wanted, talk) as opened:
        with HoldoutJudge(source, opened.trials.inside, opened.far, goal, opened.far_figure) as judge:
            settled = settle(opened.search, opened.trials, goal, judge)
            settled = in_order(
                opened.search, opened.trials, goal, judge, settled, ORDERED_TRIES[settings.effort]
            )
            settled = rounded_instead(source, wanted, opened, settled, judge, talk)
        made = ShrinkReport(
            goal=goal,
            source=os.fspath(source),
            target=os.fspath(target),
            nbytes_before=Path(source).stat().st_size,
            report=None,
            promised=settled.promised,
            proven=settled.proven.verdict if settled.proven is not None else None,
            proven_snr=settled.proven.snr if settled.proven is not None else None,
            proven_sure=settled.proven.sure if settled.proven is not None else None,
            curve=tuple(opened.search.curve),
            units=tuple(opened.search.units),
            split=opened.parted,
            files=opened.trials.files,
            notes=(
                *_unmatched(source, settings),
                *opened.search.notes,
                *settled.notes,
                *caveats(goal, settled, opened.search.curve),
            ),
        )
        if settled.promised is None or settled.proven is None:
            raise ShrinkFailed(
                f"no file was found that keeps {goal.text()}, nothing was written",
                made,
                "choose a point of the table, or another budget",
            )
        weights = opened.trials.final(ordered=settled.promised.ordered)
        lossy = settled.rounding or Chosen(weights, settled.promised.choice)
        # Nothing is fitted any more: these judge only.
        last = replace(opened.far, inputs=(), holdout=opened.far.inputs, tolerance=goal.tolerance)
        plan = Plan(
            source=source,
            target=target,
            passes=(*before, lossy, *after),
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
