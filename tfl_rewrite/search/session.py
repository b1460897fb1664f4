"""Opens a search: divides the inputs, makes the rounders, measures what constants cost."""

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
from tfl_rewrite.editing.base import Pass
from tfl_rewrite.files.atomic import PLAIN, access_of
from tfl_rewrite.files.store import load
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.pipeline.verification import Verification
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.search.metric import MetricProcess
from tfl_rewrite.search.search import Search
from tfl_rewrite.search.sensitivity import Progress
from tfl_rewrite.search.state import Clock, State
from tfl_rewrite.search.timing import Stopwatch
from tfl_rewrite.search.trials import Fold, PassMaker, Trials
from tfl_rewrite.search.units import ENCODINGS, base_pass, find_units
from tfl_rewrite.weights.encoding import Effort

_ROUNDING = 0.4
"""Of the time limit: what is not rounded for its activations by then is rounded without them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to search for, and with what; see :func:`tfl_rewrite.search.shrink.shrink`."""

    goal: Goal
    settings: QuantizeWeights
    before: Sequence[Pass]
    after: Sequence[Pass]
    verification: Verification
    holdout: Sequence[str | os.PathLike[str]] = ()
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
    far: Verification
    far_figure: MetricProcess | None


@contextlib.contextmanager
def session(source: str | os.PathLike[str], wanted: Wanted, progress: Progress) -> Iterator[Session]:
    """Opens a search and measures what each encoding of each constant costs.

    Raises:
        UnsupportedError: The original cannot be run, so nothing can be measured.
        UsageError: An input does not fit.
    """
    checked, goal, metric = wanted.verification, wanted.goal, wanted.metric
    clock = Clock(wanted.time_limit)
    with Scratch() as scratch:
        halves = wanted.settings.effort is not Effort.FAST
        holdout = wanted.holdout or checked.holdout
        parted = _split(source, checked, holdout, scratch, halves=halves)
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
            folds.append(Fold(base, partial(part.judge, exact=False), behind))
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
                Stopwatch(trials, scratch.folder()).price(search.units, progress)
            yield Session(trials, search, parted, far, far_figure)


def _split(
    source: str | os.PathLike[str],
    verification: Verification,
    holdout: Sequence[str | os.PathLike[str]],
    scratch: Scratch,
    *,
    halves: bool,
) -> Split:
    if not verification.inputs:
        judge = tuple(holdout)
        text = "made inputs; " + ("those of --holdout" if judge else "other ones") + " held out"
        return Split(((),), judge, text, True)
    return divide(load(source), verification.inputs, holdout, scratch.folder(), halves=halves)


def _equipped(
    base: QuantizeWeights,
    verification: Verification,
    inputs: Sequence[str | os.PathLike[str]],
    progress: Progress,
    time_is_up: Callable[[], bool],
) -> tuple[QuantizeWeights, PassMaker | None]:
    """Gives the pass a rounder that looks at inputs; one for all trials, so that nothing is done twice.

    Returns:
        The pass, and what makes it with a rounder that goes weight by weight.
    """
    from tfl_rewrite.calibration.rounder import PAINS, Calibrated

    if not inputs or base.effort is Effort.FAST:
        return base, None
    calibration = replace(
        replace(verification, inputs=tuple(inputs)).calibration(),
        pains=PAINS[base.effort],
        correct_bias=base.correct_bias,
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
    verification: Verification,
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
    words = (verification.samples, verification.seed, verification.runtime, verification.resolver)
    settings = (base.effort, base.min_runtime, base.correct_bias, tuple(encodings), parted.crossed)
    digest.update(repr((__version__, words, settings)).encode())
    return digest.hexdigest()
