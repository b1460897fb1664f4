"""The smallest file within a budget: search, prove it on inputs that the search never saw, publish.

And the coarsest rounding of constants that keeps the outputs at a given ratio: the search with grids only.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field, replace
from typing import Any, Generic, TypeVar

from tfl_rewrite.editing.base import Pass, last_packing, run_passes
from tfl_rewrite.errors import UsageError
from tfl_rewrite.files.claims import Claim
from tfl_rewrite.files.source import ModelLike, Source, layout
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.judge.verdict import Verdict
from tfl_rewrite.options.frozen import frozen, slotted
from tfl_rewrite.passes.compact import Compact
from tfl_rewrite.passes.dedup import Dedup
from tfl_rewrite.passes.prune import Encode, Prune
from tfl_rewrite.passes.remove_dead import RemoveDead, strips
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.passes.simplify import Simplify
from tfl_rewrite.pipeline.report import Plan, RewriteFailed
from tfl_rewrite.pipeline.rewrite import PathLike, carry_out, source_of
from tfl_rewrite.reading.metadata import on_disk, with_media
from tfl_rewrite.search.anytime import Anytime
from tfl_rewrite.search.clock import Clock, TimeIsUp
from tfl_rewrite.search.downloads import by_steps, smallest_download
from tfl_rewrite.search.goals import ANY, FLOATS, INTEGERS, Goal, Objective
from tfl_rewrite.search.integers import FLOAT_SHARE, Tried, chosen, of_floats, rivals, why_not
from tfl_rewrite.search.report import ShrinkFailed, ShrinkReport, report_of
from tfl_rewrite.search.sensitivity import Progress
from tfl_rewrite.search.session import Session, Wanted, session
from tfl_rewrite.search.settle import Room, settle
from tfl_rewrite.search.standing import Found, Standing, Step, held, runner_up
from tfl_rewrite.search.trials import UNMADE, Frame, Measured, Rounding
from tfl_rewrite.search.units import base_pass
from tfl_rewrite.weights.rounders import Effort
from tfl_rewrite.work import working

UNTIMED = (
    "the time limit ended the search before encodings were timed: bytes are small, not the time of a call; "
    "give more with --time-limit"
)
_BEFORE: tuple[Pass, ...] = (RemoveDead(), Dedup())


def shrink(
    source: ModelLike,
    target: PathLike,
    goal: Goal,
    *,
    judging: Judging | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
) -> ShrinkReport:
    """Writes the smallest file that keeps a budget.

    Args:
        source: A path, bytes, an open file or a model; never changed, unless it is the target too.
        target: The file to make.
        goal: The budget, and what is tried.
        judging: What to measure with; its tolerance is not used. Its ``holdout`` judges the end result only;
            without any, a quarter of the other inputs does.
        force: Whether the target may exist, and ``goal.state`` hold the measurements of another search, which
            it loses then.
        dry_run: Do everything but the publishing.
        threads: For rounding and writing; 0 for one per processor.
        progress: Called with what is going on, and how many of how many steps are done.

    Raises:
        ShrinkFailed: No file keeps the budget; its ``report`` has the trade-offs.
        UsageError, FileAccessError, FormatError, UnsupportedError: As for :func:`tfl_rewrite.rewrite`.

    Example:
        >>> report = tfl_rewrite.shrink(
        ...     "model.tflite",
        ...     "small.tflite",
        ...     tfl_rewrite.Goal(min_snr=20, effort="fast"),
        ...     judging=tfl_rewrite.Judging(inputs=("inputs.npz",)),
        ... )
        >>> report.report.nbytes_after < report.nbytes_before
        True
    """
    settings = judging or Judging()
    with on_disk(source) as file, working(threads=threads):
        plan = Plan(source=file, target=target, passes=(), settings=settings, force=force, dry_run=dry_run)
        return search_and_publish(plan, goal, progress=progress)


def search_and_publish(
    plan: Plan,
    goal: Goal,
    *,
    ready: Callable[[ShrinkReport], None] = lambda _report: None,
    progress: Progress | None = None,
) -> ShrinkReport:
    """Does what :func:`shrink` says, with the threads of the work that goes on.

    Args:
        plan: The files and the judging; its passes are found.
        goal: The budget, and what is tried.
        ready: Called with the report just before the file gets its name; what it raises keeps that from
            happening.
        progress: As for :func:`shrink`.

    Raises:
        ShrinkFailed, UsageError, FileAccessError, FormatError, UnsupportedError: As for :func:`shrink`.
    """
    with opened_for(wanted_of(plan, goal), progress) as opened:
        opened.trials.measure({})
        opened.clock.reserve()
        tried, steps = _all_tried(opened)
        ladder = Ladder(opened, tried)
        while True:
            made = report_of(plan, opened, ladder.best, ladder.tried, steps, ladder.refused)
            if made.promised is None or made.proven is None:
                raise ShrinkFailed(f"{made.missed}; nothing was written", made, made.remedy)
            try:
                return _publish(plan, opened, ladder.best, made, ready)
            except RewriteFailed as error:
                # What nobody can tell of one file, nobody can tell of another.
                if error.report.unverified is None and ladder.step_back(error.report.verdict):
                    continue
                none = replace(made, promised=None, proven=None, proven_snr=None, proven_sure=None)
                none = replace(none, notes=(*ladder.refused[-1:], *made.notes))
                raise ShrinkFailed(error.what, none, error.remedy or made.remedy) from error


_STEPS = 3
"""So many other files of the curve are published at most, where the last verdict refuses them one by one."""


@slotted(eq=False)
class Ladder:
    """Files that keep the budget, from the best of a search to the original.

    Attributes:
        opened: The search.
        tried: What came of each kind of activations.
        refused: What is to be said of those that the last verdict refused.
        room: How much the next file of the curve is to keep.
    """

    opened: Session
    tried: list[Tried]
    refused: list[str] = field(init=False, default_factory=list)
    room: Room = field(init=False)

    def __post_init__(self) -> None:
        self.room = Room(-math.inf, self.opened.wanted.goal.in_db)

    @property
    def best(self) -> Tried:
        """What is to be published."""
        return next((item for item in self.tried if item.chosen), self.tried[0])

    def step_back(self, verdict: Verdict | None) -> bool:
        """Goes on to the next file after the best was refused; False where there is none.

        The smallest file of the curve that keeps more by as much as was missed comes first, then what other
        activations came to, then the original, which keeps all bounds on the error.

        Args:
            verdict: The one that refused it.
        """
        best, goal = self.best, self.opened.wanted.goal
        made = best.found.promised
        assert made is not None
        why = "; ".join(verdict.reasons) if verdict is not None else "it was not verified"
        self.refused.append(f"a file of {made.nbytes:,} bytes was refused by the last verdict: {why}")
        others = {item.activations: item for item in self.tried}
        others[best.activations] = replace(best, chosen=False, reason=why, path=None)
        floats = others.get(FLOATS, Tried(activations=FLOATS))
        opened, judge = self.opened, self.opened.judge()
        with judge:
            original = Standing(opened.trials, goal, judge, opened.clock, opened.trials.measure({}))
            found = None
            if best.activations == FLOATS and made.choice and len(self.refused) <= _STEPS:
                short = 0.0 if verdict is None else verdict.short_db()
                self.room.margin = max(self.room.margin, held(made, goal))
                # What is no matter of degree tells nothing of how far to go.
                self.room.move(short if 0 < short < math.inf else 0.1)
                found = runner_up(floats.curve, original, made, self.room.margin)
            keeping = [item for item in others.values() if item.keeps]
            if found is None and keeping:
                following = min(keeping, key=lambda item: math.inf if item.cost is None else item.cost)
            else:
                found = found or (original.found if made.choice or made.activations else Found())
                if found.promised is None:
                    return False
                following = of_floats(opened, floats.search, found)
        others[following.activations] = replace(following, chosen=True, reason="")
        self.tried = list(others.values())
        return True


def _publish(
    plan: Plan, opened: Session, best: Tried, made: ShrinkReport, ready: Callable[[ShrinkReport], None]
) -> ShrinkReport:
    """Makes what was found anew, has it judged by all kernels, and gives it its name.

    Raises:
        RewriteFailed: The last verdict refuses what those of the search took; nothing was written.
    """
    frame, goal = opened.wanted.frame, opened.wanted.goal
    last = Plan(
        source=frame.source,
        target=plan.target,
        passes=(*frame.before, *best.passes, *frame.after),
        # Nothing is fitted any more: these judge only.
        settings=replace(
            opened.far,
            inputs=(),
            holdout=opened.far.inputs,
            tolerance=goal.tolerance,
            agreeing=not goal.bounds_error,
        ),
        force=plan.force,
        dry_run=plan.dry_run,
        ready=lambda report: ready(replace(made, report=report)),
    )
    return replace(made, report=carry_out(last))


@contextlib.contextmanager
def opened_for(wanted: Wanted, progress: Progress | None = None) -> Iterator[Session]:
    """Opens a search in the simplified model, where that is smaller and keeps the budget; its time counts.

    Args:
        wanted: What to search for, and with what.
        progress: As for :func:`shrink`.

    Raises:
        UsageError, UnsupportedError: As for :func:`tfl_rewrite.search.session.session`.
    """
    clock, frame = Clock(wanted.goal.time_limit), wanted.frame
    frame = replace(frame, before=(Simplify(), *frame.before))
    if _is_worth(frame):
        with session(replace(wanted, frame=frame), progress, clock) as opened:
            if opened.trials.measure({}).missing(wanted.goal) <= 0:
                yield opened
                return
    with session(wanted, progress, clock) as opened:
        yield opened


def _is_worth(frame: Frame) -> bool:
    """Whether the first pass makes the original smaller; not where it cannot, such as for its metadata."""
    source, sizes = Source.of(frame.source), list[int]()
    try:
        for passes in (frame.before, frame.before[1:]):
            results = run_passes(model := source.model(), [*passes, *frame.after])
            sizes.append(layout(model, packing=last_packing(results)).nbytes)
    except UNMADE:
        return False
    return sizes[0] < sizes[1]


def _tells(verdict: Verdict) -> bool:
    """Whether the original agrees with itself in anything: no bound says anything of what is all NaN."""
    return any(item.snr_db is not None or item.equal_share for item in verdict.outputs)


def _all_tried(opened: Session) -> tuple[list[Tried], tuple[Step, ...]]:
    """Searches in floats, with integers, or both, as was asked for.

    Returns:
        What came of each kind of activations, and what was done for it.

    Raises:
        UsageError: Integers alone were asked for, and there is nothing to calibrate them with.
    """
    goal = opened.wanted.goal
    obstacle = "" if goal.activations == FLOATS else why_not(opened)
    if obstacle and goal.activations != ANY:
        raise UsageError(
            f"integer activations need real inputs: {obstacle}",
            remedy="give --inputs with a folder of pictures or sound, or a .npz; a few tens of samples",
        )
    if goal.bounds_error and not _tells(opened.trials.measure({}).verdict):
        with opened.judge() as judge:
            kept = Standing(opened.trials, goal, judge, opened.clock, opened.trials.measure({})).found
        return [replace(of_floats(opened, None, kept), chosen=True)], ()
    alone = obstacle or goal.activations == FLOATS
    tried: list[Tried] = []
    steps: tuple[Step, ...] = ()
    if alone or goal.activations == ANY:
        opened.clock.share = 1.0 if alone else FLOAT_SHARE
        search = opened.unmeasured()
        if goal.objective is Objective.LATENCY:
            # What a file takes is told by what each of its constants does.
            try:
                opened.measure(search)
            except TimeIsUp:
                search.notes.append(UNTIMED)
        with opened.judge() as judge:
            coded = None if opened.wanted.grids is None else by_steps(opened, judge)
            standing = Standing(opened.trials, goal, judge, opened.clock, search.whole({}, Rounding.FITTED))
            found, encodings = Anytime(opened, search, standing).run(), search
            if opened.wanted.grids is not None:
                search, found = smallest_download(opened, (search, found), coded, judge)
        opened.clock.share = 1.0
        steps = tuple(standing.steps)
        made = of_floats(opened, search, found)
        # Whatever was taken, those are to be chosen from.
        more = () if search is encodings else encodings.curve
        tried.append(replace(made, curve=(*made.curve, *more)))
    if obstacle:
        tried += [Tried(activations=kind, reason=f"not tried: {obstacle}") for kind in INTEGERS]
    elif not alone:
        with opened.judge() as judge, rivals(opened, judge) as others:
            tried += others.tried()
            steps += tuple(others.steps)
            if goal.bounds_error and not any(item.keeps for item in tried):
                original = Standing(opened.trials, goal, judge, opened.clock, opened.trials.measure({})).found
                tried.append(of_floats(opened, None, original))
    return tried if goal.activations == FLOATS else chosen(opened, tried), steps


def wanted_of(plan: Plan, goal: Goal) -> Wanted:
    """Checks what was asked for, and opens the source."""
    judging = plan.settings
    state = [] if goal.state is None else [Claim("state", os.fspath(goal.state), mine=True)]
    # Whatever looks into it below gets it parsed.
    source = source_of(plan, *state)
    if judging.mode == "off":
        raise UsageError("a search has to run the files", remedy="leave out --verify off")
    # Before anything is run: its library may not be installed.
    goal.codec.sized()
    grids = None
    if goal.objective is Objective.DOWNLOAD and goal.min_snr is not None and goal.in_db:
        grids = RoundWeights(effort=Effort.FAST if goal.effort is Effort.FAST else Effort.BALANCED)
    return Wanted(
        goal=goal,
        frame=Frame(source, _BEFORE, (*strips(goal.strip), Compact())),
        judging=with_media(judging, source),
        base=base_pass(goal.weights, goal.objective),
        grids=grids,
        force=plan.force,
    )


_SAME = "what was searched for was measured with the samples that judge it: judge by others too"

Searched = TypeVar("Searched", bound=RoundWeights | Prune)
"""A pass that says what outputs must keep, and leaves how to a search."""


def _objective(settings: RoundWeights | Prune) -> Objective:
    """What such a pass makes small."""
    sparse = isinstance(settings, Prune) and settings.encode is Encode.SPARSE
    return Objective.FILE if sparse else Objective.DOWNLOAD


@frozen
class FoundChoices(Generic[Searched]):
    """What a search came to.

    Attributes:
        settings: The pass that was found.
        snr: Lowest ratio over the outputs that was measured with it, in dB; None where none has one. Levels
            that are chosen for inputs were chosen for other ones than those measured with.
        files: How many files were run.
    """

    settings: Searched
    snr: float | None
    files: int


def search_choices(
    source: ModelLike,
    settings: Searched,
    judging: Judging,
    *,
    min_snr: float,
    max_abs_error: float | None = None,
    before: Sequence[Pass] = (),
    progress: Progress | None = None,
) -> FoundChoices[Searched]:
    """Finds the coarsest rounding of constants, or the most zeros, that keep the outputs at a given ratio.

    With real inputs values are chosen for what weights meet, which fits the samples at hand: they come in two
    halves, and each half measures weights that were rounded for the other. A quarter of the samples is held
    out; while the file does not keep the ratio there, the search leaves more room. What goes into a last
    SOFTMAX that decides few things has to keep the ratio as well: outputs that are sure of themselves hide
    noise that others show. How many files are run depends on the model alone, not on the clock, so the same
    input gives the same result.

    Args:
        source: A path, bytes, an open file or a model.
        settings: Which constants, and how; its steps, its share and its ratio are not used.
        judging: What to measure with; its tolerance is not used.
        min_snr: What every output must keep, in dB.
        max_abs_error: What no element of an output may be off by more than.
        before: Passes that lose nothing, which run first.
        progress: Called with what is going on, and how many of how many runs are done.

    Raises:
        UnsupportedError: The original cannot be run, so nothing can be measured.
        UsageError: A bound is out of its range.
    """
    nothing: dict[str, Any] = {"choices": {}}
    goal = Goal(
        min_snr=min_snr,
        max_error=max_abs_error,
        objective=_objective(settings),
        effort=settings.effort,
        sure=False,
    )
    with (
        on_disk(source) as file,
        choices_session(file, settings, judging, goal, progress, before=before) as opened,
    ):
        search = opened.grids(min_snr) if isinstance(settings, RoundWeights) else opened.sparsities()
        if not search.units:
            return FoundChoices(replace(settings, **nothing), None, opened.trials.files)
        with opened.judge() as judge:
            found = settle(search, opened.trials, goal, judge).promised
        if found is None:
            return FoundChoices(replace(settings, **nothing), None, opened.trials.files)
        (made,) = opened.trials.passes(found.choice)
        assert isinstance(made, type(settings))
        made = replace(made, notes=_notes(opened, found))
        return FoundChoices(made, found.verdict.worst_snr(), opened.trials.files)


@contextlib.contextmanager
def choices_session(
    source: str | os.PathLike[str],
    settings: RoundWeights | Prune,
    judging: Judging,
    goal: Goal,
    progress: Progress | None = None,
    *,
    before: Sequence[Pass] = (),
) -> Iterator[Session]:
    """Opens a search among grids, or shares of zeros, for any number of targets; see :class:`Session`."""
    wanted = Wanted(
        goal=goal,
        frame=Frame(source, before),
        judging=with_media(judging, source),
        grids=settings if isinstance(settings, RoundWeights) else None,
        pruning=settings if isinstance(settings, Prune) else None,
        others=False,
    )
    with session(wanted, progress) as opened:
        yield opened


def _notes(opened: Session, found: Measured) -> tuple[str, ...]:
    """Returns what was measured, where the verdict on the file does not show it."""
    split, snr, notes = opened.split, found.verdict.worst_snr(), []
    if snr is not None and (split.reason or not opened.wanted.judging.inputs):
        notes.append(f"{_SAME}; {split.reason}" if split.reason else _SAME)
    elif snr not in (None, float("inf")):
        notes.append(f"the search measured {snr:.1f} dB on {split.dealt or split.text}")
    if found.hidden is not None:
        notes.append(f"what goes into the last SOFTMAX, LOGISTIC or TANH keeps {found.hidden:.1f} dB")
    return tuple(notes)
