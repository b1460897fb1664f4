"""What each encoding of each constant costs at the outputs: measured, or told from what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from tfl_rewrite.errors import FileAccessError, UsageError
from tfl_rewrite.files.atomic import PLAIN, write_whole
from tfl_rewrite.kernels.operators import Granularity
from tfl_rewrite.numerics.grids import finest
from tfl_rewrite.passes.prune import Sparsity
from tfl_rewrite.search.clock import Clock, TimeIsUp
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.search.holdout_judge import QUIET
from tfl_rewrite.search.trials import Trials
from tfl_rewrite.search.units import (
    Float64,
    Form,
    Option,
    Unit,
    cheapest,
    grid_at,
    grid_forms,
    grid_unit,
    grids_around,
    ratio,
)
from tfl_rewrite.weights.encoding import Encoding
from tfl_rewrite.weights.grids import Choice as Grid
from tfl_rewrite.weights.grids import Constant
from tfl_rewrite.weights.payloads import GridPayload


class State:
    """Measured noises in a file, which is read and written.

    Args:
        path: The file, or None to keep nothing.
        key: What the figures belong to.
        force: Whether figures that belong to something else may be replaced.
        access: Who may read the file, as for :func:`tfl_rewrite.files.atomic.atomic_write`.

    Raises:
        FileAccessError: The file holds something else than the state of a search.
        UsageError: It holds that of another search, and ``force`` is off.
    """

    def __init__(self, path: Path | None, key: str, *, force: bool = False, access: int = PLAIN) -> None:
        self._path = path
        self._key = key
        self._access = access
        self._noises: dict[str, list[float] | None] = {}
        if path is None or not path.exists():
            return
        try:
            data = json.loads(path.read_text(encoding="ascii"))
            known, noises = data["key"], dict(data["noises"])
            found = {
                str(name): None if row is None else [float(x) for x in row] for name, row in noises.items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise FileAccessError(
                "holds no state of a search", file=path, remedy="name another file"
            ) from None
        if known == key:
            self._noises = found
        elif not force:
            raise UsageError(
                "holds what was measured for another model, other inputs or settings, or by another version",
                file=path,
                remedy="name another file, or use --force to replace it",
            )

    def knows(self, unit: Unit, option: Option) -> bool:
        """Whether this was measured before."""
        return _name(unit, option) in self._noises

    def get(self, unit: Unit, option: Option) -> Float64 | None:
        """Returns a noise that was measured before; None if the file did not run."""
        row = self._noises[_name(unit, option)]
        return None if row is None else np.array(row)

    def put(self, unit: Unit, option: Option, noise: Float64 | None) -> None:
        """Keeps a noise."""
        self._noises[_name(unit, option)] = None if noise is None else [float(x) for x in noise]
        if self._path is None:
            return
        data = json.dumps({"key": self._key, "noises": self._noises}).encode("ascii")
        write_whole(self._path, data, force=True, access=self._access)


def _name(unit: Unit, option: Option) -> str:
    return f"{unit.position}/{option.form}"


Progress = Callable[[str, int, int], None]
_Pair = tuple[Unit, Option]

PROBES = 240
_LEAST_PROBES = 60
_PROBED_NBYTES = 400_000_000
"""So many bytes of files are run to measure constants; what is left then is told from what was measured."""

GRID_PROBES = 160
"""Constants that are measured alone on grids, and groups of the rest."""
_TOGETHER = 10
_LARGE = 1 / 256
"""Constants with so much of all elements are measured twice."""

LEAST_GAIN = 0.01
"""Of the median over all constants: no rounding counts for less, however little the inputs show of it."""

_SHARES = ("sparsity:0.5", "sparsity:0.8")
"""Of zeros, that are measured; the error of the products tells the others."""

_SHORT = 256
"""Elements of a constant that is worth a file, where nothing else than float16 is tried."""

_FINE = 8
"""The noise of more bits is told from that of fewer, which takes fewer files."""

_LOOSER, _TIGHTER = 6.0, 12.0
"""By how many dB a bound that is searched for may differ from what is asked for; see :func:`_narrow`."""
_TELLING = 0.05
"""Noise over signal, from which on it does not grow with that of values any more: outputs have changed."""
_HALF_BITS = 11.0
_OVERHEAD = 256.0
"""By how many bytes what an option takes may be off before it is made, for its tensors and operators."""

_FIRST = (*_SHARES, "int4:channel:dequantize", "int4:block:dequantize", "int8:channel:dequantize")


def measure(
    units: list[Unit],
    trials: Trials,
    nbytes: int,
    *,
    state: State,
    clock: Clock,
    progress: Progress,
    most: int = PROBES,
    kept: Collection[tuple[int, Form]] = (),
) -> list[str]:
    """Gives every option of every unit a noise; drops options that do not run, and units without any.

    Args:
        units: Changed in place.
        trials: Makes and runs files.
        nbytes: Size of the original, which decides how many files are run.
        state: What was measured before, and is measured now.
        clock: May end it early.
        progress: Called with what is going on, and how many of how many steps are done.
        most: So many are measured, of the largest constants first.
        kept: Options that are not left out, however little is expected of them: positions and forms.

    Returns:
        Notes for the report.

    Raises:
        TimeIsUp: Before all constants were rounded, and one encoding of each was measured.
    """
    notes = []
    limit = int(min(most, max(_LEAST_PROBES, _PROBED_NBYTES // max(1, nbytes))))
    costs = {id(option): option.cost for unit in units for option in unit.options}

    def look(pairs: Sequence[_Pair], before: int = 0, more: int = 0) -> None:
        for done, (unit, option) in enumerate(pairs, before):
            progress("measuring encodings", done, before + len(pairs) + more)
            if not state.knows(unit, option):
                clock.check()
                state.put(unit, option, trials.noise({unit.position: option.form}))
            option.noise, option.measured = state.get(unit, option), True

    first = _first(units)
    _round(first, trials, clock, progress)
    look(first[:limit], more=len(first))
    _narrow(units, trials.goal, costs, kept)
    rest = _rest(units, first)
    _round(rest, trials, clock, progress)
    wanted = [*first, *_told_least(rest)]
    try:
        look(wanted[len(first) : limit], len(first))
    except TimeIsUp:
        notes.append("the time limit left some encodings unmeasured: their noise is told from others")
    if len(wanted) > limit:
        notes.append(f"{limit} of {len(wanted)} encodings were measured, the others told from those")
    complete(units)
    units[:] = [unit for unit in units if len(unit.options) > 1]
    return notes


def measure_grids(
    trials: Trials, aim: float, *, by_channel: bool, clock: Clock, progress: Progress
) -> list[Unit]:
    """Finds the constants that can take values of coarser grids, and what each grid costs at the outputs.

    Each is rounded alone, near the noise that it is going to have, and the file is run: that gives what a
    unit of its noise costs. The smallest of a model with many are measured together.

    Args:
        trials: Makes and runs files.
        aim: About the ratio that outputs are to keep, in dB.
        by_channel: Whether channels may have steps of their own.
        clock: May end it early.
        progress: Called with what is going on, and how many of how many steps are done.

    Raises:
        TimeIsUp: Before all of them were measured.
    """
    items = trials.prepare_grids()
    elements = sum(item.elements for item in items)
    groups = groups_of(items)
    units = {item.position: grid_unit(item) for item in items}
    for number, group in enumerate(groups):
        progress("measuring constants", number, len(groups))
        for form in dict.fromkeys(form for item in group for form in grid_forms(item, by_channel=by_channel)):
            clock.check()
            large = sum(item.elements for item in group) >= elements * _LARGE
            cost, grids = _cost_of_noise(group, trials, min(max(aim, 0.0), 120.0), form, twice=large)
            if cost is None:
                continue
            for item in group:
                for option in grids_around(item, grids[item.position].step, form):
                    option.noise, option.measured = np.maximum(cost * option.wnoise, QUIET), True
                    units[item.position].options.append(option)
    outputs = [option.noise for unit in units.values() for option in unit.options[1:]]
    for unit in units.values():
        unit.kept.noise = np.zeros(1 if not outputs or outputs[0] is None else outputs[0].size)
    return [unit for unit in units.values() if len(unit.options) > 1]


def groups_of(items: Sequence[Constant]) -> list[list[Constant]]:
    """Returns what is measured together: each of the largest alone, the rest in ten groups."""
    large = sorted(items, key=lambda item: (-item.elements, item.position))
    alone, rest = large[: GRID_PROBES - _TOGETHER], large[GRID_PROBES - _TOGETHER :]
    size = -(-len(rest) // _TOGETHER)
    return [[item] for item in alone] + [rest[at : at + size] for at in range(0, len(rest), max(1, size))]


def _cost_of_noise(
    group: Sequence[Constant], trials: Trials, aim: float, form: Grid, *, twice: bool
) -> tuple[Float64 | None, dict[int, Grid]]:
    """Measures what the noise of a group costs: a step is looked for that makes about the noise allowed.

    Args:
        group: Constants that are measured together.
        trials: Makes and runs files.
        aim: In dB.
        form: Of the grids.
        twice: Whether a second step is measured: one grid may hit by chance what matters most.

    Returns:
        The noise of each output per squared error of the values, None if no such file runs; and the grids.
    """
    ratio, noise = aim + 8.0, None
    grids: dict[int, Grid] = {}
    for _ in range(4):
        grids = {item.position: grid_at(item, ratio, form) for item in group}
        noise = trials.noise(grids)
        largest = (math.inf if noise is None else float(noise.max(initial=0.0))) * 10.0 ** (aim / 10.0)
        if largest > 1.0:
            ratio += min(40.0, 10.0 * math.log10(largest) + 6.0)
        elif largest < 1e-4 and ratio > -10.0:
            ratio -= min(25.0, -10.0 * math.log10(max(largest, 1e-12)) - 20.0)
        else:
            break
    if noise is None:
        return None, grids
    cost: Float64 = noise / max(_squared_error(group, grids), 1e-300)
    if twice:
        halved = {
            item.position: replace(
                grids[item.position],
                step=max(grids[item.position].step / 2, finest(item.profile(), item.kind)),
            )
            for item in group
        }
        noise = trials.noise(halved)
        if noise is not None:
            cost = (cost + noise / max(_squared_error(group, halved), 1e-300)) / 2
    return cost, grids


def _squared_error(group: Sequence[Constant], grids: Mapping[int, Grid]) -> float:
    return sum(GridPayload.of(item, grids[item.position]).error().noise for item in group)


def _round(pairs: Sequence[_Pair], trials: Trials, clock: Clock, progress: Progress) -> None:
    """Rounds constants in some ways, and notes the noise of their values."""
    encodings = list(dict.fromkeys(option.form for _, option in pairs))
    choices: list[dict[int, Form]] = [
        {unit.position: encoding for unit, option in pairs if option.form == encoding}
        for encoding in encodings
    ]
    progress("rounding", 0, len(encodings))
    trials.prepare(choices)
    for number, (encoding, choice) in enumerate(zip(encodings, choices, strict=True)):
        progress("rounding", number, len(encodings))
        clock.check()
        rounded = trials.rounded(choice)
        taken = [
            (unit, option)
            for unit, option in pairs
            if option.form == encoding and unit.position in rounded.stored
        ]
        for unit, option in taken:
            option.wnoise = rounded.stored[unit.position].noise
            option.cost -= rounded.stored[unit.position].deflated
        if isinstance(encoding, Encoding) and taken:
            # What tensors and operators take is an estimate; the file as a whole tells by how much it is off.
            told = trials.kept_nbytes + sum(option.nbytes - unit.nbytes for unit, option in taken)
            off = (trials.laid_out(rounded.model) - told) / len(taken)
            for unit, option in taken:
                option.nbytes += off
                # Costs may be seconds by now.
                option.cost += off if trials.goal.objective is not Objective.LATENCY else 0.0
                trials.growth[unit.position, encoding.text] = option.nbytes - unit.nbytes


def _first(units: Sequence[Unit]) -> list[_Pair]:
    """Returns what to measure first: one encoding of each unit, of the largest ones first.

    None of the short ones that become float16 or stay, such as biases: a file for each would take more time
    than they are worth, and what others tell of their noise is next to nothing.
    """
    found = []
    for unit in _by_size(units):
        if unit.elements < _SHORT and all(_is_told(option.form) for option in unit.options[1:]):
            continue
        by_text = {str(option.form): option for option in unit.options[1:]}
        found.append((unit, next((by_text[text] for text in _FIRST if text in by_text), unit.options[-1])))
    return found


def _rest(units: Sequence[Unit], first: Sequence[_Pair]) -> list[_Pair]:
    """Returns all others, those of the largest units first."""
    taken = {id(option) for _, option in first}
    return [
        (unit, option) for unit in _by_size(units) for option in unit.options[1:] if id(option) not in taken
    ]


def _told_least(pairs: Sequence[_Pair]) -> list[_Pair]:
    """Returns what of them to measure: what others do not tell of, in order."""
    # Kernels that round activations too: of those nothing can be told without running them.
    hybrid = [pair for pair in pairs if not pair[1].only_weights]
    others = [(unit, option) for unit, option in pairs if option.only_weights and not _is_told(option.form)]
    return [*hybrid, *others]


def _by_size(units: Sequence[Unit]) -> list[Unit]:
    return sorted(units, key=lambda unit: (-unit.nbytes, unit.position))


def _narrow(
    units: Sequence[Unit], goal: Goal, costs: Mapping[int, float], kept: Collection[tuple[int, Form]]
) -> None:
    """Drops options that no assignment near the bound would take, before anything is rounded for them.

    A bit more of each element is worth 6 dB, which tells about how much noise each option makes from those
    that were measured. What is stored smaller than where a much looser bound is kept, or larger than where a
    much tighter one is, is not worth a look.

    Args:
        units: Changed in place; something was measured of each.
        goal: Nothing is dropped where it does not say which ratio is to be kept.
        costs: Of each option, by id, as expected before anything was rounded.
        kept: Options that stay.
    """
    if goal.min_snr is None or goal.max_error is not None or not goal.in_db:
        return
    told: dict[int, Unit] = {}
    for number, unit in enumerate(units):
        known = {
            _bits(option): option.noise
            for option in unit.options[1:]
            if option.only_weights and option.measured and option.noise is not None
            if option.noise.max(initial=0.0) < _TELLING
        }
        if known and all(_bits(option) for option in unit.options[1:]):
            options = [Option(option.form, option.nbytes, costs[id(option)]) for option in unit.options]
            for option in options[1:]:
                near = min(known, key=lambda each: abs(each - _bits(option)))
                option.noise = known[near] * 4.0 ** (near - _bits(option))
            options[0].noise = np.zeros_like(next(iter(known.values())))
            told[number] = replace(unit, options=options)
    ends = [cheapest(list(told.values()), ratio(goal.min_snr + more)) for more in (-_LOOSER, _TIGHTER)]
    for number, least, most in zip(told, *ends, strict=True):
        unit, options = units[number], told[number].options
        low, high = options[least].cost, options[most].cost
        unit.options[1:] = [
            option
            for option, item in zip(unit.options[1:], options[1:], strict=True)
            if option.measured
            or (unit.position, option.form) in kept
            or low - _OVERHEAD <= item.cost <= high + _OVERHEAD
        ]


def _bits(option: Option) -> float:
    """Returns about how many bits of an element make its noise; 0 where they do not tell."""
    form = option.form
    if not isinstance(form, Encoding):
        return 0.0
    if not form.form.is_integer:
        return _HALF_BITS
    return form.form.bits - (form.granularity is Granularity.TENSOR)


def _is_told(form: Form) -> bool:
    """Whether what was measured of others tells the noise of a form well, as it does where that is small."""
    if isinstance(form, Sparsity):
        return str(form) not in _SHARES
    return isinstance(form, Encoding) and form.form.bits > _FINE


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
