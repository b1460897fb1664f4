"""Measures what each encoding of each constant costs at the outputs, and settles on an assignment.

First each constant is stored in each way alone, the file is run, and the noise on every output is noted. Then
the knapsack of :mod:`tfl_rewrite.shrinking.knapsack` gives an assignment for an allowed noise; the file is
made and measured, and the allowed noise is moved until the bounds just hold. Last, single constants are
stored smaller while the file still measures well. How many files are run depends on the model alone, unless
a time limit ends it early; so the same input gives the same result.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tfl_rewrite.errors import FileAccessError
from tfl_rewrite.landing import write_aside
from tfl_rewrite.quant.encoding import Encoding
from tfl_rewrite.shrinking import knapsack
from tfl_rewrite.shrinking.goals import Goal
from tfl_rewrite.shrinking.trials import QUIET, Measured, Trials
from tfl_rewrite.shrinking.units import KEPT, Choice, Option, Unit

Progress = Callable[[str, int, int], None]

PROBES = 240
"""Files with one constant stored otherwise; with more to measure, some are estimated from others."""

ROUNDS = 14
REFINEMENTS = 24
_ESTIMATED_FROM = ("int4:channel:dequantize", "int8:channel", "int8:channel:dequantize")
_CURVE_STEPS = (-15.0, -10.0, -5.0, 5.0, 10.0)


class TimeIsUp(Exception):
    """The time limit was reached."""


@dataclass(slots=True)
class Clock:
    """Ends a search that takes too long.

    Attributes:
        limit: Seconds, or None.
    """

    limit: float | None = None
    started: float = field(default_factory=time.monotonic)

    def check(self, share: float = 1.0) -> None:
        """Raises :class:`TimeIsUp` when a share of the time is used up."""
        if self.limit is not None and time.monotonic() - self.started > self.limit * share:
            raise TimeIsUp


class State:
    """What was measured, kept in a file so that a search can go on where it was stopped.

    Args:
        path: The file, or None to keep nothing.
        key: What the figures belong to; others are not read.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path = path
        self._key = key
        self._noises: dict[str, list[float]] = {}
        if path is not None and path.exists():
            try:
                data = json.loads(path.read_text(encoding="ascii"))
                if isinstance(data, dict) and data.get("key") == key:
                    self._noises = {
                        str(name): [float(x) for x in row] for name, row in data["noises"].items()
                    }
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                raise FileAccessError(
                    "holds no state of a search", file=path, remedy="name another file"
                ) from None

    def get(self, unit: Unit, option: Option) -> np.ndarray | None:  # type: ignore[type-arg]
        """Returns a noise that was measured before."""
        row = self._noises.get(f"{unit.position}/{option.encoding}")
        return None if row is None else np.array(row)

    def put(self, unit: Unit, option: Option) -> None:
        """Keeps a noise."""
        assert option.noise is not None
        self._noises[f"{unit.position}/{option.encoding}"] = [float(x) for x in option.noise]
        if self._path is None:
            return
        data = json.dumps({"key": self._key, "noises": self._noises}).encode("ascii")
        with write_aside(self._path, force=True, nbytes=len(data)) as aside:
            aside.sink.write_at(data, 0)
            aside.publish()


class Search:
    """Finds assignments; what was measured serves any number of goals.

    Args:
        trials: Makes and measures files.
        units: What there is to choose.
        state: Keeps measurements.
        clock: Ends it early.
        progress: Called with what is going on, and how many of how many steps are done.
    """

    def __init__(
        self, trials: Trials, units: list[Unit], *, state: State, clock: Clock, progress: Progress
    ) -> None:
        self._trials = trials
        self.units = units
        self._state = state
        self._clock = clock
        self._progress = progress
        self.curve: list[Measured] = []
        self.curve_traced = False
        self.notes: list[str] = []

    def measure(self) -> None:
        """Measures, or estimates, the noise of every option."""
        encodings = list(dict.fromkeys(option.encoding for unit in self.units for option in unit.options[1:]))
        total = sum(len(unit.options) - 1 for unit in self.units)
        wanted = encodings
        if total > PROBES:
            wanted = [encoding for encoding in encodings if encoding.text in _ESTIMATED_FROM]
        done = 0
        outputs = 1
        for encoding in encodings:
            self._clock.check(0.5)
            self._progress("rounding", done, total)
            # All at once, so that what rounding has to know of the model is collected once.
            choice = {unit.position: encoding for unit in self.units if _option(unit, encoding) is not None}
            noises = self._trials.rounded(choice)
            for unit in self.units:
                option = _option(unit, encoding)
                if option is not None:
                    option.wnoise = noises.get(unit.position, 0.0)
        for encoding in wanted:
            for unit in self.units:
                option = _option(unit, encoding)
                if option is None:
                    continue
                self._progress("measuring encodings", done, total)
                done += 1
                self._probe(unit, option)
                if option.noise is not None:
                    outputs = option.noise.size
        for unit in self.units:
            _complete(unit, outputs)
        self.units = [unit for unit in self.units if len(unit.options) > 1]

    def _probe(self, unit: Unit, option: Option) -> None:
        known = self._state.get(unit, option)
        if known is None:
            self._clock.check(0.6)
            known = self._trials.noise({unit.position: option.encoding})
            option.noise = known
            if known is not None:
                self._state.put(unit, option)
        option.noise = known
        option.measured = True

    def find(self, goal: Goal, *, margin: float = 0.0) -> Measured | None:
        """Returns the cheapest file that was found to keep the bounds, or None.

        Args:
            goal: The bounds.
            margin: By how many dB they are to be kept.
        """
        aim = (goal.min_snr if goal.min_snr is not None else 35.0) + margin
        best: Measured | None = None
        low, high = -math.inf, math.inf
        seen: set[tuple[int, ...]] = set()
        try:
            for number in range(ROUNDS):
                self._progress("settling", number, ROUNDS)
                picked = knapsack.solve(self.units, 10.0 ** (-aim / 10.0))
                if tuple(picked) in seen:
                    if high - low < 0.2:
                        break
                    if not math.isfinite(high - low):
                        if not any(picked) or not math.isfinite(low):
                            break
                        aim += 1.0
                        continue
                    aim = (low + high) / 2
                    if tuple(knapsack.solve(self.units, 10.0 ** (-aim / 10.0))) in seen:
                        break
                    continue
                seen.add(tuple(picked))
                self._clock.check()
                found = self._measured(self.choice(picked))
                missing = found.shortfall + margin
                if missing <= 0:
                    if best is None or found.cost < best.cost:
                        best = found
                    high = min(high, aim)
                else:
                    low = max(low, aim)
                if high - low < 0.1:
                    break
                step = missing if math.isfinite(missing) else 20.0
                guess = aim + max(-20.0, min(20.0, step + (0.05 if step > 0 else 0.0)))
                if not low < guess < high or abs(guess - aim) < 0.02:
                    guess = (low + high) / 2 if math.isfinite(high - low) else aim + (1 if step > 0 else -1)
                aim = guess
            if best is not None:
                best = self._refine(best, margin)
        except TimeIsUp:
            self._note("the time limit ended the search early")
        return best

    def largest_within(self, goal: Goal) -> Measured | None:
        """Returns the file with the least error of at most ``goal.max_nbytes`` that was found."""
        assert goal.max_nbytes is not None
        best: Measured | None = None
        low, high = -20.0, 120.0
        try:
            for number in range(ROUNDS):
                self._progress("settling", number, ROUNDS)
                aim = (low + high) / 2
                self._clock.check()
                found = self._measured(self.choice(knapsack.solve(self.units, 10.0 ** (-aim / 10.0))))
                if found.nbytes <= goal.max_nbytes:
                    low = aim
                    if best is None or (found.snr or math.inf) > (best.snr or math.inf):
                        best = found
                else:
                    high = aim
                if high - low < 0.1:
                    break
        except TimeIsUp:
            self._note("the time limit ended the search early")
        return best

    def trace(self, around: float | None) -> None:
        """Measures some more points of the curve of size against error."""
        self.curve_traced = True
        around = 35.0 if around is None else around
        for step in _CURVE_STEPS:
            try:
                self._clock.check(0.9)
            except TimeIsUp:
                return
            self._measured(self.choice(knapsack.solve(self.units, 10.0 ** (-(around + step) / 10.0))))

    def choice(self, picked: Sequence[int]) -> dict[int, Encoding]:
        """Returns the encodings of what is not kept as it is."""
        return {
            unit.position: unit.options[index].encoding
            for unit, index in zip(self.units, picked, strict=True)
            if unit.options[index].encoding != KEPT
        }

    def _measured(self, choice: Choice) -> Measured:
        key = sorted((position, encoding.text) for position, encoding in choice.items())
        for known in self.curve:
            if sorted((position, encoding.text) for position, encoding in known.choice.items()) == key:
                return known
        found = self._trials.measure(choice)
        self.curve.append(found)
        return found

    def _refine(self, best: Measured, margin: float) -> Measured:
        """Stores single constants smaller while the file still measures well."""
        tried = 0
        refused: set[tuple[int, str]] = set()
        while tried < REFINEMENTS:
            moves = [
                move
                for move in self._moves(best, margin)
                if (move[1].position, move[2].encoding.text) not in refused
            ]
            if not moves:
                break
            _, unit, option = max(moves, key=lambda move: move[0])
            choice = {**best.choice, unit.position: option.encoding}
            self._progress("refining", tried, REFINEMENTS)
            self._clock.check()
            tried += 1
            found = self._measured(choice)
            if found.shortfall + margin <= 0 and found.cost < best.cost:
                best = found
            else:
                refused.add((unit.position, option.encoding.text))
        return best

    def _moves(self, best: Measured, margin: float) -> list[tuple[float, Unit, Option]]:
        """Single steps to something cheaper, with what they save for the noise they add."""
        slack = 10.0 ** (max(0.0, -best.shortfall - margin) / 10.0) - 1.0
        total = np.full(self.units[0].kept.noise.size, QUIET)  # type: ignore[union-attr]
        now = {}
        for unit in self.units:
            option = _option(unit, best.choice.get(unit.position, KEPT))
            assert option is not None and option.noise is not None
            now[unit.position] = option
            total = total + option.noise
        moves = []
        for unit in self.units:
            current = now[unit.position]
            for option in unit.options:
                saved = current.cost - option.cost
                if saved <= 0 or option.noise is None or current.noise is None:
                    continue
                added = float(((option.noise - current.noise) / total).max())
                # Sums are estimates: what is a little over may still do.
                if added <= 2.0 * slack + 0.03:
                    moves.append((saved / max(added, 1e-6), unit, option))
        return moves

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _option(unit: Unit, encoding: Encoding) -> Option | None:
    return next((option for option in unit.options if option.encoding == encoding), None)


def _complete(unit: Unit, outputs: int) -> None:
    """Gives every option a noise: estimates those that were not measured, drops those that do not run."""
    unit.kept.noise = np.zeros(outputs)
    unit.options = [option for option in unit.options if option.noise is not None or not option.measured]
    known = [option for option in unit.options[1:] if option.measured and option.noise is not None]
    for option in unit.options[1:]:
        if option.noise is not None:
            continue
        if not known:
            continue
        # The nearest in bits; noise on outputs grows with that of the values.
        near = min(known, key=lambda item: abs(math.log2((item.wnoise or 1e-12) / (option.wnoise or 1e-12))))
        assert near.noise is not None
        option.noise = np.maximum(near.noise * (option.wnoise / max(near.wnoise, 1e-30)), QUIET)
    unit.options = [option for option in unit.options if option.noise is not None]
