"""Files whose weights all have one encoding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from statistics import median

from tfl_rewrite.kernels.operators import Granularity
from tfl_rewrite.options.frozen import frozen, slotted
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.search.search import Search
from tfl_rewrite.search.session import Session
from tfl_rewrite.search.trials import Measured, Rounding
from tfl_rewrite.search.units import HYBRID, Form, Option, encodings_for, find_units
from tfl_rewrite.weights.encoding import Encoding, Scheme

_PER_BIT, _HALF_BITS = 6.02, 12
"""What a bit of an element is worth, in dB; and what bits float16 is worth."""
_EXPECTED_GAIN = 8.0
"""By how many dB fitting lowers the noise, before any file tells."""
_SAME_DB = 1e-6
"""Noise of files that are stored otherwise is not the same by chance."""
_BY_BLOCK, _BY_TENSOR, _ROUNDED_ACTIVATIONS = 3.0, -6.0, -3.0
"""What scales by block, one scale, and kernels that round activations are worth, in dB."""


@slotted(eq=False)
class Uniform:
    """A file whose weights have one encoding, as far as they can have it.

    Attributes:
        encoding: The one.
        options: By the position of the constant, how it is stored then.
        expected: What the objective is expected to count; None where that is not known beforehand.
        nbytes: Expected size of the file.
        made: The file, by how weights are rounded; None where it cannot be made.
        missing: By how many dB it misses the bounds on the inputs of the search; where only the size is
            bound, its SNR with the other sign.
        refused: The same, on held-out inputs as well if those were asked.
    """

    encoding: Encoding
    options: dict[int, Option]
    expected: float | None
    nbytes: float
    made: dict[Rounding, Measured | None] = field(default_factory=dict)
    missing: dict[Rounding, float] = field(default_factory=dict)
    refused: dict[Rounding, float] = field(default_factory=dict)

    @property
    def choice(self) -> dict[int, Form]:
        """The forms of the constants."""
        return {position: option.form for position, option in self.options.items()}

    @property
    def is_hybrid(self) -> bool:
        """Whether kernels round activations, too, which is a noise that no finer weights lower."""
        return self.encoding.form.is_integer and self.encoding.scheme is not Scheme.DEQUANTIZE

    @property
    def nominal(self) -> float:
        """About what an encoding keeps, in dB, beside others; how much that is depends on the model."""
        wanted = self.encoding
        bits = wanted.form.bits if wanted.form.is_integer else _HALF_BITS
        worth = _PER_BIT * bits
        if wanted.granularity is not Granularity.CHANNEL:
            worth += _BY_BLOCK if wanted.granularity is Granularity.BLOCK else _BY_TENSOR
        return worth + (_ROUNDED_ACTIVATIONS if self.is_hybrid else 0.0)

    def cost(self) -> float | None:
        """What the objective counts: as it was measured, or as it is expected."""
        counted = [made.cost for made in self.made.values() if made is not None]
        return min(counted) if counted else self.expected


@frozen
class Told:
    """What files of one encoding that were run tell of others.

    Attributes:
        uniforms: All of them.
        goal: The bounds.
        fits: Whether weights can be fitted to inputs.
    """

    uniforms: Sequence[Uniform]
    goal: Goal
    fits: bool

    def missing(self, item: Uniform, rounding: Rounding, gap: float, *, alike: bool = False) -> float:
        """By how many dB a file is expected to miss the bounds.

        That is told by the file that is the most alike; where one is known on the other side, too, by both.

        Args:
            item: How constants are stored.
            rounding: How weights are rounded.
            gap: By how many dB held-out inputs show less.
            alike: Whether files with scales of the same kind are the most alike, not those of about the same
                worth: on 20 models scales by channel with four bits more told what is kept within 2 to 3 dB
                (the median), scales by block with as many bits within 3 to 5.
        """
        goal = self.goal
        gain = self.gain() if rounding is Rounding.FITTED and self.fits else 0.0
        known = sorted(
            (
                item.is_hybrid is not other.is_hybrid,
                alike and item.encoding.granularity is not other.encoding.granularity,
                abs(item.nominal - other.nominal),
                way is not rounding,
                number,
                missing - (gain if way is not rounding else 0.0),
            )
            for number, other in enumerate(self.uniforms)
            for way, missing in self._telling(other).items()
        )
        if not known:
            return (goal.min_snr if goal.min_snr is not None else 30.0) + 8.0 - item.nominal
        unlike, _, _, _, number, missing = known[0]
        if goal.bounds_error and not goal.in_db and missing <= 0:
            # What is bounded does not say how much coarser it may be.
            return 0.0
        finer = item.nominal - self.uniforms[number].nominal
        told = missing - finer
        for other_kind, _, _, _, number, end in known:
            span = self.uniforms[number].nominal - item.nominal + finer
            if other_kind is unlike and abs(span) > abs(finer) > 0 and (span > 0) is (finer > 0):
                told = missing + (end - missing) * finer / span
                break
        return told + (gap if goal.bounds_error else 0.0)

    def gain(self) -> float:
        """By how many dB fitting lowers the noise; one file that was tried does not tell alone."""
        told = [self._telling(item) for item in self.uniforms]
        found = [
            each[Rounding.PLAIN] - each[Rounding.FITTED]
            for each in told
            if Rounding.PLAIN in each and Rounding.FITTED in each
        ]
        return median([_EXPECTED_GAIN, *found])

    def _telling(self, item: Uniform) -> dict[Rounding, float]:
        """Returns by how many dB a file misses the bounds, where that says something of others.

        Where one that is stored otherwise misses them by just as much, something is decided otherwise, such
        as the branch of a tree: how coarse weights are says whether that happens, not how much it matters.
        """
        found = {way: missing for way, missing in item.missing.items() if math.isfinite(missing)}
        if not self.goal.in_db:
            return found
        return {
            way: missing
            for way, missing in found.items()
            if missing <= 0
            or not any(
                abs(each - missing) < _SAME_DB and other.choice != item.choice
                for other in self.uniforms
                for each in other.missing.values()
            )
        }


def uniform_files(opened: Session, search: Search, original: Measured) -> Iterator[Uniform]:
    """Yields the files of one encoding: what ``quantize-weights`` makes by default of each."""
    wanted = opened.wanted
    goal, base, trials = wanted.goal, wanted.base, opened.trials
    assert base is not None
    texts = [
        text for text in encodings_for(goal) if base.min_runtime >= Encoding.parse(text).form.first_runtime
    ]
    options = {unit.position: list(unit.options[1:]) for unit in search.units}
    # One scale is not tried where it spares little, and is the file of one encoding all the same.
    more = [[text] for text in texts if Encoding.parse(text).granularity is Granularity.TENSOR]
    if goal.objective is Objective.LATENCY:
        # How long those take was not measured.
        more = []
    if goal.encodings is None and goal.objective in (Objective.FILE, Objective.DOWNLOAD):
        # Kernels that read fewer bits spare a DEQUANTIZE each; alone they are seldom worth a measurement.
        known = [text for text in HYBRID if base.min_runtime >= Encoding.parse(text).form.first_runtime]
        more.append(known)
        texts += known
    for group in more:
        for unit in find_units(trials.fresh, base, group, goal.objective):
            mine = options.setdefault(unit.position, [])
            known_forms = {option.form for option in mine}
            mine += [option for option in unit.options[1:] if option.form not in known_forms]
    for text in dict.fromkeys(texts):
        encoding = Encoding.parse(text)
        model = trials.fresh()
        positions = {id(buffer): number for number, buffer in enumerate(model.buffers)}
        settings = replace(base, min_elements=None, encoding=encoding, assignment=None)
        decisions, _ = settings.plan(model).decide()
        taken: dict[int, Option] = {}
        for position in sorted({positions[id(made.item.stored.buffer)] for made in decisions}):
            option = _first(options.get(position, []), encoding)
            if option is not None:
                taken[position] = option
        if not taken:
            continue
        spared = sum(
            unit.nbytes - taken[unit.position].nbytes for unit in search.units if unit.position in taken
        )
        nbytes = original.nbytes - spared
        made = Uniform(encoding, taken, None, nbytes)
        if goal.objective is Objective.FILE:
            made.expected = nbytes
        elif goal.objective is not Objective.DOWNLOAD:
            changed = sum(
                taken[unit.position].cost - unit.kept.cost for unit in search.units if unit.position in taken
            )
            made.expected = original.cost + changed
        yield made


def _first(options: Sequence[Option], wanted: Encoding) -> Option | None:
    """Returns how a constant is stored where an encoding is asked for that it may not be able to have."""
    asked = [wanted]
    if wanted.form.is_integer:
        asked.append(replace(wanted, granularity=Granularity.CHANNEL, block=None))
    asked += [replace(each, scheme=Scheme.DEQUANTIZE) for each in asked if wanted.form.is_integer]
    known = {option.form: option for option in options}
    return next((known[each] for each in asked if each in known), None)
