"""The grids that a search chooses from: what each would save, and how far values would be off.

Steps are 1, 1.25, 1.5 and 1.75 times a power of two, four in an octave. Sizes are taken at the powers of two
and lie between on a straight line, as far as measured: there the third byte of a float32 would stop being
zero once a value needs more than eight significant bits, which costs up to a bit a value. So on the steps
between, values keep eight significant bits; the largest of a constant are off by a little more then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tfl_rewrite.numerics import grids
from tfl_rewrite.numerics.deflate import deflated
from tfl_rewrite.numerics.grids import KINDS, Float64, Rows
from tfl_rewrite.passes.round_weights import Granularity
from tfl_rewrite.weights.grids import Choice, Constant

# Of each constant, what its sizes are estimated from: as far as deflate looks back.
_SAMPLE = 1 << 13
_ESTIMATE_LEVEL = 6
_SPREADS = (0.0, 1.0)
_HEAD = 6
# How coarse a constant may be beyond its probe, and how fine: octaves.
_COARSER, _FINER = 7, 5
_BETWEEN = (1.25, 1.5, 1.75)
_SHORT = 8
# From so many steps up to the largest value, eight bits are felt; from so many they are too few.
_FELT, _TOO_FEW = 36.0, 900.0
_QUIET = 1e-20


@dataclass(slots=True, eq=False)
class Option:
    """One grid for a group of constants.

    Attributes:
        choices: By position of the buffer.
        nbytes: Deflated size, as far as a part of each constant tells.
        noise: Squared error of the values.
    """

    choices: dict[int, Choice]
    nbytes: float
    noise: float


@dataclass(slots=True, eq=False)
class Group:
    """Constants that are measured together; nearly always one.

    Attributes:
        options: What may become of them.
        sizes: ``[options]``, deflated bytes.
        noise: ``[options, outputs]``, what each would put on the outputs, relative to their signal.
    """

    items: list[Constant]
    options: list[Option] = field(default_factory=list)
    sizes: Float64 = field(default_factory=lambda: np.zeros(0))
    noise: Float64 = field(default_factory=lambda: np.zeros((0, 0)))

    def add(self, options: Sequence[Option], cost: Float64) -> None:
        """Adds options.

        Args:
            options: For one spread.
            cost: Noise of each output per unit of noise of the values.
        """
        rows = np.array([option.noise for option in options])[:, None] * np.maximum(cost, _QUIET)[None, :]
        self.noise = np.concatenate([self.noise, rows]) if self.options else rows
        self.options += options
        self.sizes = np.array([option.nbytes for option in self.options])

    def cheapest(self, price: Float64) -> int:
        """Returns the position of the option with the least size plus price of its noise (one per output)."""
        return int(np.argmin(self.sizes + self.noise @ price))


def grouped(free: Sequence[Constant], probes: int) -> list[Group]:
    """Gives each of the largest a group; the rest share ten."""
    order = sorted(free, key=lambda item: (-item.elements, item.position))
    groups = [Group([item]) for item in order[: max(1, probes - 10)]]
    rest = order[len(groups) :]
    size = -(-len(rest) // 10)
    groups += [Group(rest[start : start + size]) for start in range(0, len(rest), max(1, size))]
    return groups


def forms_of(group: Group, granularity: Granularity) -> list[Choice]:
    """Returns what grids may look like apart from their step, which is 1 here."""
    if granularity is not Granularity.TENSOR and any(item.table for item in group.items):
        return [Choice(1.0), Choice(1.0, head=_HEAD)]
    may = granularity is not Granularity.TENSOR and any(
        item.rows.channels > 1 and item.rows.each >= 4 and item.kind is not KINDS["INT8"]
        for item in group.items
    )
    return [Choice(1.0, spread) for spread in (_SPREADS if may else _SPREADS[:1])]


def choice_at(item: Constant, ratio: float, form: Choice) -> Choice:
    """Returns the power of two whose noise is expected at so many dB below the constant itself."""
    found = item.profile()
    power = float(found.power.sum()) / max(1, item.elements)
    step = math.sqrt(12.0 * power * 10.0 ** (-ratio / 10.0)) if power else 1.0
    least = grids.finest(found, item.kind)
    coarsest = 4.0 * float(found.largest.max(initial=0.0)) or 1.0
    return replace(form, step=2.0 ** round(math.log2(min(max(step, least), coarsest))))


def options_around(group: Group, center: Mapping[int, float], form: Choice) -> list[Option]:
    """Returns the grids around a center.

    Args:
        group: Of the constants.
        center: A power of two for each, by position of its buffer.
        form: What they look like apart from their step.
    """
    parts = {item.position: _part(item) for item in group.items}
    made: dict[tuple[Choice, ...], Option] = {}
    before: Option | None = None
    for octave in range(_COARSER, -_FINER - 1, -1):
        option = Option(_at(group, center, 2.0**octave, form), 0.0, 0.0)
        if before is not None and option.choices == before.choices:
            break
        for item in group.items:
            size, error = _estimate(item, parts[item.position], option.choices[item.position])
            option.nbytes += size
            option.noise += error
        made.setdefault(tuple(option.choices.values()), option)
        for factor in _BETWEEN if before is not None else ():
            assert before is not None
            between = _between(group, center, option, before, (octave, factor, form))
            if between is not None:
                made.setdefault(tuple(between.choices.values()), between)
        before = option
    return list(made.values())


def _between(
    group: Group,
    center: Mapping[int, float],
    finer: Option,
    coarser: Option,
    place: tuple[int, float, Choice],
) -> Option | None:
    """Returns the grid at a place between two powers of two; None where one of those does better."""
    octave, factor, form = place
    choices = _at(group, center, 2.0**octave * factor, form)
    short = False
    for item in group.items:
        if item.kind is KINDS["INT8"]:
            return None
        if item.kind is not KINDS["FLOAT32"]:
            continue
        fine = float(item.profile().largest.max(initial=0.0)) / choices[item.position].step
        if fine >= _TOO_FEW:
            return None
        if fine >= _FELT:
            short = True
            choices[item.position] = replace(choices[item.position], bits=_SHORT)
    part = math.log2(factor)
    noise = finer.noise ** (1 - part) * coarser.noise**part
    if short:
        fits = [_estimate(item, _part(item), choices[item.position], sized=False)[1] for item in group.items]
        noise = sum(fits)
    return Option(choices, (1 - part) * finer.nbytes + part * coarser.nbytes, noise)


def _at(group: Group, center: Mapping[int, float], factor: float, form: Choice) -> dict[int, Choice]:
    """Returns the grids so many times a center, none finer than what counts as rounded."""
    return {
        item.position: replace(
            form, step=max(center[item.position] * factor, grids.finest(item.profile(), item.kind))
        )
        for item in group.items
    }


def _part(item: Constant) -> tuple[int, int]:
    """Returns first channel and number of channels of what stands for the whole."""
    rows = item.rows
    if rows.elements <= _SAMPLE or rows.outer > 1 or rows.channels == 1:
        return 0, rows.channels
    count = max(1, _SAMPLE // rows.inner)
    return (rows.channels - count) // 2, min(count, rows.channels)


def _estimate(
    item: Constant, part: tuple[int, int], choice: Choice, *, sized: bool = True
) -> tuple[float, float]:
    """Returns the deflated size (0 unless asked for) and the squared error of a constant on a grid."""
    first, count = part
    rows = item.rows
    # What the head of a table takes is next to nothing.
    steps = item.steps(replace(choice, head=0))
    values = item.values()
    if count < rows.channels:
        values = values[first * rows.inner : (first + count) * rows.inner]
        steps = steps if steps.size == 1 else steps[first : first + count]
        rows = Rows(1, count, rows.inner, rows.taps, rows.balanced)
    elif rows.channels == 1 and rows.elements > _SAMPLE:
        start = (rows.elements - _SAMPLE) // 2
        values = values[start : start + _SAMPLE]
        rows = Rows.flat(_SAMPLE)
    made = np.empty(values.size, values.dtype)

    def emit(start: int, block: grids.Array) -> None:
        made[start : start + block.size] = block

    error = grids.round_values(values, steps, rows, item.kind, emit, item.zero, bits=choice.bits)
    scale = item.elements / max(1, values.size)
    size = deflated(made.data, level=_ESTIMATE_LEVEL) if sized else 0
    return size * scale, error.noise * scale
