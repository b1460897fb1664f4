"""Settles on an assignment of encodings to constants.

The knapsack of :mod:`tfl_rewrite.numerics.knapsack` gives an assignment for an allowed noise; the file is
made and measured, and the allowed noise is moved until the bounds just hold. Last, single constants are
stored smaller while the file still measures well. How many files are run depends on the model alone, unless
a time limit ends it early; so the same input gives the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from tfl_rewrite.search import sensitivity
from tfl_rewrite.search.clock import Clock, TimeIsUp
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.search.holdout_judge import QUIET, Figures
from tfl_rewrite.search.sensitivity import PROBES, Progress, State
from tfl_rewrite.search.trials import Measured, Rounding, Trials
from tfl_rewrite.search.units import KEPT, Choice, Form, Option, Unit, cheapest
from tfl_rewrite.weights.grids import Choice as Grid

ROUNDS = 14
"""Files that are run to find the allowed noise, at most."""
REFINEMENTS = 24
MOST_REFINEMENTS = 64
_REPAIRS, _REPAIRED_DB = 12, 2.0
"""Constants that are stored larger in a file that misses the bounds by so many dB at most."""
_LOWEST, _HIGHEST = -40.0, 180.0
"""Where the allowed noise stops to make a difference, in dB below the signal."""
_CURVE_STEPS = (-15.0, -10.0, -5.0, 5.0, 10.0)


@dataclass(eq=False)
class Search:
    """Finds assignments; what was measured serves any number of goals.

    Attributes:
        trials: Makes and measures files.
        units: What there is to choose.
        goal: What is to be small.
        state: Keeps measurements.
        clock: Ends it early.
        progress: Called with what is going on, and how many of how many steps are done.
        known: Every whole file that was measured, by how weights are rounded and :func:`key_of`.
        refines: Whether single constants are stored smaller at the end.
        fixed: What the objective counts besides, of constants that there is nothing to choose for.
        kept: Options that are measured or told whatever is expected of them: positions and forms.
        curve_traced: Whether some more points of the curve of size against error are known.
    """

    trials: Trials
    units: list[Unit]
    _: KW_ONLY
    goal: Goal
    state: State
    clock: Clock
    progress: Progress
    known: dict[Hashable, Measured] = field(default_factory=dict)
    refines: bool = True
    fixed: float = 0.0
    kept: Collection[tuple[int, Form]] = ()
    curve_traced: bool = False

    def __post_init__(self) -> None:
        units, goal = self.units, self.goal
        grids = any(isinstance(option.form, Grid) for unit in units for option in unit.options)
        # To deflate each file would take longer than to run it: what grids save is estimated.
        self._bytes = goal.objective in (Objective.FILE, Objective.DOWNLOAD) and not grids
        self._repairs = 0 if grids else _REPAIRS
        # A coarser grid spares less than a smaller encoding: there is more to try.
        most = min((4 if grids else 1) * len(units), MOST_REFINEMENTS)
        self._refinements = max(REFINEMENTS, most)
        self._ordering = 0.0
        self.notes: list[str] = []

    @property
    def curve(self) -> list[Measured]:
        """Every whole file that was measured."""
        return list(self.known.values())

    def measure(self, nbytes: int, most: int = PROBES) -> None:
        """Measures, or estimates, the noise of every option; see :func:`sensitivity.measure`."""
        before = sum(unit.kept.cost for unit in self.units)
        self.notes += sensitivity.measure(
            self.units,
            self.trials,
            nbytes,
            state=self.state,
            clock=self.clock,
            progress=self.progress,
            most=most,
            kept=self.kept,
        )
        if self.goal.objective is not Objective.LATENCY:
            # Seconds are measured later.
            self.fixed += before - sum(unit.kept.cost for unit in self.units)

    def find(self, goal: Goal, *, margin: float = 0.0, least: float | None = None) -> Measured | None:
        """Returns the cheapest file that was found to keep the bounds, or None.

        Args:
            goal: The bounds.
            margin: By how many dB they are to be kept.
            least: An SNR in dB that is to be kept besides.
        """

        def missing_of(found: Measured) -> float:
            own = found.missing(goal) + margin
            if least is None or found.snr is None:
                return own
            return max(own, least - found.snr)

        aim = least if least is not None else (goal.min_snr if goal.min_snr is not None else 30.0) + margin
        best: Measured | None = None
        try:
            best = self._settle(aim, missing_of)
            if best is not None and self.refines:
                best = self._refine(self._repaired(best, missing_of), missing_of)
        except TimeIsUp:
            self._note("the time limit ended the search early")
            kept = [item for item in self.curve if missing_of(item) <= 0]
            best = min(kept, key=_rank, default=None)
        return best

    def _settle(self, aim: float, missing_of: Callable[[Measured], float]) -> Measured | None:
        """Moves the allowed noise until the bounds just hold: by what is missing, then by halving."""
        best: Measured | None = None
        low, high = _LOWEST, _HIGHEST
        files, stride = 0, 2.0
        while files < ROUNDS and high - low > 0.05:
            picked = self._picked(aim)
            choice = self.choice(picked)
            new = not self._knows(choice)
            self.progress("settling", files, ROUNDS)
            found = self._measured(choice)
            files += new
            missing = missing_of(found)
            if missing <= 0:
                if best is None or _rank(found) < _rank(best):
                    best = found
                high = min(high, aim)
            else:
                low = max(low, aim)
            cheapest = all(
                unit.options[index].cost <= min(option.cost for option in unit.options)
                for unit, index in zip(self.units, picked, strict=True)
            )
            if (missing <= 0 and cheapest) or (missing > 0 and not any(picked)):
                break
            guess = aim + max(-20.0, min(20.0, missing + (0.03 if missing > 0 else 0.0)))
            if new and low < guess < high and abs(guess - aim) > 0.02:
                aim = guess
            elif low > _LOWEST and high < _HIGHEST:
                aim = (low + high) / 2
            else:
                # The same assignment again, or no difference: stride on.
                aim += stride if missing > 0 else -stride
                stride *= 2
                if not low < aim < high:
                    aim = (low + high) / 2
        return best

    def largest_within(self, limit: int) -> Measured | None:
        """Returns the file with the least error of at most ``limit`` bytes that was found."""
        try:
            low, high = _LOWEST, _HIGHEST
            files = 0
            while files < ROUNDS and high - low > 0.05:
                self.progress("settling", files, ROUNDS)
                aim = (low + high) / 2
                picked = self._picked(aim)
                choice = self.choice(picked)
                # Sizes add up well enough to tell what is far off.
                expected = sum(
                    unit.options[index].nbytes for unit, index in zip(self.units, picked, strict=True)
                )
                if expected > limit * 1.1:
                    high = aim
                    continue
                files += not self._knows(choice)
                if self._measured(choice).nbytes <= limit:
                    low = aim
                else:
                    high = aim
            if not any(item.nbytes <= limit for item in self.curve):
                # The smallest there is.
                self._measured(self.choice(self._picked(-90.0)))
        except TimeIsUp:
            self._note("the time limit ended the search early")
        fitting = [item for item in self.curve if item.nbytes <= limit and item.sound]
        return max(fitting, key=lambda item: (snr_of(item), -item.nbytes), default=None)

    def trace(self, around: float | None) -> None:
        """Measures some more points of the curve of size against error."""
        self.curve_traced = True
        around = 35.0 if around is None or not math.isfinite(around) else around
        for number, step in enumerate(_CURVE_STEPS):
            self.progress("tracing the curve", number, len(_CURVE_STEPS))
            try:
                self.clock.check()
                self._measured(self.choice(self._picked(around + step)))
            except TimeIsUp:
                return

    def in_order(self, found: Measured) -> Measured:
        """Returns what becomes of a file whose weights are rounded one after the other.

        Raises:
            TimeIsUp: There is no time for it.
        """
        # Half as much again is to be left for the file itself, once it is found.
        self.clock.check(spare=1.5 * self._ordering)
        self.progress("rounding weight by weight", 0, 1)
        began = self.clock.now()
        made = self.whole(found.choice, Rounding.IN_ORDER, found.cost)
        self._ordering = self.clock.now() - began
        # What time ended early is not what was asked for.
        self.clock.check()
        return made

    def whole(self, choice: Choice, rounding: Rounding, cost: float | None = None) -> Measured:
        """Makes and measures a whole file, unless that was done before.

        Args:
            choice: How constants are stored.
            rounding: How weights are rounded.
            cost: What the objective counts, unless that is bytes; by default what its constants say.

        Raises:
            TimeIsUp: Weights are to be fitted, and there is no time for it.
        """
        key = rounding, key_of(choice)
        found = self.known.get(key)
        if found is None:
            cost = None if self._bytes else self.cost(choice) if cost is None else cost
            found = self.known[key] = self.trials.measure(choice, cost, rounding=rounding)
        return found

    def cost(self, choice: Choice) -> float:
        """Returns what the objective counts of all constants."""
        return self.fixed + sum(self.option(unit, choice).cost for unit in self.units)

    def propose(self, aim: float) -> tuple[dict[int, Form], float]:
        """Returns the cheapest choice that is expected to keep an SNR in dB, and what it costs; not tried."""
        picked = self._picked(aim)
        cost = sum(unit.options[index].cost for unit, index in zip(self.units, picked, strict=True))
        return self.choice(picked), cost

    def choice(self, picked: Sequence[int]) -> dict[int, Form]:
        """Returns the forms of what is not kept as it is."""
        return {
            unit.position: unit.options[index].form
            for unit, index in zip(self.units, picked, strict=True)
            if unit.options[index].form != KEPT
        }

    def _picked(self, aim: float) -> list[int]:
        """The option of each unit in the cheapest assignment that is expected to keep an SNR in dB."""
        return cheapest(self.units, 10.0 ** (-aim / 10.0))

    def _measured(self, choice: Choice) -> Measured:
        if not self._knows(choice):
            self.clock.check()
        return self.whole(choice, Rounding.FITTED)

    def _knows(self, choice: Choice) -> bool:
        return (Rounding.FITTED, key_of(choice)) in self.known

    def offers(self, choice: Choice) -> bool:
        """Whether each unit may be stored so."""
        return all(
            any(option.form == choice.get(unit.position, KEPT) for option in unit.options)
            for unit in self.units
        )

    def option(self, unit: Unit, choice: Choice) -> Option:
        """Returns how a unit is stored."""
        wanted = choice.get(unit.position, KEPT)
        return next(option for option in unit.options if option.form == wanted)

    def _repaired(self, best: Measured, missing_of: Callable[[Measured], float]) -> Measured:
        """Returns what becomes of the file that misses the bounds by the least of those that are smaller.

        Which of two files of about the same noise keeps a bound is chance, where a single channel decides. In
        one that misses it by little, single constants are stored larger until it holds.
        """
        near = [item for item in self.curve if item.cost < best.cost and 0 < missing_of(item) < _REPAIRED_DB]
        near = [item for item in near if item.rounding is best.rounding and self.offers(item.choice)]
        found = min(near, key=missing_of, default=None)
        refused: set[tuple[int, str]] = set()
        for tried in range(self._repairs if found is not None else 0):
            assert found is not None
            moves = [
                (-added / -saved, unit, option)
                for unit, option, saved, added in self._other_ways(found)
                if saved < 0 and added < 0 and (unit.position, str(option.form)) not in refused
                if found.cost - saved < best.cost
            ]
            if not moves:
                break
            _, unit, option = max(moves, key=lambda move: (move[0], -move[1].position))
            self.progress("repairing", tried, self._repairs)
            made = self._measured({**found.choice, unit.position: option.form})
            if missing_of(made) <= 0:
                return made if _rank(made) < _rank(best) else best
            if missing_of(made) < missing_of(found):
                found = made
            else:
                refused.add((unit.position, str(option.form)))
        return best

    def _refine(self, best: Measured, missing_of: Callable[[Measured], float]) -> Measured:
        """Stores single constants smaller while the file still measures well."""
        refused: set[tuple[int, str]] = set()
        for tried in range(self._refinements):
            moves = [
                move
                for move in self._moves(best, missing_of(best))
                if (move[1].position, str(move[2].form)) not in refused
            ]
            if not moves:
                break
            _, unit, option = max(moves, key=lambda move: (move[0], -move[1].position))
            self.progress("refining", tried, self._refinements)
            found = self._measured({**best.choice, unit.position: option.form})
            if missing_of(found) <= 0 and _rank(found) < _rank(best):
                best = found
            else:
                refused.add((unit.position, str(option.form)))
        return best

    def _moves(self, best: Measured, missing: float) -> list[tuple[float, Unit, Option]]:
        """Single steps to something cheaper, with what they save for the noise they add."""
        slack = 10.0 ** (min(20.0, max(0.0, -missing)) / 10.0) - 1.0
        # Sums are estimates: what is a little over may still do.
        return [
            (saved / max(added, 1e-6), unit, option)
            for unit, option, saved, added in self._other_ways(best)
            if saved > 0 and added <= 1.5 * slack + 0.02
        ]

    def _other_ways(self, found: Measured) -> list[tuple[Unit, Option, float, float]]:
        """Returns other ways to store single constants: what each spares, and the share of noise it adds."""
        now = {unit.position: self.option(unit, found.choice) for unit in self.units}
        total = sum(
            (option.noise for option in now.values() if option.noise is not None),
            np.full(self.units[0].kept.noise.size, QUIET) if self.units else np.zeros(1),  # type: ignore[union-attr]
        )
        return [
            (
                unit,
                option,
                now[unit.position].cost - option.cost,
                float(((option.noise - noise) / total).max()),
            )
            for unit in self.units
            if (noise := now[unit.position].noise) is not None
            for option in unit.options
            if option.noise is not None and option is not now[unit.position]
        ]

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def snr_of(item: Figures) -> float:
    """Returns the lowest SNR over the outputs in dB, infinite where nothing differs."""
    return math.inf if item.snr is None else item.snr


def _rank(item: Measured) -> tuple[float, float]:
    return item.cost, -snr_of(item)


def key_of(choice: Choice) -> Hashable:
    """Returns what tells an assignment from others."""
    return tuple(sorted((position, str(form)) for position, form in choice.items()))
