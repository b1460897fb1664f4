"""What each encoding of each constant costs at the outputs: measured, or told from what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from tfl_rewrite.search.figures import QUIET
from tfl_rewrite.search.state import Clock, State, TimeIsUp
from tfl_rewrite.search.trials import Trials
from tfl_rewrite.search.units import Float64, Option, Unit

Progress = Callable[[str, int, int], None]

PROBES = 240
_LEAST_PROBES = 60
_PROBED_NBYTES = 400_000_000
"""So many bytes of files are run to measure constants; what is left then is told from what was measured."""

LEAST_GAIN = 0.01
"""Of the median over all constants: no rounding counts for less, however little the inputs show of it."""

_FIRST = ("int4:channel:dequantize", "int4:block:32:dequantize", "int8:channel:dequantize")


def measure(
    units: list[Unit], trials: Trials, nbytes: int, *, state: State, clock: Clock, progress: Progress
) -> list[str]:
    """Gives every option of every unit a noise; drops options that do not run, and units without any.

    Args:
        units: Changed in place.
        trials: Makes and runs files.
        nbytes: Size of the original, which decides how many files are run.
        state: What was measured before, and is measured now.
        clock: May end it early.
        progress: Called with what is going on, and how many of how many steps are done.

    Returns:
        Notes for the report.
    """
    notes = []
    _round(units, trials, progress)
    wanted = _order(units)
    limit = int(min(PROBES, max(_LEAST_PROBES, _PROBED_NBYTES // max(1, nbytes))))
    try:
        for done, (unit, option) in enumerate(wanted[:limit]):
            progress("measuring encodings", done, min(limit, len(wanted)))
            if not state.knows(unit, option):
                clock.check(0.6)
                state.put(unit, option, trials.noise({unit.position: option.encoding}))
            option.noise, option.measured = state.get(unit, option), True
    except TimeIsUp:
        notes.append("the time limit left some encodings unmeasured: their noise is told from others")
    if len(wanted) > limit:
        notes.append(f"{limit} of {len(wanted)} encodings were measured, the others told from those")
    trials.rest()
    complete(units)
    units[:] = [unit for unit in units if len(unit.options) > 1]
    return notes


def _round(units: Sequence[Unit], trials: Trials, progress: Progress) -> None:
    """Rounds every constant in every way, and notes the noise of its values."""
    encodings = list(dict.fromkeys(option.encoding for unit in units for option in unit.options[1:]))
    choices = [
        {
            unit.position: encoding
            for unit in units
            if any(option.encoding == encoding for option in unit.options)
        }
        for encoding in encodings
    ]
    progress("rounding", 0, len(encodings))
    trials.prepare(choices)
    for number, (encoding, choice) in enumerate(zip(encodings, choices, strict=True)):
        progress("rounding", number, len(encodings))
        stored = trials.rounded(choice)
        for unit in units:
            for option in unit.options[1:]:
                if option.encoding == encoding and unit.position in stored:
                    option.wnoise = stored[unit.position].noise
                    option.cost -= stored[unit.position].deflated


def _order(units: Sequence[Unit]) -> list[tuple[Unit, Option]]:
    """Returns what to measure, in order: one encoding of each unit, then the rest of the largest ones."""
    large = sorted(units, key=lambda unit: (-unit.nbytes, unit.position))
    first: list[tuple[Unit, Option]] = []
    for unit in large:
        by_text = {option.encoding.text: option for option in unit.options[1:]}
        picked = next((by_text[text] for text in _FIRST if text in by_text), unit.options[-1])
        first.append((unit, picked))
    taken = {id(option) for _, option in first}
    # Kernels that round activations too: of those nothing can be told without running them.
    rest = [(unit, option) for unit in large for option in unit.options[1:] if id(option) not in taken]
    hybrid = [pair for pair in rest if not pair[1].only_weights]
    return [*first, *hybrid, *(pair for pair in rest if pair[1].only_weights)]


def complete(units: Sequence[Unit]) -> None:
    """Gives every option a noise, and drops those that have none.

    The noise that a weight's rounding puts on an output grows with the noise of its values; how fast differs
    from unit to unit, so other encodings of the unit say most, and the median over all units says the rest.
    None counts for less than a hundredth of that: a branch that the inputs at hand do not take shows nothing.
    """
    measured = [
        (option.noise / max(option.wnoise, 1e-30))
        for unit in units
        for option in unit.options[1:]
        if option.measured and option.noise is not None and option.only_weights
        if np.isfinite(option.noise).all()
    ]
    outputs = next(
        (option.noise.size for unit in units for option in unit.options if option.noise is not None), 1
    )
    usual: Float64 = np.ones(outputs)
    if measured:
        usual = np.array([median(float(row[index]) for row in measured) for index in range(outputs)])
    for unit in units:
        known = [
            option
            for option in unit.options[1:]
            if option.measured and option.noise is not None and option.only_weights
        ]
        for option in unit.options[1:]:
            if option.measured or not option.only_weights:
                continue
            if known:
                near = min(known, key=lambda item: _distance(item, option))
                assert near.noise is not None
                told = near.noise * (option.wnoise / max(near.wnoise, 1e-30))
            else:
                told = usual * option.wnoise
            option.noise = np.maximum(told, QUIET)
        for option in unit.options[1:]:
            if measured and option.noise is not None and option.only_weights:
                # What the inputs at hand hardly use, others may.
                option.noise = np.maximum(option.noise, LEAST_GAIN * usual * option.wnoise)
        unit.kept.noise = np.zeros(outputs)
        unit.options = [option for option in unit.options if option.noise is not None]


def _distance(one: Option, other: Option) -> float:
    return abs(math.log2(max(one.wnoise, 1e-12) / max(other.wnoise, 1e-12)))
