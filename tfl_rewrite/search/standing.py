"""The best file of a search so far, and how the search came to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from tfl_rewrite.options.frozen import frozen, slotted
from tfl_rewrite.options.json_data import JsonData, finite, shown
from tfl_rewrite.search.clock import Clock, TimeIsUp
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.search.holdout_judge import Figures, HoldoutJudge
from tfl_rewrite.search.search import key_of, snr_of
from tfl_rewrite.search.trials import Measured, Trials, packed_nbytes

_SWEPT = 3
"""Files that were measured on the way, and are judged at the end of a step."""


@frozen
class Found:
    """What the search came to.

    Attributes:
        promised: On the inputs of the search; None if no file keeps the bounds.
        proven: The file itself on held-out inputs.
        margin: By how many dB the search was told to keep the bounds.
    """

    promised: Measured | None = None
    proven: Figures | None = None
    notes: tuple[str, ...] = ()
    margin: float = 0.0


Judged = dict[Hashable, tuple[Measured, Figures]]
"""Files that were judged by held-out inputs, as they are to be published; by how they were made."""


@dataclass(frozen=True, slots=True)
class Step(JsonData):
    """A step of a search.

    Attributes:
        step: What was done.
        finished: Whether it came to its end before the time limit did.
        files: How many files were run until then.
        seconds: How long the search had taken by then.
        nbytes: Size of the best file then; None while there was none.
        snr: What it keeps on the inputs of the search, in dB.
    """

    step: str
    finished: bool
    files: int
    seconds: float = field(metadata=shown(made=finite(1)))
    nbytes: int | None
    snr: float | None = field(metadata=shown("snr_db", made=finite(3)))

    @classmethod
    def of(cls, step: str, clock: Clock, files: int, best: Measured | None, *, finished: bool) -> Step:
        """Notes what was done by now."""
        nbytes, snr = (None, None) if best is None else (best.nbytes, best.snr)
        return cls(step, finished, files, clock.spent, nbytes, snr)


def finished(trials: Trials, made: Measured) -> Measured:
    """Makes a file that was measured as it is to be published; returns it with its own sizes."""
    nbytes, goal = trials.finish(made), trials.goal
    if goal.objective is Objective.DOWNLOAD:
        made = replace(made, deflated=packed_nbytes(trials.path, goal.codec))
    # While searching, sizes may be sums over constants.
    return replace(made, nbytes=nbytes, cost=float(nbytes) if made.cost == made.nbytes else made.cost)


def metric_of_original(trials: Trials, judge: Callable[[], HoldoutJudge], found: Found) -> float | None:
    """Returns the user's own figure of the original against itself, if there is one.

    Args:
        trials: Has measured it on the inputs of the search.
        judge: Makes what judges; asked as well where nothing was found, for the lower figure counts then.
        found: What the search came to.
    """
    first = trials.measure({})
    if first.metric is None or found.promised is not None:
        return first.metric
    with judge() as judging:
        trials.finish(first)
        other = judging.evaluate(trials.path).metric
    known = [first.metric, *([] if other is None else [other])]
    return min(known, key=lambda value: -math.inf if math.isnan(value) else value)


@slotted(eq=False)
class Standing:
    """The best file so far, which was judged by the inputs that were held out; and how the search came to it.

    Attributes:
        trials: Makes files.
        goal: The bounds.
        judge: Judges by the inputs that were held out.
        clock: Of the search.
        original: What the first passes make of the original.
        found: The best file.
        missing: By how many dB it misses the bounds, so at most 0; infinite while there is none.
        judged: All files that were judged.
        steps: What was done.
    """

    trials: Trials
    goal: Goal
    judge: HoldoutJudge
    clock: Clock
    original: Measured
    found: Found = field(init=False, default=Found())
    missing: float = field(init=False, default=math.inf)
    judged: Judged = field(init=False, default_factory=dict)
    steps: list[Step] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.offer(self.original)
        self.close("the original", self.trials.files, finished=True)

    @property
    def is_ended(self) -> bool:
        """Whether the time limit ended a step."""
        return any(not step.finished for step in self.steps)

    def offer(self, made: Measured) -> float:
        """Takes a file if it keeps the bounds, on held-out inputs too, and is better than the best so far.

        Returns:
            By how many dB it misses the bounds.

        Raises:
            TimeIsUp: There was none to make it for all samples, long after the limit.
        """
        missing = made.missing(self.goal)
        if missing > 0 or not self._is_better(made):
            return missing
        key = made.rounding, key_of(made.choice)
        if key not in self.judged:
            # What was measured in time is worth it.
            with self.clock.extended():
                self.judged[key] = finished(self.trials, made), self.judge.evaluate(self.trials.path)
        final, judged = self.judged[key]
        missing = max(missing, judged.missing(self.goal))
        if missing <= 0 and self._is_better(final):
            self.found, self.missing = Found(final, judged), missing
        return missing

    @property
    def gap(self) -> float:
        """By how many dB held-out inputs show less than those of the search: the median over files.

        The original's own, in which nothing is rounded, says nothing of that.
        """
        found = [
            judged.missing(self.goal) - made.missing(self.goal)
            for made, judged in self.judged.values()
            if made.choice
        ]
        return max(0.0, median([each for each in found if math.isfinite(each)] or [0.0]))

    def take(self, found: Found) -> None:
        """Takes what another search found and judged, if it is better than the best so far."""
        if found.promised is not None and found.proven is not None and self._is_better(found.promised):
            self.found = found
            self.missing = max(found.promised.missing(self.goal), found.proven.missing(self.goal))

    def sweep(self, curve: Sequence[Measured]) -> None:
        """Offers what was measured on the way and is better than what a search settled on; few of it.

        Held-out inputs that may choose among many files would find one that suits them by chance.
        """
        better = [
            item
            for item in curve
            if item.missing(self.goal) <= 0
            and self._is_better(item)
            and (item.rounding, key_of(item.choice)) not in self.judged
        ]
        if self.goal.bounds_error:
            for item in sorted(better, key=lambda item: (item.cost, -snr_of(item)))[:_SWEPT]:
                with self.clock.extended():
                    self.clock.check()
                self.offer(item)

    def close(self, step: str, files: int, *, finished: bool) -> None:
        """Notes that a step was done."""
        self.steps.append(Step.of(step, self.clock, files, self.found.promised, finished=finished))

    def _is_better(self, made: Measured) -> bool:
        goal, best = self.goal, self.found.promised
        if goal.max_nbytes is not None and made.nbytes > goal.max_nbytes:
            return False
        if best is None or goal.bounds_error:
            return best is None or made.cost < best.cost
        return made.sound and snr_of(made) > snr_of(best)


_OTHERS = 3
"""So many files at most are judged to find the one that comes after a file that was refused."""


def held(made: Measured, goal: Goal) -> float:
    """By how much a file keeps the bounds, in dB; what it keeps, where they cannot be told in dB."""
    return -made.missing(goal) if goal.in_db else snr_of(made)


def runner_up(
    curve: Sequence[Measured], standing: Standing, refused: Measured, least: float = -math.inf
) -> Found | None:
    """Returns the file that comes after one, of those that keep the bounds, on held-out inputs too.

    Args:
        curve: Files that were measured.
        standing: Makes and judges them; what it found counts for nothing.
        refused: The file that comes before: the smallest, or with only a bound on the size the best one.
        least: By how much another one has to keep bounds on the error; see :func:`held`.
    """
    goal, trials, clock = standing.goal, standing.trials, standing.clock
    if goal.bounds_error:
        after = [item for item in curve if item.cost > refused.cost and held(item, goal) >= least]
        after.sort(key=lambda item: (item.cost, -snr_of(item)))
    else:
        after = [item for item in curve if item.sound and snr_of(item) < snr_of(refused)]
        after.sort(key=lambda item: (-snr_of(item), item.cost))
    for made in [item for item in after if item.choice and item.missing(goal) <= 0][:_OTHERS]:
        try:
            with clock.extended():
                clock.check()
                final = finished(trials, made)
                judged = standing.judge.evaluate(trials.path)
        except TimeIsUp:
            return None
        fits = goal.max_nbytes is None or final.nbytes <= goal.max_nbytes
        if fits and judged.missing(goal) <= 0 and (goal.bounds_error or judged.runs):
            return Found(final, judged)
    return None
