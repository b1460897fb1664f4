"""A search that has a file at any time, and whose file only gets smaller.

First comes the original, which keeps every bound on the error. Then files whose weights all have one
encoding: plainly rounded until one keeps the bounds, then fitted to inputs; those that may well be smaller
than the best file so far are made whatever the time. Then mixtures of the two between which the bounds lie;
then what the noise of single constants says, of two encodings and of all; last, weights are rounded in
order. Each step depends on what was measured, and the clock only ends them: more time adds steps.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.search.clock import TimeIsUp
from tfl_rewrite.search.goals import Objective
from tfl_rewrite.search.search import Search, snr_of
from tfl_rewrite.search.session import Session
from tfl_rewrite.search.settle import EXACT_DB, ORDERED_TRIES, in_order, settle
from tfl_rewrite.search.standing import Found, Standing
from tfl_rewrite.search.trials import UNMADE, Measured, Rounding
from tfl_rewrite.search.uniform import Told, Uniform, uniform_files
from tfl_rewrite.search.units import KEPT, Form, Option

_HOPES = {Rounding.PLAIN: 15.0, Rounding.FITTED: 10.0, Rounding.IN_ORDER: 0.0}
"""A file that is expected to miss the bounds by more dB than that is not made."""
_LATE_HOPE = 7.0
"""Nor fitted, once the time is up, by more than that: by 5 dB expectations were off, and no mixture comes."""
_FAR = 12.0
"""Where the best is more dB above the bounds, what two bits are worth, there should be something between."""
_SURE = 5.0
"""A file that is expected to keep the bounds by more dB without being fitted is not fitted for that."""
_HOPED_SNR = 3.0
"""Where only the size is bound: nor one that is expected to be worse than the best by so many dB."""
ESTIMATED = 1.05
"""By how much the size of a file that was not made may be off."""
_MIXTURES = 6
"""Files between two of one encoding, at most."""
_LEAST_NOISE, _LEAST_MISSING = 1e-12, 0.1
_PLAIN, _FITTED = "one encoding for all weights", "one encoding, fitted to inputs"


@dataclass(frozen=True, slots=True)
class Bracket:
    """Two files between which the bounds lie.

    Attributes:
        first: How each constant is stored in the one that keeps them; one that is not there stays.
        second: The same in a smaller one that misses them.
        rounding: How the weights of both are rounded.
        missing: By how many dB it does.
    """

    first: dict[int, Option]
    second: dict[int, Option]
    rounding: Rounding
    missing: float


@dataclass(eq=False)
class Anytime:
    """Carries a search out, step by step.

    Attributes:
        opened: The session.
        search: Among encodings; nothing was measured yet, unless costs are times.
        standing: The best file so far.
        uniforms: The files of one encoding.
        bracket: The best of them, and the next smaller one.
    """

    opened: Session
    search: Search
    standing: Standing
    uniforms: list[Uniform] = field(init=False, default_factory=list)
    bracket: Bracket | None = field(init=False, default=None)

    def run(self) -> Found:
        """Returns the best file that was found; what was done is in :attr:`standing`."""
        plain = Rounding.PLAIN if self.opened.trials.can_fit else Rounding.FITTED
        self.uniforms = list(uniform_files(self.opened, self.search, self.standing.original))
        self._step(_PLAIN, lambda: self._walk(plain, once=plain is not Rounding.FITTED))
        if plain is not Rounding.FITTED:
            self._step(_FITTED, self._fitted)
        self._step("mixtures of two encodings", self._mixed)
        self._step("two encodings, constants measured", self._two)
        self._step("all encodings, constants measured", self._all)
        self._step("weights rounded in order", self._ordered)
        if self.standing.is_ended and plain is not Rounding.FITTED:
            self._look_again()
        return self.standing.found

    def _step(self, name: str, work: Callable[[], object]) -> None:
        """Does one step; what may be left out is left out once the time limit ended another."""
        standing, clock = self.standing, self.opened.clock
        needed = name in (_PLAIN, _FITTED)
        if standing.is_ended and not needed:
            return
        try:
            if not needed:
                clock.check()
            work()
            finished = needed or not clock.is_past()
        except TimeIsUp:
            finished = False
        except UnsupportedError as error:
            if needed:
                raise
            # What was found so far is proven all the same.
            self.search.notes.append(f"{name}: left out, {error.what}")
            finished = True
        standing.close(name, self.opened.trials.files, finished=finished)

    def _walk(
        self, rounding: Rounding, hope: float | None = None, *, once: bool = False, last: bool = False
    ) -> None:
        """Makes what may be better than the best so far, the likeliest first, until nothing is likely.

        Args:
            rounding: Of the weights.
            hope: What is expected to miss the bounds by more dB is not made; see :data:`_HOPES`.
            once: Whether one that keeps the bounds is enough.
            last: Whether nothing comes after, as once the time is up: before a file is fitted, the plain one
                is made, which is as large, takes little, and tells most about what fitting comes to.
        """
        clock, bounded, fits = self.opened.clock, self.standing.goal.bounds_error, self.opened.trials.can_fit
        number = 0
        while (picked := self._next(rounding, hope, last := last or clock.left <= 0)) is not None:
            way = rounding
            if rounding is Rounding.FITTED and fits:
                sure = bounded and self._expected(picked, Rounding.PLAIN) < -_SURE
                if (last or sure) and Rounding.PLAIN not in picked.missing:
                    way = Rounding.PLAIN
                elif number:
                    clock.check()
            self.opened.progress("trying one encoding for all", number, len(self.uniforms))
            with clock.extended(begun=True):
                self._try(picked, way)
            number += 1
            best = self.standing.found.promised
            if once and bounded and best is not None and best.choice:
                return

    def _fitted(self) -> None:
        """Fits what may be smaller than the plain file that keeps the bounds; then whether others do plainly.

        What is fitted mostly keeps more, so of plain files those are left to try that no fitted one tells of.
        """
        try:
            with self.opened.clock.extended():
                self.opened.clock.check()
                self._walk(Rounding.FITTED)
                self._walk(Rounding.PLAIN, 0.0)
                goal, best = self.standing.goal, self.standing.found.promised
                if goal.bounds_error and goal.in_db and best is not None and best.missing(goal) < -_FAR:
                    # Coarse files tell little of finer ones there: an embedding loses all or nothing.
                    self._walk(Rounding.PLAIN)
                    self._walk(Rounding.FITTED, last=True)
        except TimeIsUp:
            self._walk(Rounding.PLAIN)
            raise

    def _look_again(self) -> None:
        """Makes what may still be smaller, once the time ended what else was to find that."""
        clock, trials = self.opened.clock, self.opened.trials
        files, finished = trials.files, False
        with contextlib.suppress(TimeIsUp), clock.extended():
            clock.check()
            self._walk(Rounding.FITTED, last=True)
            best = self.standing.found.promised
            for item in self.uniforms:
                # Fitted, biases take mean errors back, which are stored more often then.
                if best is not None and item.choice == best.choice and Rounding.PLAIN not in item.missing:
                    self._try(item, Rounding.PLAIN)
            finished = True
        if trials.files > files:
            self.standing.close(_FITTED, trials.files, finished=finished)

    def _try(self, item: Uniform, rounding: Rounding) -> None:
        try:
            made = item.made[rounding] = self.search.whole(item.choice, rounding, item.expected)
        except UNMADE:
            item.made[rounding], item.missing[rounding] = None, math.inf
            return
        goal = self.standing.goal
        item.refused[rounding] = self.standing.offer(made)
        missing = made.missing(goal) if goal.bounds_error else -snr_of(made)
        # Where nothing differs, others may be much coarser.
        item.missing[rounding] = max(missing, -EXACT_DB)

    def _next(self, rounding: Rounding, hope: float | None, last: bool) -> Uniform | None:
        """Returns the file to make next: the smallest that is expected to do, or what is nearest to that."""
        best, goal = self.standing.found.promised, self.standing.goal
        # With a size alone, what is looked for is less error than the best has.
        least = 0.0 if goal.bounds_error else math.inf if best is None else -snr_of(best)
        open_ = [
            (self._expected(item, rounding, alike=last), number, item)
            for number, item in enumerate(self.uniforms)
            if rounding not in item.missing and self._may_win(item)
            if rounding is not Rounding.FITTED
            or item.encoding.form.is_integer
            or not self.opened.trials.can_fit
        ]
        doing = [item for missing, _, item in open_ if missing <= 0]
        if goal.bounds_error and doing:
            return min(doing, key=lambda item: item.nbytes)
        if hope is None:
            hope = _HOPES[rounding] if goal.bounds_error else _HOPED_SNR
        late = hope
        if rounding is Rounding.FITTED and self.opened.trials.can_fit and self.opened.clock.left <= 0:
            late = min(hope, _LATE_HOPE)
        hoped = [
            each for each in open_ if each[0] <= least + (late if Rounding.PLAIN in each[2].missing else hope)
        ]
        return min(hoped)[2] if hoped else None

    def _may_win(self, item: Uniform) -> bool:
        """Whether a file may be smaller than the best so far, or may fit where only the size is bound."""
        goal, best, cost = self.standing.goal, self.standing.found.promised, item.cost()
        fits = goal.max_nbytes is None or item.nbytes <= goal.max_nbytes * ESTIMATED
        if not fits or not goal.bounds_error or best is None or cost is None:
            return fits
        if any(item.made.values()):
            # Deflated, other integers take another size.
            return cost < best.cost * (ESTIMATED if goal.objective is Objective.DOWNLOAD else 1.0)
        if best.cost <= cost < best.cost * ESTIMATED and goal.objective is Objective.FILE:
            # Near enough to look, which takes less than to fit it and to run it.
            trials = self.opened.trials
            try:
                exact = float(trials.laid_out(trials.rounded(item.choice, Rounding.PLAIN).model))
            except UNMADE:
                exact = math.inf
            item.expected = cost = exact if exact < best.cost else math.inf
        return cost < best.cost * ESTIMATED

    def _expected(self, item: Uniform, rounding: Rounding, *, alike: bool = False) -> float:
        """By how many dB a file is expected to miss the bounds."""
        return self._told.missing(item, rounding, self.standing.gap, alike=alike)

    @property
    def _told(self) -> Told:
        return Told(self.uniforms, self.standing.goal, self.opened.trials.can_fit)

    def _mixed(self) -> None:
        """Gives some weights of the best file the encoding of a smaller one that misses the bounds."""
        self.bracket = self._bracket()
        # What whole files showed to do stays in the race, whatever single constants promise.
        self.search.kept = {
            (position, option.form) for options in self._ends() for position, option in options.items()
        }
        if self.bracket is None:
            return
        first, second, rounding = self.bracket.first, self.bracket.second, self.bracket.rounding
        order, parts = self._order(first, second, rounding)
        low, high, ends = 0, len(order), [self.standing.missing, self.bracket.missing]
        for number in range(_MIXTURES):
            if high - low < 2:
                return
            at = min(max(_between(parts, low, high, ends), low + 1), high - 1)
            chosen = {**first, **{position: second[position] for position in order[:at]}}
            self.opened.progress("mixing two encodings", number, _MIXTURES)
            self.opened.clock.check()
            cost = self.search.fixed + sum(option.cost for option in chosen.values())
            cost += sum(unit.kept.cost for unit in self.search.units if unit.position not in chosen)
            made = self.search.whole(_choice(chosen), rounding, cost)
            missing = self.standing.offer(made)
            if missing <= 0:
                low, ends[0] = at, missing
            else:
                high, ends[1] = at, missing

    def _bracket(self) -> Bracket | None:
        """Returns the best file of one encoding, and a smaller one that misses the bounds."""
        best = self.standing.found.promised
        if best is None or not self.standing.goal.bounds_error:
            return None
        mine = self._options_of(best)
        # What keeps the bounds only if it is fitted can be mixed only so.
        fitted = bool(mine) and best.rounding is Rounding.FITTED
        smaller = []
        for item, rounding in itertools.product(self.uniforms, Rounding):
            missing, cost = item.refused.get(rounding, math.inf), item.cost()
            if 0 < missing < math.inf and cost is not None and cost < best.cost:
                won = self._told.gain() if fitted and rounding is not Rounding.FITTED else 0.0
                missing = max(missing - won, _LEAST_MISSING)
                # What spares most for its noise changes first, so what is spared grows like a root.
                spared = (best.cost - cost) * math.sqrt(_share(self.standing.missing, missing))
                smaller.append((spared, missing, item, rounding))
        if not smaller:
            return None
        _, missing, item, rounding = max(smaller, key=lambda each: each[0])
        units = [unit for unit in self.search.units if unit.position in item.options]
        first = {**mine, **{unit.position: mine.get(unit.position, unit.kept) for unit in units}}
        return Bracket(first, item.options, Rounding.FITTED if fitted else rounding, missing)

    def _ends(self) -> list[dict[int, Option]]:
        """Returns how constants are stored in the two files, or in the best of one encoding alone."""
        if self.bracket is not None:
            return [self.bracket.first, self.bracket.second]
        best = self.standing.found.promised
        return [] if best is None else [self._options_of(best)]

    def _options_of(self, best: Measured) -> dict[int, Option]:
        return next((each.options for each in self.uniforms if each.choice == best.choice), {})

    def _order(
        self, first: dict[int, Option], second: dict[int, Option], rounding: Rounding
    ) -> tuple[list[int], list[float]]:
        """Orders constants that a second file stores smaller: what spares most for its noise first.

        Returns:
            Their positions; and the share of the added noise of the values of so many of them.
        """
        trials = self.opened.trials
        noises = []
        for options in (first, second):
            chosen = {position: option for position, option in options.items() if option.form != KEPT}
            stored = trials.rounded(_choice(chosen), rounding).stored if chosen else {}
            noises.append({position: item.noise for position, item in stored.items()})
        added = {
            position: max(noises[1].get(position, 0.0) - noises[0].get(position, 0.0), _LEAST_NOISE)
            for position, option in second.items()
            if position in first and option.cost < first[position].cost
        }
        gains = {
            position: (first[position].cost - second[position].cost) / noise
            for position, noise in added.items()
        }
        order = sorted(added, key=lambda position: (-gains[position], position))
        total = math.fsum(added.values())
        return order, [0.0, *(part / total for part in itertools.accumulate(added[each] for each in order))]

    def _two(self) -> None:
        """Assigns the encodings of the two files by what one of them costs at each constant."""
        if self.bracket is None:
            return
        known = {
            option.form for options in self._ends() for option in options.values() if option.form != KEPT
        }
        units = [
            replace(
                unit,
                options=[replace(each) for each in unit.options if each is unit.kept or each.form in known],
            )
            for unit in self.search.units
        ]
        units = [unit for unit in units if len(unit.options) > 1]
        if not units:
            return
        fixed = self.search.cost({}) - sum(unit.kept.cost for unit in units)
        few = replace(self.search, units=units, fixed=fixed, refines=False, curve_traced=True)
        few.measure(self.standing.original.nbytes, most=len(units))
        self._settle(few)

    def _all(self) -> None:
        if self.opened.wanted.goal.objective is not Objective.LATENCY:
            self.opened.measure(self.search)
        self._settle(self.search)

    def _settle(self, search: Search) -> None:
        standing = self.standing
        found = settle(search, standing.trials, standing.goal, standing.judge, standing.judged)
        standing.take(found)
        standing.sweep(search.curve)

    def _ordered(self) -> None:
        standing, goal = self.standing, self.standing.goal
        tries = ORDERED_TRIES[goal.effort]
        standing.take(in_order(self.search, standing.trials, goal, standing.judge, standing.found, tries))


def _choice(options: Mapping[int, Option]) -> dict[int, Form]:
    return {position: option.form for position, option in options.items() if option.form != KEPT}


def _share(kept: float, missed: float) -> float:
    """Returns how much of the noise between two files is allowed, of which one misses the bounds, in dB."""
    first, last = (math.pow(10.0, min(max(end, -100.0), 100.0) / 10.0) for end in (kept, missed))
    return min(max((1.0 - first) / max(last - first, 1e-12), 0.0), 1.0)


def _between(parts: Sequence[float], low: int, high: int, ends: Sequence[float]) -> int:
    """Returns how many constants are to change for the noise that is allowed, going by that at both ends.

    Args:
        parts: Shares of the noise that so many add.
        low: As many keep the bounds; ``high`` do not.
        ends: By how many dB both miss the bounds.
    """
    wanted = parts[low] + _share(*ends) * (parts[high] - parts[low])
    return bisect.bisect_right(parts, wanted) - 1
