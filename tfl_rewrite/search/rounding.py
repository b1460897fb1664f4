"""Finds the coarsest rounding that keeps the outputs at a given signal-to-noise ratio.

The noise that rounding one constant puts on an output grows with the square of its step, and the noises of
several constants add up, as long as they are small. So each constant is rounded alone once and the file is
run: that gives what a unit of its noise costs. Then each gets the grid that minimizes deflated bytes plus a
price times its cost (reverse water-filling, with measured sizes in place of the logarithm), and the price is
settled by running files with everything rounded. With real inputs levels are chosen for what weights meet,
which fits the samples at hand: they come in two halves, and each half measures weights that were rounded for
the other. A quarter of the samples is held out; while the file does not keep the ratio there, the search
leaves more room. What goes into a last SOFTMAX that decides few things has to keep the ratio as well: outputs
that are sure of themselves hide noise that others show. How many files are run depends on the model alone,
not on the clock, so the same input gives the same result.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tfl_rewrite.calibration.fitter import Fitter
from tfl_rewrite.calibration.holdout import divide
from tfl_rewrite.calibration.rounder import Settings
from tfl_rewrite.errors import UnsupportedError, check_number
from tfl_rewrite.files.store import load
from tfl_rewrite.interpreter.scratch import Scratch
from tfl_rewrite.judge.settings import Judging, Tolerance
from tfl_rewrite.judge.verdict import Verdict
from tfl_rewrite.numerics import grids
from tfl_rewrite.numerics.grids import KINDS
from tfl_rewrite.passes.round_weights import RoundWeights
from tfl_rewrite.pipeline.opened import MANY_DECISIONS, open_outputs
from tfl_rewrite.reading.metadata import with_media
from tfl_rewrite.search.grids import Group, choice_at, forms_of, grouped, options_around
from tfl_rewrite.search.in_place import Trial, Trials, noise_of, worst_ratio
from tfl_rewrite.weights.grids import Choice, Constant, find_constants
from tfl_rewrite.weights.payloads import GridPayload
from tfl_rewrite.weights.rounders import Effort, Fitting

PROBES = 160
"""Constants that are measured alone; the smallest of a model with more are measured together."""

# Constants with so much of all elements are measured twice.
_LARGE = 1 / 256
_ROUNDS = 14
_SAME = "the steps were searched with the samples that judge them: judge by others too"
_ANYTHING = Tolerance(min_snr=None)


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to.

    Attributes:
        settings: The pass that was found.
        snr: Lowest ratio over the outputs that was measured with it, in dB; None where none has one. Levels
            that are chosen for inputs were chosen for other ones than those measured with.
        files: How many files were run.
    """

    settings: RoundWeights
    snr: float | None
    files: int


def search_rounding(
    source: str | os.PathLike[str],
    settings: RoundWeights,
    judging: Judging,
    *,
    min_snr: float,
    max_abs_error: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Found:
    """Searches; see the module.

    Args:
        source: The file.
        settings: Granularity and which constants; its steps are not used.
        judging: What to measure with; its tolerance is not used.
        min_snr: What every output must keep, in dB.
        max_abs_error: What no element of an output may be off by more than.
        progress: Called with what is going on, and how many of how many runs are done.

    Raises:
        UnsupportedError: The original cannot be run, so nothing can be measured.
        UsageError: A bound is out of its range.
    """
    check_number("min_snr", min_snr)
    if max_abs_error is not None:
        check_number("max_abs_error", max_abs_error)
    with RoundingSearch(source, settings, judging, aim=min_snr, progress=progress) as search:
        return search.find(min_snr, max_abs_error=max_abs_error)


class RoundingSearch:
    """Measures a file once and finds the rounding for any number of targets.

    Args:
        source: The file.
        settings: Granularity and which constants; its steps are not used.
        judging: What to measure with; its tolerance is not used.
        aim: Where about the targets are, in dB: constants are measured near it.
        progress: Called with what is going on, and how many of how many runs are done.

    Raises:
        UnsupportedError: The original cannot be run, so nothing can be measured.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        settings: RoundWeights,
        judging: Judging,
        *,
        aim: float,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._settings = settings
        self._aim = min(max(aim, 0.0), 120.0)
        self._progress = progress or (lambda _what, _done, _total: None)
        self._model = load(source)
        items, _ = find_constants(self._model, int8=settings.int8, min_elements=settings.min_elements)
        self._items = {item.position: item for item in _not_rounded(items)}
        self._elements = sum(item.elements for item in self._items.values())
        self._groups = grouped(list(self._items.values()), PROBES)
        self._source = source
        self._folder = Scratch()
        self._fitting: Fitter | None = None
        self._apart: Judging | None = None
        self._text = self._caveat = ""
        folder = self._folder.path
        parts = self._parts(with_media(judging, source))
        self._fitters = [fitter for _, fitter in parts if fitter is not None]
        self._trial = self._probes = self._trials(source, "trial", parts)
        self._whole: Trials | None = None
        if self._fitting is not None:
            self._fitters.append(self._fitting)
        if self._apart is not None:
            self._whole = self._trials(source, "whole", [(self._apart, self._fitting)])
        opened = folder / "opened.tflite"
        decisions = open_outputs(source, opened, centred=True)
        self._hides = 0 < decisions < MANY_DECISIONS
        if decisions:
            self._probes = self._trials(opened, "probe", parts)

    def __enter__(self) -> RoundingSearch:
        return self

    def __exit__(self, *_: object) -> None:
        for trials in (self._trial, self._probes, self._whole):
            if trials is not None:
                trials.close()
        self._folder.close()

    @property
    def files(self) -> int:
        """How many files were run."""
        each = {id(trials): trials for trials in (self._trial, self._probes, self._whole) if trials}
        return sum(trials.files for trials in each.values())

    def _parts(self, judging: Judging) -> list[tuple[Judging, Fitting | None]]:
        """Returns how to measure on each part of the inputs, and what chooses levels by the others."""
        if not judging.inputs or not self._items:
            self._caveat = _SAME
            return [(judging, None)]
        fits = self._settings.effort is not Effort.FAST
        folder = self._folder.folder()
        parted = divide(self._model, judging.inputs, judging.holdout, folder, halves=fits)
        if parted.reason:
            self._caveat = f"{_SAME}; {parted.reason}"
            return [(replace(judging, inputs=parted.judge, holdout=()), None)]
        self._apart = replace(judging, inputs=parted.judge, holdout=())
        if not fits:
            self._text = parted.text
            return [(replace(judging, inputs=parted.everything, holdout=()), None)]
        self._text = parted.dealt
        self._fitting = Fitter(Settings.of(replace(judging, inputs=parted.everything)), self._progress)
        return [
            (
                replace(judging, inputs=part, holdout=()),
                Fitter(Settings.of(replace(judging, inputs=parted.others(number))), self._progress),
            )
            for number, part in enumerate(parted.folds)
        ]

    def _trials(
        self,
        source: str | os.PathLike[str],
        name: str,
        parts: Sequence[tuple[Judging, Fitting | None]],
    ) -> Trials:
        return Trials(
            [
                Trial.of(source, f"{name}-{number}", self._folder.path, part, fitting)
                for number, (part, fitting) in enumerate(parts)
            ]
        )

    def measure(self) -> None:
        """Measures what the noise of each constant costs, unless that is done."""
        if self._fitters and not self._groups[0].options:
            for fitter in self._fitters:
                fitter.prepare(self._model, list(self._items.values()))
        if self._probes is not self._trial and not self._probes.files:
            self._check_opened()
        for number, group in enumerate(self._groups):
            self._progress("measuring constants", number, len(self._groups))
            if not group.options:
                self._probe(group)

    def _check_opened(self) -> None:
        """Goes on with the file as it is where its opened copy does not run."""
        try:
            self._judge({}, _ANYTHING, self._probes)
        except UnsupportedError:
            self._probes.close()
            self._probes, self._hides = self._trial, False

    def propose(self, aim: float) -> tuple[RoundWeights, float]:
        """Returns the cheapest rounding that is expected to keep a ratio, without trying it.

        Args:
            aim: In dB.

        Returns:
            The pass, and about how many deflated bytes the constants would take.
        """
        if not self._items:
            return replace(self._settings, choices={}), 0.0
        self.measure()
        choices, nbytes = self._solve(aim)
        return replace(self._settings, choices=choices, fitting=self._fitting), nbytes

    def find(self, min_snr: float, *, max_abs_error: float | None = None) -> Found:
        """Returns the coarsest rounding that was found to keep every output at a ratio.

        Args:
            min_snr: In dB.
            max_abs_error: What no element of an output may be off by more than.
        """
        if not self._items:
            return Found(replace(self._settings, choices={}), None, self.files)
        self.measure()
        tolerance = Tolerance(min_snr=min_snr, max_abs_error=max_abs_error)
        best: tuple[float, dict[int, Choice], float | None] | None = None
        low, high = None, None
        aim = min_snr
        seen: dict[tuple[tuple[int, Choice], ...], bool] = {}
        stride = 0.25
        for number in range(_ROUNDS):
            self._progress("settling the steps", number, _ROUNDS)
            choices, size = self._solve(aim)
            key = tuple(sorted(choices.items(), key=lambda pair: pair[0]))
            if key in seen:
                # Coarser grids where those held, finer ones where not.
                aim += -stride if seen[key] else stride
                stride *= 1.5
                continue
            stride = 0.25
            verdict = self._judge(choices, tolerance, self._trial)
            worst = worst_ratio(verdict)
            if self._hides and worst >= min_snr:
                worst = min(worst, worst_ratio(self._judge(choices, _ANYTHING, self._probes)))
            passed = verdict.passed and worst >= min_snr
            if passed and self._whole is not None:
                # The file itself, which is rounded for all of these samples, on those that were held out.
                whole = self._judge(choices, tolerance, self._whole)
                worst, passed = min(worst, worst_ratio(whole)), whole.passed
            seen[key] = passed
            if seen[key]:
                if best is None or size < best[0]:
                    best = size, choices, verdict.worst_snr()
                high = aim if high is None else min(high, aim)
            else:
                low = aim if low is None else max(low, aim)
            if low is not None and high is not None:
                if high - low < 0.1:
                    # Rounding is a draw: a coarser grid may do as well by chance.
                    low, high = low - 0.4, low
                    aim = low
                    continue
                guess = aim + min_snr - worst + 0.02
                inside = low + 0.1 * (high - low) < guess < high - 0.1 * (high - low)
                aim = guess if inside else (low + high) / 2
            elif low is None:
                aim -= min(20.0, max(0.5, worst - min_snr))
            else:
                aim += min(20.0, max(0.5, min_snr - worst + 0.1))
        if best is None:
            choices = {position: Choice(self._finest(position)) for position in self._items}
            best = 0, choices, self._judge(choices, tolerance, self._trial).worst_snr()
        notes = self._notes(best[1], best[2])
        made = replace(self._settings, choices=best[1], fitting=self._fitting, notes=notes)
        return Found(made, best[2], self.files)

    def _notes(self, choices: Mapping[int, Choice], snr: float | None) -> tuple[str, ...]:
        """Returns what was measured, where the verdict on the file does not show it."""
        notes = []
        if self._text and snr is not None:
            notes.append(f"the search measured {snr:.1f} dB on {self._text}")
        elif self._caveat and snr is not None:
            notes.append(self._caveat)
        if self._hides:
            hidden = worst_ratio(self._judge(choices, _ANYTHING, self._probes))
            notes.append(f"what goes into the last SOFTMAX, LOGISTIC or TANH keeps {hidden:.1f} dB")
        return tuple(notes)

    def _judge(self, choices: Mapping[int, Choice], tolerance: Tolerance, trial: Trials) -> Verdict:
        return trial.judge({key: (self._items[key], made) for key, made in choices.items()}, tolerance)

    def _probe(self, group: Group) -> None:
        """Measures what the noise of a group costs, near the noise that it is going to have."""
        for form in forms_of(group, self._settings.granularity):
            ratio = self._aim + 8.0
            for _ in range(4):
                choices = {item.position: choice_at(item, ratio, form) for item in group.items}
                noise = noise_of(self._judge(choices, _ANYTHING, self._probes))
                largest = float(noise.max(initial=0.0)) * 10.0 ** (self._aim / 10.0)
                if largest > 1.0:
                    ratio += min(40.0, 10.0 * math.log10(largest) + 6.0)
                elif largest < 1e-4 and ratio > -10.0:
                    ratio -= min(25.0, -10.0 * math.log10(max(largest, 1e-12)) - 20.0)
                else:
                    break
            made = _noise_of_values(group, choices)
            cost = noise / max(made, 1e-300)
            center = {item.position: choices[item.position].step for item in group.items}
            if sum(item.elements for item in group.items) >= self._elements * _LARGE:
                # One grid may hit by chance what matters most; a second one tells.
                choices = {
                    key: replace(choice, step=max(choice.step / 2, self._finest(key)))
                    for key, choice in choices.items()
                }
                noise = noise_of(self._judge(choices, _ANYTHING, self._probes))
                cost = (cost + noise / max(_noise_of_values(group, choices), 1e-300)) / 2
            group.add(options_around(group, center, form), cost)

    def _finest(self, position: int) -> float:
        item = self._items[position]
        return grids.finest(item.profile(), item.kind)

    def _solve(self, aim: float) -> tuple[dict[int, Choice], float]:
        """Returns the cheapest grids whose expected ratio is ``aim`` dB, and their expected size."""
        allowed = 10.0 ** (-aim / 10.0)
        outputs = self._groups[0].noise.shape[1]
        weight = np.ones(outputs)
        picked: list[int] = []
        for _ in range(8 if outputs > 1 else 1):
            low, high = -40.0, 100.0
            for _ in range(30):
                middle = (low + high) / 2
                picked = [group.cheapest(weight * math.exp(middle)) for group in self._groups]
                if self._expected(picked).max(initial=0.0) > allowed:
                    low = middle
                else:
                    high = middle
            picked = [group.cheapest(weight * math.exp(high)) for group in self._groups]
            total = self._expected(picked)
            if total.max(initial=0.0) <= 0:
                break
            # What the worst output suffers counts more next time.
            weight *= np.maximum(total / total.max(), 1e-3) ** 0.5
        chosen = [group.options[place] for group, place in zip(self._groups, picked, strict=True)]
        choices = {key: made for option in chosen for key, made in option.choices.items()}
        return choices, sum(option.nbytes for option in chosen)

    def _expected(self, picked: Sequence[int]) -> grids.Float64:
        rows = [group.noise[place] for group, place in zip(self._groups, picked, strict=True)]
        return np.asarray(np.sum(rows, axis=0))


def _noise_of_values(group: Group, choices: Mapping[int, Choice]) -> float:
    return sum(GridPayload.of(item, choices[item.position]).error().noise for item in group.items)


def _not_rounded(items: Sequence[Constant]) -> list[Constant]:
    """Returns what is to be rounded: nothing, where this was done before."""
    sound = [item for item in items if item.profile().finite]
    floats = [item for item in sound if item.kind is not KINDS["INT8"]]
    integers = [item for item in sound if item.kind is KINDS["INT8"]]
    rest = [item for item in floats if not item.is_rounded]
    done = not rest if floats else any(item.is_rounded for item in integers)
    return [] if done else [*rest, *integers]
