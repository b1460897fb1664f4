"""What there is to choose: for each constant, the encodings that it can have and what each costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from tfl_rewrite.kernels.operators import Granularity, Reading
from tfl_rewrite.model.ir import Model
from tfl_rewrite.passes.quantize_weights import QuantizeWeights
from tfl_rewrite.search.goals import Objective
from tfl_rewrite.weights.candidates import Candidate
from tfl_rewrite.weights.encoding import Decision, Encoding, Scheme, forms
from tfl_rewrite.weights.plan import WeightPlan

Float64 = npt.NDArray[np.float64]

KEPT = Encoding.parse("float32")
_LEAST_SPARED = 0.05
"""Of a constant with a scale for each channel, what one scale must spare to be worth measuring."""

LEAST_ELEMENTS = 64
"""Smaller constants stay: a DEQUANTIZE of their own would cost more than they."""

ENCODINGS = tuple(text for form in forms().values() for text in form.tried)
"""What is tried, where the file is to be small. Weights behind DEQUANTIZE leave activations alone, so their
noise is all there is; ``int8:channel`` takes the runtime's hybrid kernels, which saves an operator."""

HYBRID = tuple(text for form in forms().values() for text in form.tried_in_kernels)
"""What is tried besides, where memory or time count, for kernels that read such integers."""


@dataclass(slots=True, eq=False)
class Option:
    """One way to store a unit.

    Attributes:
        encoding: How.
        nbytes: In the file, with scales and operators.
        cost: What the objective counts; bytes for most.
        noise: Noise of each output relative to its signal if only this unit is stored so; None until it
            is measured.
        wnoise: Squared error of the values relative to their energy, for estimates.
    """

    encoding: Encoding
    nbytes: float
    cost: float
    noise: Float64 | None = None
    wnoise: float = 0.0
    measured: bool = False

    @property
    def only_weights(self) -> bool:
        """Whether the noise is that of the values alone, not of activations that a kernel rounds too."""
        return self.encoding.scheme is Scheme.DEQUANTIZE or not self.encoding.form.is_integer


@dataclass(slots=True, eq=False)
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


def encodings_for(objective: Objective) -> tuple[str, ...]:
    """Returns what to try."""
    return ENCODINGS if objective in (Objective.FILE, Objective.DOWNLOAD) else (*ENCODINGS, *HYBRID)


Choice = Mapping[int, Encoding]
"""Encodings by position of the buffer; what is not there stays as it is."""


def assigned(base: QuantizeWeights, choice: Choice, model: Model) -> QuantizeWeights:
    """Returns the pass that stores the constants of a loaded model so."""
    by_buffer = {id(model.buffers[position]): encoding for position, encoding in choice.items()}

    def of(item: Candidate) -> Encoding:
        return by_buffer.get(id(item.stored.buffer), KEPT)

    return replace(base, assignment=of, encoding=KEPT)


def base_pass(settings: QuantizeWeights) -> QuantizeWeights:
    """Returns the user's pass, with all constants of some size in it."""
    return replace(settings, min_elements=LEAST_ELEMENTS) if settings.min_elements is None else settings


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
        model = load()
        positions = {id(buffer): index for index, buffer in enumerate(model.buffers)}
        decisions, _ = WeightPlan(replace(base, encoding=wanted, assignment=None), model).decide()
        groups: dict[int, list[Decision]] = {}
        for made in decisions:
            groups.setdefault(positions[id(made.item.stored.buffer)], []).append(made)
        for position, group in groups.items():
            if not all(_is(made, wanted) for made in group):
                continue
            first = group[0].item
            unit = units.get(position)
            if unit is None:
                nbytes = first.stored.buffer.nbytes
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
        if option.encoding.form == wanted.form
        and option.encoding.scheme is wanted.scheme
        and option.encoding.granularity is Granularity.CHANNEL
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
    # Zero points are the same for all constants with as many scales, and nearly all have such others.
    return sum(made.nbytes - made.form.zero_points_nbytes(made) for made in distinct) + sum(
        made.overhead for made in group
    )


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
