"""The smallest download: integers with a step for each constant, as many bits as a codec makes of them.

Each constant is coded alone and the file is run, which tells the noise that a squared step puts on each
output. Steps then follow by water-filling (:func:`tfl_rewrite.numerics.entropy.water_filled`), with one
number for the whole model: the noise that is allowed. That number is moved until the bounds just hold. What
is too small for integers, or needs more of them than there are, stays float on a grid.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from tfl_rewrite.numerics import grids
from tfl_rewrite.numerics.codecs import Sized
from tfl_rewrite.numerics.entropy import water_filled
from tfl_rewrite.search.clock import TimeIsUp
from tfl_rewrite.search.goals import Objective
from tfl_rewrite.search.holdout_judge import QUIET, HoldoutJudge
from tfl_rewrite.search.search import Search, key_of
from tfl_rewrite.search.sensitivity import LEAST_GAIN, State, groups_of
from tfl_rewrite.search.session import Session
from tfl_rewrite.search.settle import settle
from tfl_rewrite.search.standing import Found
from tfl_rewrite.search.trials import Measured, Rounding, codes_of
from tfl_rewrite.search.units import Choice, Float64, Form, find_units, grid_unit
from tfl_rewrite.weights.codes import Coding, code_forms
from tfl_rewrite.weights.forms.integers import BYTES
from tfl_rewrite.weights.grids import Choice as Grid
from tfl_rewrite.weights.grids import Constant, find_constants

LEAST_CODED = 320
"""Elements from which on a tensor, an operator and the scales cost less than floats on a grid."""

_SHARE = 0.75
"""Of the time limit: what is left is for other encodings, which are seldom smaller."""
_PROBING = 0.6
"""Of that time: constants that were not measured by then are taken for others."""
_WORSE = 0.9
"""So many of those that were measured put less noise on the outputs."""
_LEAST_ELEMENTS = 16
"""Smaller constants stay as they are."""
_PROBED = 8.0
"""By so many dB less noise than is allowed in all does a constant put on the outputs when it is measured."""
_ATTEMPTS = 4
_FILES = 16
_NEAR = 0.12
"""So many dB above the bound are near enough."""
_APART = 0.05
"""Noises that differ by so many dB are one and the same."""
_MARGIN = 3.0
"""So many dB more than are asked for are tried first."""
_ROUNDS = 4
_LEAST_BITS = 0.02
"""Of a constant's elements: so many bits at least does halving a step cost."""
_HIGH_RATE = 2.0
"""Values of so many steps take a bit less each where the step is doubled."""
_OTHERS = 0.1
"""Of the noise that a constant puts on one output, what it counts for on each other one: what is the last
layer of one output alone is small, and few samples tell little of it."""


@dataclass(slots=True)
class Probed:
    """A constant, or several that were measured together.

    Attributes:
        items: The constants.
        steps: Of each, when they were measured.
        cost: Noise of each output for all of those steps squared, relative to its signal.
        gain: The same relative to the noise of the values, at most over outputs.
    """

    items: list[Constant]
    steps: list[float]
    cost: Float64
    gain: float


@dataclass(eq=False)
class CodeSearch(Search):
    """Finds steps; a search in which all that is chosen follows from one number."""

    coder: Coding = field(kw_only=True)
    coded: dict[int, tuple[str, ...]] = field(kw_only=True)
    """Forms of integers that a constant can take, by position."""
    measured: list[Probed] = field(default_factory=list, kw_only=True)
    _choices: dict[float, dict[int, Form]] = field(default_factory=dict, kw_only=True)
    _offset: float = field(default=0.0, kw_only=True)

    @cached_property
    def _sized(self) -> Sized:
        return self.goal.codec.sized(quick=True)

    def probe(self) -> None:
        """Measures what steps of each constant cost at the outputs, near the ratio that is asked for."""
        aim = min(max(self.goal.min_snr or 0.0, 0.0), 120.0)
        groups = groups_of(list(self.trials.constants.values()))
        for number, group in enumerate(groups):
            self.progress("measuring constants", number, len(groups))
            if self.measured and self.clock.used > _PROBING:
                # The largest were measured.
                self.measured += self._alike(groups[number:], aim)
                break
            self.clock.check()
            found = self._probed(group, aim)
            if found is not None:
                self.measured.append(found)
        if self.measured:
            least = LEAST_GAIN * float(np.median([each.gain for each in self.measured]))
            for each in self.measured:
                # What the inputs at hand hardly use, others may.
                if 0 < each.gain < least:
                    each.cost = each.cost * (least / each.gain)

    def _alike(self, groups: list[list[Constant]], aim: float) -> list[Probed]:
        """Takes weights that were not measured for the worse of those that were; biases stay as they are."""
        weights = [each for each in self.measured if not each.items[0].is_vector] or self.measured
        order = sorted(weights, key=lambda each: each.gain)
        like, found = order[int(_WORSE * (len(order) - 1))], []
        for item in (item for group in groups for item in group if not item.is_vector):
            steps = [self.coder.first_step(item.position, aim + _PROBED)]
            values, power = _energies([item], steps)
            cost = like.cost * (like.gain * values / power / like.cost.max())
            found.append(Probed([item], steps, cost, like.gain))
        return found

    def _probed(self, group: list[Constant], aim: float) -> Probed | None:
        """Looks for steps that put about the noise on the outputs that they are going to."""
        wanted = aim + _PROBED
        for _ in range(_ATTEMPTS):
            steps = [self.coder.first_step(item.position, wanted) for item in group]
            choice: dict[int, Form] = {}
            for place, item in enumerate(group):
                code = None
                if item.position in self.coded:
                    widest = self.coded[item.position][:1]
                    code = self.coder.best(item.position, steps[place], widest, self._sized)
                if code is not None:
                    choice[item.position] = code
                else:
                    finest = grids.finest(item.profile(), item.kind)
                    steps[place] = max(2.0 ** round(math.log2(steps[place])), finest)
                    choice[item.position] = Grid(steps[place])
            noise = self.trials.noise(choice)
            largest = (math.inf if noise is None else float(noise.max(initial=0.0))) * 10.0 ** (aim / 10.0)
            if noise is not None and 1e-4 <= largest <= 1.0:
                break
            if largest > 1.0:
                wanted += min(40.0, 10.0 * math.log10(largest) + 6.0)
            elif wanted > -10.0:
                wanted -= min(25.0, -10.0 * math.log10(max(largest, 1e-12)) - 20.0)
        if noise is None:
            return None
        noise = np.maximum(noise, QUIET)
        values, power = _energies(group, steps)
        return Probed(group, steps, noise, float(noise.max()) * power / values)

    def settle(self, judge: HoldoutJudge) -> Found:
        """Returns the file of the largest steps that was found to keep the bounds, on held-out inputs too.

        Args:
            judge: Judges by the inputs that were held out.
        """
        goal, best = self.goal, Found()
        assert goal.min_snr is not None
        low, high, aim, fits = -math.inf, math.inf, round(goal.min_snr + _MARGIN, 2), True
        with contextlib.suppress(TimeIsUp):
            for number in range(_FILES):
                self.progress("settling steps", number, _FILES)
                found = self._measured(self._choice(aim))
                missing = found.missing(goal)
                if missing <= 0:
                    found = replace(found, nbytes=self.trials.finish(found))
                    # One number was chosen, and no file among many.
                    judged = judge.evaluate(self.trials.path, strict=False)
                    missing = max(missing, judged.missing(goal))
                    if missing <= 0:
                        fits = goal.max_nbytes is None or found.nbytes <= goal.max_nbytes
                    if missing <= 0 and aim < high and fits:
                        best = Found(found, judged)
                low, high = (max(low, aim), high) if missing > 0 else (low, min(high, aim))
                if -_NEAR <= missing <= 0 or high - low < _APART:
                    # Larger steps lose too much: what may still be smaller is what holds the integers.
                    if fits or not self._narrow():
                        break
                    low, high = -math.inf, math.inf
                    continue
                guess = aim + max(-20.0, min(20.0, missing + _NEAR / 3))
                if not low < guess < high and math.isfinite(low + high):
                    guess = (low + high) / 2
                aim = round(guess, 2)
        return best

    def _narrow(self) -> bool:
        """Leaves the widest integers out where a constant has others; whether there was one."""
        self._choices.clear()
        before, self.coded = self.coded, {place: names[1:] or names for place, names in self.coded.items()}
        return self.coded != before

    def _choice(self, aim: float) -> dict[int, Form]:
        """Returns the forms of all constants at a noise so many dB below the signal."""
        found = self._choices.get(aim)
        if found is None:
            found = {}
            for group, step in zip(self.measured, self._steps(10.0 ** (-aim / 10.0)), strict=True):
                for item, own in zip(group.items, group.steps, strict=True):
                    form = self._form(item, step * own)
                    if form is not None:
                        found[item.position] = form
            self._choices[aim] = found
        return found

    def _steps(self, allowed: float) -> Float64:
        """Returns by how much the steps of each group are multiplied."""
        costs = np.array([group.cost for group in self.measured])
        costs = np.maximum(costs, _OTHERS * costs.max(axis=1, keepdims=True))
        weights = np.array([sum(item.elements for item in group.items) for group in self.measured], float)
        steps = np.sqrt(water_filled(costs, weights, allowed))
        for _ in range(_ROUNDS):
            # Where most integers are zero, a larger step saves less than a bit of each.
            for row, group in enumerate(self.measured):
                pairs = list(zip(group.items, group.steps, strict=True))
                least = _LEAST_BITS * sum(item.elements for item in group.items)
                saved = sum(self._saved(item, float(steps[row]) * own) for item, own in pairs)
                weights[row] = max(least, saved)
            steps = np.sqrt(water_filled(costs, weights, allowed))
        return steps

    def _saved(self, item: Constant, step: float) -> float:
        """Returns how many bits doubling a step saves."""
        power = float(item.profile().power.sum()) / item.elements
        if item.is_vector or power > (_HIGH_RATE * step) ** 2:
            return float(item.elements)
        half = math.sqrt(2.0)
        return self.coder.bits(item.position, step / half) - self.coder.bits(item.position, step * half)

    def _form(self, item: Constant, step: float) -> Form | None:
        names = self.coded.get(item.position)
        if names is not None:
            found = self.coder.best(item.position, step, names, self._sized)
            if found is not None:
                return found
        return _grid(item, step)

    def _measured(self, choice: Choice) -> Measured:
        key = Rounding.FITTED, key_of(choice)
        found = self.known.get(key)
        if found is None:
            self.clock.check()
            bits = sum(self.coder.bits(place, code.step) for place, code in codes_of(choice).items())
            found = self.known[key] = self.trials.measure(choice, bits / 8)
        return found


def _energies(group: list[Constant], steps: list[float]) -> tuple[float, float]:
    """Returns the noise of the values of constants with these steps, and their power."""
    noise = sum(item.elements * step * step / 12.0 for item, step in zip(group, steps, strict=True))
    return noise, sum(float(item.profile().power.sum()) for item in group) or 1.0


def _grid(item: Constant, step: float) -> Grid | None:
    """Returns the power of two below a step; None where that is finer than what counts as rounded."""
    finest = grids.finest(item.profile(), item.kind)
    power = 2.0 ** math.floor(math.log2(step)) if step > 0 else 0.0
    return Grid(power) if power >= finest else None


def code_search(opened: Session) -> CodeSearch:
    """Finds the constants that can be coded; what they cost is still to be measured.

    Args:
        opened: The search.
    """
    trials, goal, base = opened.trials, opened.wanted.goal, opened.wanted.base
    assert base is not None and trials.final.coder is not None
    model = trials.fresh()
    constants, _ = find_constants(model, int8=False, min_elements=_LEAST_ELEMENTS)
    wanted = [
        item for item in constants if item.profile().finite and base.selection.unwanted(_words(item)) is None
    ]
    trials.prepare_codes(model, wanted)
    coded: dict[int, tuple[str, ...]] = {}
    names = tuple(n for n, form in code_forms().items() if form.first_runtime <= goal.weights.min_runtime)
    known = {item.position: item for item in wanted}
    for unit in find_units(trials.fresh, base, ["int8:tensor:dequantize"], Objective.FILE):
        item = known.get(unit.position)
        if item is not None and item.elements >= LEAST_CODED and len({t.shape for t in item.tensors}) == 1:
            # Sixteen bits are for tables, whose first rows are finer.
            coded[unit.position] = names if item.table else tuple(n for n in names if n != BYTES.name)
    search = CodeSearch(
        trials,
        [grid_unit(item) for item in wanted],
        goal=goal,
        state=State(None, ""),
        clock=opened.clock,
        progress=opened.progress,
        coder=trials.final.coder,
        coded=coded,
    )
    return search


def by_steps(opened: Session, judge: HoldoutJudge) -> tuple[Search, Found] | None:
    """Searches for the steps of coded integers.

    Args:
        opened: The search; its bound is a ratio.
        judge: Judges by the inputs that were held out.

    Returns:
        What was found; None where there is nothing to code, or time ended it before.
    """
    if opened.wanted.goal.encodings is not None:
        return None
    clock, share = opened.clock, opened.clock.share
    # What is left is for other encodings.
    clock.share = _SHARE * share
    try:
        with clock.interruptible():
            coding = code_search(opened)
            if coding.coded:
                coding.probe()
                return coding, coding.settle(judge) if coding.measured else Found()
    except TimeIsUp:
        pass
    finally:
        clock.share = share
    return None


def smallest_download(
    opened: Session,
    encodings: tuple[Search, Found],
    coded: tuple[Search, Found] | None,
    judge: HoldoutJudge,
) -> tuple[Search, Found]:
    """Returns what makes the smallest download: coded integers, other encodings, or floats on grids.

    Each is made whole, and compressed as it is laid out.

    Args:
        opened: The search; its bound is a ratio.
        encodings: What was found among encodings.
        coded: What was found among steps, if those were searched.
        judge: Judges by the inputs that were held out.
    """
    goal, trials = opened.wanted.goal, opened.trials
    assert goal.min_snr is not None
    sized = goal.codec.sized()
    made: list[tuple[int, str, Search, Found]] = []

    def enter(name: str, search: Search, found: Found) -> None:
        if found.promised is not None:
            trials.finish(found.promised)
            nbytes = sized(trials.path.read_bytes())
            promised = replace(found.promised, deflated=nbytes, cost=float(nbytes))
            made.append((nbytes, name, search, replace(found, promised=promised)))

    if coded is not None:
        enter("coded integers", *coded)
    enter("other encodings", *encodings)
    with contextlib.suppress(TimeIsUp):
        opened.clock.check()
        on_grids = opened.grids(goal.min_snr)
        enter("floats of few values", on_grids, settle(on_grids, trials, goal, judge))
    if not made:
        return encodings
    _, _, chosen, result = min(made, key=lambda item: item[0])
    told = ", ".join(f"{nbytes:,} bytes with {name}" for nbytes, name, *_ in made)
    return chosen, replace(result, notes=(*result.notes, f"compressed ({goal.codec.value}): {told}"))


def _words(item: Constant) -> list[str]:
    """Returns the names and readers' types by which a user includes or excludes a constant."""
    read = [use.operator.inputs[use.position] for use in item.uses]
    tensors = [*item.tensors, *(tensor for tensor in read if tensor is not None)]
    return [*(tensor.name for tensor in tensors), *item.readers]
