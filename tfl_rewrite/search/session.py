"""Opens a search: divides the inputs, makes what looks at them, measures what each form costs."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tfl_rewrite import __version__
from tfl_rewrite.calibration.holdout import Split, divide
from tfl_rewrite.editing.base import Pass
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.files.atomic import PLAIN, access_of
from tfl_rewrite.files.source import load
from tfl_rewrite.interpreter.memory import MemoryWatch, default_limit
from tfl_rewrite.interpreter.process import RuntimeChoice, warm
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.interpreter.worker import Worker
from tfl_rewrite.judge.judge import Judge
from tfl_rewrite.judge.settings import Judging
from tfl_rewrite.passes.prune import Prune
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.passes.round_weights import Granularity, RoundWeights
from tfl_rewrite.search.clock import Clock
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.search.holdout_judge import HoldoutJudge, MetricProcess
from tfl_rewrite.search.search import Search
from tfl_rewrite.search.sensitivity import Progress, State, measure_grids
from tfl_rewrite.search.trials import Fold, Frame, Rounders, Trials
from tfl_rewrite.search.units import Unit, encodings_for, find_units, sparsity_unit
from tfl_rewrite.weights.rounders import Effort

_TIMEOUT = 600.0

ORDERED_NBYTES = 64 << 20
"""Of integers that were rounded in order for each part of the inputs: the next file begins as others did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to search for, and with what.

    Attributes:
        goal: The bounds, and what is tried.
        frame: The original, and what is done around the choice of forms.
        judging: What to measure with; its tolerance is not used. Its ``holdout`` judges the end result only;
            without any, a part of the other inputs does.
        base: The weight pass, where encodings are searched; its encodings are not used.
        grids: The pass that rounds values, where grids are searched; its steps are not used.
        pruning: The pass that makes values zero, where shares are searched; its share is not used.
        others: Whether made inputs that judge the end result are other ones than those of the search.
        force: Whether ``goal.state`` may hold the measurements of another search.
    """

    goal: Goal
    frame: Frame
    judging: Judging
    base: QuantizeWeights | None = None
    grids: RoundWeights | None = None
    pruning: Prune | None = None
    others: bool = True
    force: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """An open search.

    Attributes:
        wanted: What to search for.
        trials: Makes and measures files.
        split: Which inputs are used for what.
        far: How to verify with the inputs that were held out.
        folder: For files and the user's own figure.
        clock: Ends the search early.
        progress: Called with what is going on, and how many of how many steps are done.
    """

    wanted: Wanted
    trials: Trials
    split: Split
    far: Judging
    folder: Path
    clock: Clock
    progress: Progress

    @contextlib.contextmanager
    def behind(self, passes: Sequence[Pass], activations: str) -> Iterator[Session]:
        """Opens a search among the constants that other passes leave, which may lose something themselves.

        Args:
            passes: They look at no inputs but those of this search.
            activations: What they make operators compute in.
        """
        wanted, own = self.wanted, self.trials
        frame = wanted.frame
        frame = replace(frame, before=(*frame.before, *passes), activations=activations)
        # Constants have other positions: what was measured of them is not for the user's file.
        wanted = replace(wanted, frame=frame, goal=replace(wanted.goal, state=None), grids=None)
        with Scratch() as scratch:
            parts = [fold.judging for fold in own.folds]
            folds, final = _folds(wanted, self.split, parts, own.judge, self.clock, self.progress)
            with Trials(
                frame,
                folds,
                final,
                judge=own.judge,
                folder=scratch.folder(),
                goal=wanted.goal,
                metric=own.metric,
                beside=own,
            ) as trials:
                yield replace(self, wanted=wanted, trials=trials, folder=scratch.folder())

    def judge(self) -> HoldoutJudge:
        """Returns what judges by the inputs that were held out; to be entered once something was measured."""
        goal, source, own = self.wanted.goal, self.wanted.frame.source, self.trials
        metric = goal.metric
        figure = MetricProcess(metric, source, [self.far], self.folder) if metric is not None else None
        return HoldoutJudge(source, own.inside, self.far, goal, own.judge, figure, self.split.judges)

    def encodings(self) -> Search:
        """Measures what each encoding of each constant costs; returns what finds assignments of them.

        Raises:
            TimeIsUp: Before anything was measured.
        """
        search = self.unmeasured()
        self.measure(search)
        return search

    def measure(self, search: Search) -> None:
        """Measures what each encoding of each constant costs.

        Raises:
            TimeIsUp: Before anything was measured.
        """
        search.measure(Path(self.wanted.frame.source).stat().st_size)
        if self.wanted.goal.objective is Objective.LATENCY:
            stopwatch = Stopwatch(self.trials, self.folder, self.wanted.judging.runtime[0])
            stopwatch.price(search.units, self.progress, self.clock)

    def unmeasured(self) -> Search:
        """Finds the encodings that each constant can have; returns what finds assignments of them."""
        wanted, goal, source = self.wanted, self.wanted.goal, self.wanted.frame.source
        base = wanted.base
        assert base is not None
        tried = encodings_for(goal)
        units = find_units(self.trials.fresh, base, tried, goal.objective)
        state = State(
            Path(goal.state) if goal.state is not None else None,
            _key(wanted, base, tried, self.split),
            force=wanted.force,
            access=access_of(source) & PLAIN,
        )
        return self._search(units, state)

    def grids(self, aim: float) -> Search:
        """Measures what grids of each constant cost, near a ratio in dB; returns what finds them.

        Raises:
            TimeIsUp: Before all of them were measured.
        """
        settings = self.wanted.grids
        assert settings is not None
        by_channel = settings.granularity is not Granularity.TENSOR
        with self.clock.interruptible():
            units = measure_grids(
                self.trials, aim, by_channel=by_channel, clock=self.clock, progress=self.progress
            )
        search = self._search(units, State(None, ""))
        # Their curve is not what is shown.
        search.curve_traced = True
        return search

    def sparsities(self) -> Search:
        """Measures what shares of zeros in each weight cost; returns what finds them."""
        settings = self.wanted.pruning
        assert settings is not None
        units = [sparsity_unit(item, settings) for item in self.trials.prepare_sparsities()]
        search = self._search([unit for unit in units if len(unit.options) > 1], State(None, ""))
        search.measure(Path(self.wanted.frame.source).stat().st_size)
        search.curve_traced = True
        return search

    def _search(self, units: list[Unit], state: State) -> Search:
        goal, clock = self.wanted.goal, self.clock
        return Search(self.trials, units, goal=goal, state=state, clock=clock, progress=self.progress)


@contextlib.contextmanager
def session(
    wanted: Wanted, progress: Progress | None = None, clock: Clock | None = None
) -> Iterator[Session]:
    """Opens a search.

    Args:
        wanted: What to search for, and with what.
        progress: Called with what is going on, and how many of how many steps are done.
        clock: Of a search that began before; its own without it.

    Raises:
        UnsupportedError: The original cannot be run, so nothing can be measured.
        UsageError: An input does not fit.
    """
    checked, goal, source = wanted.judging, wanted.goal, wanted.frame.source
    progress = progress or (lambda _what, _done, _total: None)
    clock = Clock(goal.time_limit) if clock is None else clock
    with Scratch() as scratch:
        split = _split(wanted, scratch)
        warm(checked.runtime[0])  # Inputs fit the model: it loads while files are made.
        parts = [replace(checked, inputs=part, holdout=()) for part in split.folds]
        other = wanted.others and not split.judge
        far = replace(checked, inputs=split.judge, holdout=(), seed=checked.seed + other)
        figure = None
        if goal.metric is not None:
            figure = MetricProcess(goal.metric, source, parts, scratch.folder())
            figure.check()
        with Judge(source, parts[0]) as judge:
            folds, final = _folds(wanted, split, parts, judge, clock, progress)
            own, far_folder = scratch.folder(), scratch.folder()
            with Trials(
                wanted.frame, folds, final, judge=judge, folder=own, goal=goal, metric=figure
            ) as trials:
                yield Session(wanted, trials, split, far, far_folder, clock, progress)


def _folds(
    wanted: Wanted, split: Split, parts: Sequence[Judging], judge: Judge, clock: Clock, progress: Progress
) -> tuple[list[Fold], Rounders]:
    """Returns the parts of the inputs, each with what looks at the others; and what may look at all."""
    rounders = partial(_rounders, wanted, progress=progress, clock=clock, beside=judge)
    final = rounders(split.everything if split.crossed else ())
    folds = []
    for number, part in enumerate(parts):
        others = split.others(number) if split.crossed else ()
        folds.append(Fold(part, rounders(others)))
    return folds, final


def _split(wanted: Wanted, scratch: Scratch) -> Split:
    judging = wanted.judging
    if not judging.inputs:
        text = "made inputs; " + ("those of --holdout" if judging.holdout else "other ones") + " held out"
        return Split(((),), judging.holdout, text, True)
    halves = wanted.goal.effort is not Effort.FAST
    model = load(wanted.frame.source)
    return divide(model, judging.inputs, judging.holdout, scratch.folder(), halves=halves)


def _rounders(
    wanted: Wanted,
    inputs: Sequence[str | os.PathLike[str]],
    *,
    progress: Progress,
    clock: Clock,
    beside: Judge,
) -> Rounders:
    """Gives the passes what looks at inputs; one for all trials, so that nothing is done twice."""
    from tfl_rewrite.calibration.coder import Coder
    from tfl_rewrite.calibration.fitter import Fitter
    from tfl_rewrite.calibration.rounder import METRICS_NBYTES, Calibrated, Ordered

    base, grids, pruning = wanted.base, wanted.grids, wanted.pruning
    if not inputs or wanted.goal.effort is Effort.FAST:
        return Rounders(base, base, None, grids, pruning, coder=Coder(None, clock.interrupt))
    judging = replace(wanted.judging, inputs=tuple(inputs))

    hundredths = in_hundredths(progress)
    fitter = Fitter(judging, hundredths, beside=beside, interrupt=clock.interrupt)
    if grids is not None:
        grids = replace(grids, fitting=fitter)
    if pruning is not None:
        pruning = replace(pruning, fitting=Fitter(judging, hundredths, beside=beside))
    if base is None:
        return Rounders(None, None, None, grids, pruning)
    plain = base
    calibrated = functools.partial(
        Calibrated,
        judging,
        effort=plain.effort,
        correct_bias=plain.bias_correction,
        progress=hundredths,
        time_is_up=clock.is_past,
        beside=beside,
    )

    known = Ordered(ORDERED_NBYTES)

    def ordered() -> QuantizeWeights:
        return replace(plain, rounder=calibrated(ordered=known))

    fitted = calibrated()
    fitted.keeps = METRICS_NBYTES
    return Rounders(
        replace(plain, rounder=fitted),
        plain,
        ordered,
        grids,
        coder=Coder(fitter, clock.interrupt),
    )


def in_hundredths(progress: Progress) -> Progress:
    """Returns what is told by those who count bytes, for one who counts steps."""

    def hundredths(what: str, done: int, total: int) -> None:
        progress(what, min(99, 100 * done // total) if total else 0, 100)

    return hundredths


def _key(wanted: Wanted, base: QuantizeWeights, tried: Sequence[str], split: Split) -> str:
    """Returns what measurements belong to: the file, the inputs and the settings."""
    digest = hashlib.sha256()
    for path in (wanted.frame.source, *split.everything):
        for file in sorted(Path(path).rglob("*")) if Path(path).is_dir() else [Path(path)]:
            with open(file, "rb") as opened:
                while piece := opened.read(1 << 20):
                    digest.update(piece)
    checked = wanted.judging
    words = (checked.samples, checked.seed, checked.runtime, checked.resolver)
    before = tuple(item.name for item in wanted.frame.before)
    settings = (base.effort, base.min_runtime, base.bias_correction, tuple(tried), split.crossed, before)
    digest.update(repr((__version__, words, settings)).encode())
    return digest.hexdigest()


class Stopwatch:
    """Times files.

    Args:
        trials: Makes them.
        folder: For them.
        runtime: That runs them.
    """

    def __init__(self, trials: Trials, folder: Path, runtime: str) -> None:
        self._trials = trials
        self._folder = folder
        self._runtime = runtime

    def price(self, units: Sequence[Unit], progress: Progress, clock: Clock) -> None:
        """Puts into each option what it adds to the time of the model, in seconds; bytes settle a tie.

        Raises:
            TimeIsUp: Before all of them were timed: what they cost is what it was.
        """
        original = self._folder / "original.tflite"
        self._trials.write({}, original)
        costs: list[list[float]] = []
        for number, unit in enumerate(units):
            progress("timing encodings", number, len(units))
            paths = []
            for index, option in enumerate(unit.options[1:]):
                clock.check()
                path = self._folder / f"{index}.tflite"
                self._trials.write({unit.position: option.form}, path)
                paths.append(path)
            base, *times = self.seconds([original, *paths], clock)
            # Differences within the jitter of the clock are none.
            more = [taken - base if abs(taken - base) > 0.02 * base else 0.0 for taken in (base, *times)]
            costs.append(more)
        for unit, more in zip(units, costs, strict=True):
            for option, seconds in zip(unit.options, more, strict=True):
                option.cost = seconds + option.nbytes * 1e-13

    def seconds(self, paths: Sequence[Path], clock: Clock | None = None) -> list[float]:
        """Returns the lower quartile of one call of each file, with made inputs and one thread.

        Args:
            paths: The files.
            clock: That ends it early.

        Raises:
            TimeIsUp: It did.
            UnsupportedError: One of them does not run.
        """
        with contextlib.closing(Scratch()) as scratch:
            choice, watch = RuntimeChoice.parse(self._runtime), MemoryWatch(default_limit())
            worker = Worker(choice, scratch, watch, timeout=_TIMEOUT)
            try:
                worker.admit(*paths)
                request = {"do": "time", "models": [str(path) for path in paths], "threads": 1}
                worker.begin(request)
                done = worker.finish(_TIMEOUT if clock is None else min(_TIMEOUT, clock.left))
            finally:
                worker.kill()
        if done.failure is not None:
            if clock is not None and done.failure.kind == "timeout":
                clock.check()
            raise UnsupportedError(
                f"cannot be timed: {done.failure.message}", remedy="use another --objective"
            )
        return [float(item) for item in done.answer["seconds"]]
