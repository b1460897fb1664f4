"""What there is to choose: for each constant, the encodings or grids that it can have and what each costs.

Grids have steps of 1, 1.25, 1.5 and 1.75 times a power of two, four in an octave. Deflated sizes are taken at
the powers of two and lie between on a straight line, as far as measured: there the third byte of a float32
would stop being zero once a value needs more than eight significant bits, which costs up to a bit a value. So
on the steps between, values keep eight significant bits; the largest of a constant are off by a little more
then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace

import numpy as np
import numpy.typing as npt

from tfl_rewrite.kernels.operators import Granularity, Reading
from tfl_rewrite.model.ir import Model
from tfl_rewrite.numerics import grids, knapsack
from tfl_rewrite.numerics.grids import KINDS, Rows, deflated, estimated
from tfl_rewrite.options.frozen import slotted
from tfl_rewrite.passes.prune import Prune, Sparsity, stored_nbytes, zeros_of
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.search.goals import Goal, Objective
from tfl_rewrite.weights.candidates import LEAST_ELEMENTS, Candidate
from tfl_rewrite.weights.codes import Code
from tfl_rewrite.weights.encoding import Encoding, Scheme
from tfl_rewrite.weights.grids import Choice as Grid
from tfl_rewrite.weights.grids import Constant
from tfl_rewrite.weights.scales import Magnitudes
from tfl_rewrite.weights.storage import COMPACT, Decision, forms

Form = Encoding | Grid | Sparsity | Code
Float64 = npt.NDArray[np.float64]

KEPT = Encoding.parse("float32")
_LEAST_SPARED = 0.05
"""Of a constant with a scale for each channel, what one scale must spare to be worth measuring."""

SMALL = (Objective.FILE, Objective.DOWNLOAD)

ENCODINGS = tuple(text for form in forms().values() for text in form.tried)
"""What is tried, where the file is to be small. Weights behind DEQUANTIZE leave activations alone, so their
noise is all there is; ``int8:channel`` takes the runtime's hybrid kernels, which saves an operator."""

HYBRID = tuple(text for form in forms().values() for text in form.tried_in_kernels)
"""What is tried besides, where memory or time count, for kernels that read such integers."""

SHARES = (0.05, 0.1, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.87, 0.93)
"""Of zeros, that are tried where weights are pruned."""

_SAMPLE = 1 << 13
"""Of each constant, what the deflated size on a grid is estimated from: as far as deflate looks back."""
_KEPT_SAMPLE = 1 << 17
_ESTIMATE_LEVEL = 6
_SPREADS = (0.0, 1.0)
_HEAD = 6
_COARSER, _FINER = 7, 5  # Octaves: how coarse a constant may be beyond its probe, and how fine.
_BETWEEN = (1.25, 1.5, 1.75)
_SHORT = 8
_FELT, _TOO_FEW = 36.0, 900.0  # Steps up to the largest value: eight bits are felt; they are too few.


@slotted(eq=False)
class Option:
    """One way to store a unit.

    Attributes:
        form: How: an encoding, or a grid that its values are rounded to.
        nbytes: In the file, with scales and operators.
        cost: What the objective counts; bytes for most.
        noise: Noise of each output relative to its signal if only this unit is stored so; None until it
            is measured.
        wnoise: Squared error of the values relative to their energy, for estimates.
    """

    form: Form
    nbytes: float
    cost: float
    noise: Float64 | None = None
    wnoise: float = 0.0
    measured: bool = False

    @property
    def only_weights(self) -> bool:
        """Whether the noise is that of the values alone, not of activations that a kernel rounds too."""
        if isinstance(self.form, (Grid, Sparsity, Code)):
            return True
        return self.form.scheme is Scheme.DEQUANTIZE or not self.form.form.is_integer


@slotted(eq=False)
class Unit:
    """A buffer that can be stored in several ways.

    Attributes:
        position: Of the buffer in the model.
        name: Of its first tensor.
        readers: Types of the operators that read it.
        elements: How many numbers it holds.
        options: As it is first, then others in order of size.
    """

    position: int
    name: str
    readers: tuple[str, ...]
    elements: int
    nbytes: int
    options: list[Option] = field(default_factory=list)

    @property
    def kept(self) -> Option:
        """As it is."""
        return self.options[0]


def cheapest(units: Sequence[Unit], allowed: float) -> list[int]:
    """Returns the index of an option for each unit: the least cost whose noises add up to what is allowed.

    Args:
        units: All of their options have a noise.
        allowed: Largest sum of noises, relative to the signal, for every output.
    """
    if not units:
        return []
    width = max(len(unit.options) for unit in units)
    first = units[0].kept.noise
    assert first is not None
    costs, noises = np.full((len(units), width), np.inf), np.zeros((len(units), width, first.size))
    for row, unit in enumerate(units):
        for column, option in enumerate(unit.options):
            assert option.noise is not None
            costs[row, column], noises[row, column] = option.cost, option.noise
    return knapsack.solve(costs, noises, allowed)


def encodings_for(goal: Goal) -> tuple[str, ...]:
    """Returns what to try: for time and memory nothing that is put together anew at each call.

    Each such constant alone may add less to a call than the clock tells; all of them take 4 to 6 x as long.
    """
    if goal.encodings is not None:
        return goal.encodings
    if goal.objective in SMALL:
        return ENCODINGS
    return tuple(text for text in (*ENCODINGS, *HYBRID) if not Encoding.parse(text).runs_each_call)


Choice = Mapping[int, Form]
"""Forms by position of the buffer; what is not there stays as it is."""


def encodings_of(choice: Choice) -> dict[int, Encoding]:
    """Returns what is stored in another form."""
    return {position: form for position, form in choice.items() if isinstance(form, Encoding)}


def grids_of(choice: Choice) -> dict[int, Grid]:
    """Returns what takes other values in the same form."""
    return {position: form for position, form in choice.items() if isinstance(form, Grid)}


def sparsities_of(choice: Choice) -> dict[int, Sparsity]:
    """Returns what has a share of zeros in the same form."""
    return {position: form for position, form in choice.items() if isinstance(form, Sparsity)}


def assigned(base: QuantizeWeights, encodings: Mapping[int, Encoding], model: Model) -> QuantizeWeights:
    """Returns the pass that stores the constants of a loaded model so."""
    by_buffer = {id(model.buffers[position]): encoding for position, encoding in encodings.items()}

    def of(item: Candidate) -> Encoding:
        return by_buffer.get(id(item.stored.buffer), KEPT)

    return replace(base, assignment=of, encoding=KEPT)


def base_pass(settings: QuantizeWeights, objective: Objective = Objective.FILE) -> QuantizeWeights:
    """Returns the user's pass, with all constants of some size in it, each of them read once."""
    least = LEAST_ELEMENTS if settings.min_elements is None else settings.min_elements
    # XNNPACK takes no layer whose weights a DENSIFY makes whole.
    settings = replace(settings, min_elements=least, may_be_sparse=objective in SMALL, compacted=True)
    return replace(settings, magnitudes=Magnitudes())


def find_units(
    load: Callable[[], Model], base: QuantizeWeights, encodings: Sequence[str], objective: Objective
) -> list[Unit]:
    """Finds the constants of a model and how each can be stored.

    Args:
        load: Gives the model anew.
        base: The pass; its encoding and assignment are not used.
        encodings: What to try.
        objective: What is to be small.
    """
    units: dict[int, Unit] = {}
    for text in encodings:
        wanted = Encoding.parse(text)
        if base.min_runtime < wanted.form.first_runtime:
            continue
        model = load()
        positions = {id(buffer): index for index, buffer in enumerate(model.buffers)}
        decisions, _ = replace(base, encoding=wanted, assignment=None, finer_few=False).plan(model).decide()
        groups: dict[int, list[Decision]] = {}
        for made in decisions:
            groups.setdefault(positions[id(made.item.stored.buffer)], []).append(made)
        for position, group in groups.items():
            if not all(_is(made, wanted) for made in group):
                continue
            first = group[0].item
            unit = units.get(position)
            if unit is None:
                nbytes = first.nbytes
                readers = tuple(dict.fromkeys(reader for made in group for reader in made.item.readers))
                unit = Unit(position, first.value.name or first.stored.name, readers, first.elements, nbytes)
                unit.options.append(Option(KEPT, nbytes, _kept_cost(unit, objective)))
                units[position] = unit
            taken = _nbytes(group)
            if taken < unit.nbytes and not _as_good_as_known(unit, wanted, taken):
                unit.options.append(Option(wanted, taken, _cost(group, taken, objective)))
    return [units[position] for position in sorted(units) if len(units[position].options) > 1]


def _as_good_as_known(unit: Unit, wanted: Encoding, nbytes: float) -> bool:
    """Whether one scale spares next to nothing beside what was found for a scale per channel."""
    if wanted.granularity is not Granularity.TENSOR:
        return False
    others = [
        option.nbytes
        for option in unit.options
        if isinstance(option.form, Encoding)
        and option.form.form == wanted.form
        and option.form.scheme is wanted.scheme
        and option.form.granularity is Granularity.CHANNEL
    ]
    return bool(others) and nbytes > (1 - _LEAST_SPARED) * min(others)


def _is(made: Decision, wanted: Encoding) -> bool:
    """Whether a decision is what was asked for, not what the pass fell back to."""
    if made.form.name != wanted.form.name or (made.form.block is None) != (wanted.block is None):
        return False
    if wanted.scheme is Scheme.DEQUANTIZE:
        return Reading.HYBRID not in made.readings
    return wanted.scheme is not Scheme.AUTO or not wanted.form.is_integer or Reading.HYBRID in made.readings


def _nbytes(group: Sequence[Decision]) -> float:
    distinct = {made.content: made for made in group}.values()
    # Equal zero points are written once; of a kernel's own weights the plan does not say how many share them.
    free = sum(made.form.zero_points_nbytes(made) for made in distinct if Reading.HYBRID in made.readings)
    return sum(made.nbytes for made in distinct) - free + COMPACT * sum(made.overhead for made in group)


def _kept_cost(unit: Unit, objective: Objective) -> float:
    if objective is Objective.RAM:
        return 4.0 * unit.elements
    return float(unit.nbytes)


def _cost(group: Sequence[Decision], nbytes: float, objective: Objective) -> float:
    if objective is not Objective.RAM:
        return nbytes
    # What DEQUANTIZE expands is in memory as float32 beside the mapped integers.
    return nbytes + sum(4.0 * made.item.elements for made in group if Reading.DEQUANTIZE in made.readings)


def ratio(snr: float) -> float:
    """Returns noise over signal of a ratio in dB."""
    return 0.0 if snr == math.inf else 10.0 ** (-snr / 10.0)


def grid_unit(item: Constant) -> Unit:
    """Returns a constant that can take other values, as it is at first; see :func:`grids_around`."""
    unit = Unit(item.position, item.where, item.readers, item.elements, item.blob.nbytes)
    unit.options.append(Option(KEPT, unit.nbytes, estimated(item.blob.view(), _KEPT_SAMPLE)))
    item.blob.release()
    return unit


def sparsity_unit(item: Constant, settings: Prune) -> Unit:
    """Returns a weight that can be pruned, as it is and with each share of zeros that is tried."""
    unit = grid_unit(item)
    zeros = zeros_of(item)
    for share in SHARES:
        if share > zeros:
            nbytes = stored_nbytes(item, share, settings)
            unit.options.append(Option(Sparsity(share), nbytes, nbytes))
    return unit


def grid_forms(item: Constant, *, by_channel: bool) -> list[Grid]:
    """Returns what the grids of a constant may look like apart from their step, which is 1 here."""
    if not by_channel:
        return [Grid(1.0)]
    if item.table:
        return [Grid(1.0), Grid(1.0, head=_HEAD)]
    may = item.rows.channels > 1 and item.rows.each >= 4 and item.kind is not KINDS["INT8"]
    return [Grid(1.0, spread) for spread in (_SPREADS if may else _SPREADS[:1])]


def grid_at(item: Constant, ratio: float, form: Grid) -> Grid:
    """Returns the power of two whose noise is expected at so many dB below the constant itself."""
    found = item.profile()
    power = float(found.power.sum()) / max(1, item.elements)
    step = math.sqrt(12.0 * power * 10.0 ** (-ratio / 10.0)) if power else 1.0
    coarsest = 4.0 * float(found.largest.max(initial=0.0)) or 1.0
    step = min(max(step, grids.finest(found, item.kind)), coarsest)
    return replace(form, step=2.0 ** round(math.log2(step)))


def grids_around(item: Constant, center: float, form: Grid) -> list[Option]:
    """Returns the grids around a center; ``wnoise`` of each is its squared error.

    Args:
        item: The constant.
        center: A power of two.
        form: What they look like apart from their step.
    """
    made: dict[Form, Option] = {}
    coarser: Option | None = None
    for octave in range(_COARSER, -_FINER - 1, -1):
        step = center * 2.0**octave
        grid = _grid(item, step, form)
        if coarser is not None and grid == coarser.form:
            break
        size, noise = _estimate(item, grid)
        finer = Option(grid, item.blob.nbytes, size, wnoise=noise)
        made.setdefault(grid, finer)
        for factor in _BETWEEN if coarser is not None else ():
            assert coarser is not None
            between = _between(item, _grid(item, step * factor, form), finer, coarser, math.log2(factor))
            if between is not None:
                made.setdefault(between.form, between)
        coarser = finer
    return list(made.values())


def _grid(item: Constant, step: float, form: Grid) -> Grid:
    """Returns a grid of that step, none finer than what counts as rounded."""
    return replace(form, step=max(step, grids.finest(item.profile(), item.kind)))


def _between(item: Constant, grid: Grid, finer: Option, coarser: Option, part: float) -> Option | None:
    """Returns a grid between two powers of two, part of the way; None where one of those does better."""
    if item.kind is KINDS["INT8"]:
        return None
    cost = (1 - part) * finer.cost + part * coarser.cost
    noise = finer.wnoise ** (1 - part) * coarser.wnoise**part
    if item.kind is KINDS["FLOAT32"]:
        levels = float(item.profile().largest.max(initial=0.0)) / grid.step
        if levels >= _TOO_FEW:
            return None
        if levels >= _FELT:
            grid = replace(grid, bits=_SHORT)
            noise = _estimate(item, grid, sized=False)[1]
    return Option(grid, item.blob.nbytes, cost, wnoise=noise)


def _sampled(item: Constant) -> tuple[int, int]:
    """Returns first channel and number of channels of what stands for the whole."""
    rows = item.rows
    if rows.elements <= _SAMPLE or rows.outer > 1 or rows.channels == 1:
        return 0, rows.channels
    count = max(1, _SAMPLE // rows.inner)
    return (rows.channels - count) // 2, min(count, rows.channels)


def _estimate(item: Constant, grid: Grid, *, sized: bool = True) -> tuple[float, float]:
    """Returns the deflated size (0 unless asked for) and the squared error of a constant on a grid."""
    first, count = _sampled(item)
    rows = item.rows
    # What the head of a table takes is next to nothing.
    steps = item.steps(replace(grid, head=0))
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

    error = grids.round_values(values, steps, rows, item.kind, emit, item.zero, bits=grid.bits)
    scale = item.elements / max(1, values.size)
    size = deflated(made.data, level=_ESTIMATE_LEVEL) if sized else 0
    return size * scale, error.noise * scale
