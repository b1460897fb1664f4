"""The least and the greatest value of every float tensor on real inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.calibration.collect import Observer
from tfl_rewrite.calibration.probe import Call, Probe
from tfl_rewrite.errors import UnsupportedError
from tfl_rewrite.files.source import Source
from tfl_rewrite.integers.modes import Range
from tfl_rewrite.integers.ranges import constant_range
from tfl_rewrite.kernels.operands import input_of
from tfl_rewrite.kernels.products import states_of
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.ir import Model, SubGraph, Tensor
from tfl_rewrite.numerics.products import States
from tfl_rewrite.weights.rounders import Simulate

HELD_NBYTES = 256 << 20
"""Of tensors that one run of the model keeps; it is run again for the rest."""


_Seen = dict[int, Range]
"""The range of one tensor in each call, by its number; of a constant, under -1."""


class Ranges(Observer[list[dict[int, _Seen]]]):
    """Looks at the ranges of all float tensors, once."""

    in_sequence = True

    def of(self, model: Model, *, without: Container[int] = ()) -> dict[int, Range]:
        """Returns the ranges of a model's float tensors, constants among them, by id.

        Args:
            model: With float weights; the same each time, or one like it.
            without: Numbers of calls that are left out.

        Returns:
            Those that no sample reaches are missing.

        Raises:
            UnsupportedError: The model does not run.
        """

        def look(_: Source, probe: Callable[[Simulate | None], Probe]) -> None:
            copy = probe(None)
            calls = copy.calls(self.steps)
            found: list[dict[int, _Seen]] = [
                {
                    at: {-1: held}
                    for at, item in enumerate(subgraph.tensors)
                    if (held := constant_range(item)) is not None
                }
                for subgraph in model.subgraphs
            ]
            for number in sorted({call.subgraph for call in calls}):
                found[number].update(_seen(copy, number, calls))
            self.found[0] = found

        if not self.found:
            self.observe(model, [0], look)
        if not self.found:
            raise UnsupportedError(
                self.reasons[0],
                remedy="check --inputs; 'tfl-rewrite doctor' tells what is wrong with a model",
            )
        return {
            id(tensor): hull(ranges)
            for subgraph, seen in zip(model.subgraphs, self.found[0], strict=True)
            for at, tensor in enumerate(subgraph.tensors)
            if (ranges := [each for call, each in seen.get(at, {}).items() if call not in without])
        }


def hull(ranges: Sequence[Range]) -> Range:
    """Returns the range that holds all of some."""
    lows, highs = zip(*ranges, strict=True)
    # Unlike min and max of Python, these keep a NaN, whichever side it is on.
    return float(np.min(lows)), float(np.max(highs))


def _seen(probe: Probe, number: int, calls: Sequence[Call]) -> dict[int, _Seen]:
    found: dict[int, _Seen] = {}
    subgraph = probe.model.subgraphs[number]
    memories = Memories(subgraph)
    for part in memoryfuls(float_tensors(subgraph)):
        runs = probe.values_of(number, [tensor for _, tensor in part], calls)
        for turn, (call, values) in enumerate(runs):
            first = not turn or not probe.in_sequence
            for (at, _), array in zip(part, values, strict=True):
                for held, numbers in ((at, array), *memories.run(at, array, first=first)):
                    if numbers.size:
                        found.setdefault(held, {})[call] = float(numbers.min()), float(numbers.max())
    return found


class Memories:
    """The states that operators of a subgraph compute in, which no call gives out.

    Args:
        subgraph: With float weights.
    """

    def __init__(self, subgraph: SubGraph) -> None:
        places = {id(tensor): at for at, tensor in enumerate(subgraph.tensors)}
        self._found: dict[int, list[tuple[int, States]]] = {}
        for operator in subgraph.operators:
            states, row = states_of(operator), row_of(operator)
            if states is None or row.integer is None or row.integer.memory is None:
                continue
            read, held = input_of(operator, row.activation), operator.inputs[row.integer.memory.state]
            self._found.setdefault(places[id(read)], []).append((places[id(held)], states))

    def run(self, at: int, array: npt.NDArray[Any], *, first: bool) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Yields what states take up where a tensor holds an array, by position.

        Args:
            at: Position of a tensor.
            array: What it holds in one call of the subgraph.
            first: Whether variables are as in a new interpreter.
        """
        for held, states in self._found.get(at, ()):
            yield held, states.run(array, first=first)


def float_tensors(subgraph: SubGraph) -> list[tuple[int, Tensor]]:
    """Returns the float inputs of a subgraph and what its operators give, with their positions."""
    wanted = {
        id(tensor) for operator in subgraph.operators for tensor in operator.outputs if tensor is not None
    }
    wanted |= set(map(id, subgraph.inputs))
    return [
        (at, tensor)
        for at, tensor in enumerate(subgraph.tensors)
        if id(tensor) in wanted and tensor.dtype == dtypes.FLOAT32.value and not tensor.is_variable
    ]


def widen(found: dict[int, Range], at: int, array: npt.NDArray[Any]) -> None:
    """Lets the range of a tensor hold an array, too."""
    if array.size:
        low, high = found.get(at, (math.inf, -math.inf))
        # Unlike min and max of Python, these keep a NaN, whichever side it is on.
        found[at] = float(np.minimum(low, array.min())), float(np.maximum(high, array.max()))


def memoryfuls(tensors: Sequence[tuple[int, Tensor]]) -> list[list[tuple[int, Tensor]]]:
    """Divides tensors into lists that fit into memory, each as long as may be."""
    parts: list[list[tuple[int, Tensor]]] = []
    held = HELD_NBYTES + 1
    for item in tensors:
        nbytes = 4 * item[1].elements
        if held + nbytes > HELD_NBYTES:
            parts.append([])
            held = 0
        parts[-1].append(item)
        held += nbytes
    return parts
