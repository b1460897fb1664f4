"""Opens a search: divides the inputs, makes what looks at them, measures what each form costs."""

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
from tfl_rewrite.files.atomic import PLAIN, access_of
from tfl_rewrite.files.store import load
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.round_weights import Granularity, RoundWeights
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.search.holdout_judge import HoldoutJudge
from tfl_rewrite.search.metric import MetricProcess
from tfl_rewrite.search.search import Search
from tfl_rewrite.search.sensitivity import Clock, Progress, State, measure_grids
from tfl_rewrite.search.timing import Stopwatch
from tfl_rewrite.search.trials import Fold, Frame, Rounders, Trials
from tfl_rewrite.search.units import ENCODINGS, find_units
from tfl_rewrite.weights.rounders import Effort

_ROUNDING = 0.4
"""Of the time limit: what is not rounded for its activations by then is rounded without them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to search for, and with what.

    Attributes:
        goal: The bounds.
        frame: The original, and what is done around the choice of forms.
        judging: What to measure with; its tolerance is not used. Its ``holdout`` judges the end result only;
            without any, a part of the other inputs does.
        base: The weight pass, where encodings are searched; its encodings are not used.
        grids: The pass that rounds values, where grids are searched; its steps are not used.
        others: Whether made inputs that judge the end result are other ones than those of the search.
        metric: ``module:function`` for ``goal.min_metric``.
        encodings: What is tried for each constant.
        time_limit: Seconds after which the search ends with the best that it has.
        state: A file that measurements are kept in.
        force: Whether that may hold the measurements of another search.
    """

    goal: Goal
    frame: Frame
    judging: Judging
    base: QuantizeWeights | None = None
    grids: RoundWeights | None = None
    others: bool = True
    metric: str | None = None
    encodings: Sequence[str] = ENCODINGS
    time_limit: float | None = None
    state: str | os.PathLike[str] | None = None
    force: bool = False

    @property
    def effort(self) -> Effort:
        """How much work rounding is worth."""
        settings = self.base or self.grids
        return settings.effort if settings is not None else Effort.FAST


class Session:
    """An open search.

    Args:
        wanted: What to search for.
        trials: Makes and measures files.
        split: Which inputs are used for what.
        far: How to verify with the inputs that were held out.
        folder: For files and the user's own figure.
        clock: Ends the search early.
        progress: Called with what is going on, and how many of how many steps are done.
    """

    def __init__(
        self,
        wanted: Wanted,
        trials: Trials,
        split: Split,
        *,
        far: Judging,
        folder: Path,
        clock: Clock,
        progress: Progress,
    ) -> None:
        self.wanted = wanted
        self.trials = trials
        self.split = split
        self.far = far
        self._folder = folder
        self._clock = clock
        self._progress = progress

    def judge(self) -> HoldoutJudge:
        """Returns what judges by the inputs that were held out; to be entered once something was measured."""
        goal, metric, source = self.wanted.goal, self.wanted.metric, self.wanted.frame.source
        figure = MetricProcess(metric, source, [self.far], self._folder) if metric is not None else None
        return HoldoutJudge(source, self.trials.inside, self.far, goal, figure)

    def encodings(self) -> Search:
        """Measures what each encoding of each constant costs; returns what finds assignments of them."""
        wanted, goal, source = self.wanted, self.wanted.goal, self.wanted.frame.source
        base = wanted.base
        assert base is not None
        units = find_units(self.trials.fresh, base, wanted.encodings, goal.objective)
        state = State(
            Path(wanted.state) if wanted.state is not None else None,
            _key(wanted, base, self.split),
            force=wanted.force,
            access=access_of(source) & PLAIN,
        )
        clock, progress = self._clock, self._progress
        search = Search(self.trials, units, goal=goal, state=state, clock=clock, progress=progress)
        search.measure(Path(source).stat().st_size)
        if goal.objective is Objective.LATENCY:
            Stopwatch(self.trials, self._folder, wanted.judging.runtime[0]).price(search.units, progress)
        return search

    def grids(self, aim: float) -> Search:
        """Measures what grids of each constant cost, near a ratio in dB; returns what finds them."""
        settings = self.wanted.grids
        assert settings is not None
        by_channel = settings.granularity is not Granularity.TENSOR
        units = measure_grids(self.trials, aim, by_channel=by_channel, progress=self._progress)
        search = Search(
            self.trials,
            units,
            goal=self.wanted.goal,
            state=State(None, ""),
            clock=self._clock,
            progress=self._progress,
        )
        # Their curve is not what is shown.
        search.curve_traced, search.until = True, 1.0
        return search


@contextlib.contextmanager
def session(wanted: Wanted, progress: Progress) -> Iterator[Session]:
    """Opens a search.

    Raises:
        UnsupportedError: The original cannot be run, so nothing can be measured.
        UsageError: An input does not fit.
    """
    checked, goal, metric, source = wanted.judging, wanted.goal, wanted.metric, wanted.frame.source
    clock = Clock(wanted.time_limit)
    with Scratch() as scratch:
        split = _split(wanted, scratch)
        parts = [replace(checked, inputs=part, holdout=()) for part in split.folds]
        other = wanted.others and not split.judge
        far = replace(checked, inputs=split.judge, holdout=(), seed=checked.seed + other)
        everything = split.everything if split.crossed else ()
        final = _rounders(wanted, everything, progress, partial(clock.is_past, 1.0))
        folds = []
        for number, part in enumerate(parts):
            others = split.others(number) if split.crossed else ()
            until = _ROUNDING * (number + 1) / len(parts)
            rounders = _rounders(wanted, others, progress, partial(clock.is_past, until))
            folds.append(Fold(partial(Judge, judging=part), rounders))
        figure = MetricProcess(metric, source, parts, scratch.folder()) if metric is not None else None
        if figure is not None:
            figure.check()
        with Trials(wanted.frame, folds, final, folder=scratch.folder(), goal=goal, metric=figure) as trials:
            far_folder = scratch.folder()
            yield Session(wanted, trials, split, far=far, folder=far_folder, clock=clock, progress=progress)


def _split(wanted: Wanted, scratch: Scratch) -> Split:
    judging = wanted.judging
    if not judging.inputs:
        text = "made inputs; " + ("those of --holdout" if judging.holdout else "other ones") + " held out"
        return Split(((),), judging.holdout, text, True)
    halves = wanted.effort is not Effort.FAST
    model = load(wanted.frame.source)
    return divide(model, judging.inputs, judging.holdout, scratch.folder(), halves=halves)


def _rounders(
    wanted: Wanted,
    inputs: Sequence[str | os.PathLike[str]],
    progress: Progress,
    time_is_up: Callable[[], bool],
) -> Rounders:
    """Gives the passes what looks at inputs; one for all trials, so that nothing is done twice."""
    from tfl_rewrite.calibration.fitter import Fitter
    from tfl_rewrite.calibration.rounder import EFFORTS, Calibrated, Settings

    base, grids = wanted.base, wanted.grids
    if not inputs or wanted.effort is Effort.FAST:
        return Rounders(base, None, grids)
    settings = Settings.of(replace(wanted.judging, inputs=tuple(inputs)))

    def hundredths(what: str, done: int, total: int) -> None:
        # A rounder counts bytes, and a search steps.
        progress(what, min(99, 100 * done // total) if total else 0, 100)

    if grids is not None:
        grids = replace(grids, fitting=Fitter(settings, hundredths))
    if base is None:
        return Rounders(None, None, grids)
    plain = base
    calibration = replace(settings, effort=EFFORTS[base.effort], correct_bias=base.bias_correction)

    def ordered() -> QuantizeWeights:
        return replace(plain, rounder=Calibrated(replace(calibration, in_order=True), hundredths))

    return Rounders(replace(base, rounder=Calibrated(calibration, hundredths, time_is_up)), ordered, grids)


def _key(wanted: Wanted, base: QuantizeWeights, split: Split) -> str:
    """Returns what measurements belong to: the file, the inputs and the settings."""
    digest = hashlib.sha256()
    for path in (wanted.frame.source, *split.everything):
        for file in sorted(Path(path).rglob("*")) if Path(path).is_dir() else [Path(path)]:
            with open(file, "rb") as opened:
                while piece := opened.read(1 << 20):
                    digest.update(piece)
    checked = wanted.judging
    words = (checked.samples, checked.seed, checked.runtime, checked.resolver)
    settings = (base.effort, base.min_runtime, base.bias_correction, tuple(wanted.encodings), split.crossed)
    digest.update(repr((__version__, words, settings)).encode())
    return digest.hexdigest()
