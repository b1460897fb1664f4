"""The integer form of an operator that keeps a state: its constants, its states and what lies between."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tfl_rewrite.integers.groups import LEAST_SCALE, Grid, Groups
from tfl_rewrite.integers.modes import kernel_of
from tfl_rewrite.kernels.integer import GATE_STEP, HIDDEN, NORM_STEP, Gate
from tfl_rewrite.kernels.operands import constant_values, input_of
from tfl_rewrite.kernels.table import row_of
from tfl_rewrite.model.ir import Operator

Float64 = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int8] | npt.NDArray[np.int16] | npt.NDArray[np.int32]

_LARGEST_BIAS = 2.0**30
_LARGEST_SUM = 2.0**30
_LEAST_STEP = 2.0**-60
"""Of a weight: its product with other scales is a normal float32 then."""

_LEAST_HIDDEN = 2.0**-10
_TYPES = {1: "INT8", 2: "INT16"}


class MemoryForm:
    """How one operator becomes integers.

    Args:
        operator: With float constants.
        given: The grid of what it reads.
        made: That of what it gives, and of the state that holds what it gave last.
        state: That of the state that it computes in.
        held: The largest size of what that state was seen to hold.
    """

    def __init__(self, operator: Operator, given: Grid, made: Grid, state: Grid, held: float) -> None:
        memory = kernel_of(operator).memory
        assert memory is not None
        self._operator = operator
        self._memory = memory
        self._given, self._made, self._state, self._held = given, made, state, held
        self._floats = {
            position: values.astype(np.float64).reshape(tensor.shape or ())
            for position in (*memory.weights, *memory.sums)
            if (tensor := input_of(operator, position)) is not None
            and (values := constant_values(tensor, "FLOAT32")) is not None
        }
        self._norms = {gate.bias: gate.norm for gate in memory.gates if gate.norm in self._floats}

    def overflows(self) -> bool:
        """Whether what the kernel sums up is more of its steps than int32 holds."""
        sizes = {position: np.abs(values) for position, values in self._floats.items()}
        given, made, state = (max(map(abs, grid.range)) for grid in (self._given, self._made, self._state))

        def most(position: int | None, factor: float) -> float:
            found = sizes.get(-1 if position is None else position)
            return 0.0 if found is None else float(found.reshape(len(found), -1).sum(axis=1).max()) * factor

        sums = [
            (most(at, factor) + most(gate.bias, 1.0)) / GATE_STEP
            for gate in self._memory.gates
            for at, factor in ((gate.inputs, given), (gate.outputs, made), (gate.cell, state))
            if not self._norms
        ]
        for bias, norm in self._norms.items():
            normalized = float(sizes[norm].max()) * math.sqrt(len(sizes[norm]))
            sums.append((normalized + most(bias, 1.0)) / GATE_STEP)
        if self._memory.gates:
            bias = next(at for at, (first, _) in self._memory.sums.items() if first == HIDDEN)
            sums.append((most(self._memory.projection, 1.0) + most(bias, 1.0) + 1.0) / self._made.scale)
        for bias, (first, second) in self._memory.sums.items():
            if first == self._memory.state:
                rank = max(1, self._operator.option("rank") or 1)
                sums.append((rank * most(second, state) + most(bias, 1.0)) / self._made.scale)
                sums += [most(at, given) / self._state.scale for at in self._memory.weights if at != second]
        return max(sums) > _LARGEST_SUM

    def hidden(self) -> Grid:
        """Returns the grid of what an LSTM projects: TANH of the cell state, by a gate of at most 1."""
        if self._memory.projection not in self._floats:
            return self._made
        return Grid(8, max(math.tanh(self._held), _LEAST_HIDDEN) / 127, 0)

    def states(self) -> dict[int, Grid]:
        """Returns the grids of its states, by position."""
        last = {} if self._memory.last is None else {self._memory.last: self._made}
        return {self._memory.state: self._state, **last}

    def intermediates(self) -> list[Grid]:
        """Returns the grids of what the kernel wants to be named: sums of the gates, and what is projected.

        Sums that are normalized may have any scale, so they have one that holds the largest there can be.
        The kernel knows that of others.
        """
        if not self._memory.intermediates:
            return []
        grids = []
        for gate in self._memory.gates:
            most = self.largest_sum(gate) if self._norms and gate.inputs in self._floats else 0.0
            step = most / ((1 << 15) - 1) if most else GATE_STEP
            grids.append(Grid(16, max(step, LEAST_SCALE), 0))
        return [*grids, self.hidden()]

    def largest_sum(self, gate: Gate) -> float:
        """Returns a bound of what a gate sums up, its bias apart."""
        factors = ((gate.inputs, self._given), (gate.outputs, self._made), (gate.cell, self._state))
        total: Float64 | float = 0.0
        for position, grid in factors:
            if position is not None and position in self._floats:
                sizes = np.abs(self._floats[position]).reshape(len(self._floats[position]), -1)
                total = total + sizes.sum(axis=1) * max(map(abs, grid.range))
        return float(np.max(total))

    def constants(
        self, known: Mapping[int, tuple[Integers, float]]
    ) -> dict[int, tuple[str, Integers, float]]:
        """Returns the type, the integers and the scale of each constant that there is, by position.

        Args:
            known: Integers and scales of weights that are rounded already; they keep them where they may.
        """
        steps = self._steps({position: scale for position, (_, scale) in known.items()})
        made: dict[int, tuple[str, Integers, float]] = {}
        for position, most in self._memory.weights.items():
            if position in self._floats:
                integers, scale = known.get(position, (self._floats[position], 1.0))
                integers = np.clip(np.rint(integers * (scale / steps[position])), -most, most)
                kind = np.int8 if most < 1 << 7 else np.int16
                made[position] = _TYPES[kind().itemsize], integers.astype(kind), steps[position]
        for position in self._memory.sums:
            if position in self._floats:
                integers = np.rint(self._floats[position] / steps[position])
                made[position] = "INT32", integers.astype(np.int32), steps[position]
        return made

    def _steps(self, known: Mapping[int, float]) -> dict[int, float]:
        """Returns the scales of constants, as float32 holds them."""
        steps: dict[int, float] = {
            row_of(self._operator).activation or 0: self._given.scale,
            self._memory.state: self._state.scale,
            HIDDEN: self.hidden().scale,
        }
        least = self._least(steps)
        for position, most in self._memory.weights.items():
            if position in self._floats:
                largest = float(np.abs(self._floats[position]).max()) or 1.0
                wanted = known.get(position, largest / most)
                step = max(wanted, least.get(position, 0.0), _LEAST_STEP)
                steps[position] = float(np.float32(step))
        for position, (first, second) in self._memory.sums.items():
            norm = self._norms.get(position)
            if position in self._floats:
                step = steps[first] * steps[second] if norm is None else steps[norm] * NORM_STEP
                steps[position] = float(np.float32(step))
        return steps

    def _least(self, steps: Mapping[int, float]) -> dict[int, float]:
        """Returns by position how coarse a weight must be at least, for its bias and its sums to fit."""
        least: dict[int, float] = {}
        for position, (first, second) in self._memory.sums.items():
            if second not in self._floats:
                continue
            bias = self._floats.get(position, np.zeros(1))
            largest, norm = float(np.abs(bias).max()), self._norms.get(position)
            if norm is not None:
                least[norm] = largest / _LARGEST_BIAS / NORM_STEP
                continue
            least[second] = largest / _LARGEST_BIAS / steps[first]
            if first == self._memory.state:
                weight = np.abs(self._floats[second])
                units = len(weight) // max(1, self._operator.option("rank") or 1)
                sums = weight.reshape(units, -1).sum(axis=1) * 2**15 + np.abs(bias) / steps[first]
                least[second] = max(least[second], float(sums.max()) / _LARGEST_SUM)
        return least


def narrow_weights(operator: Operator) -> list[int]:
    """Returns the positions of the int8 weights of an operator that keeps a state; none of another one."""
    memory = kernel_of(operator).memory
    weights = {} if memory is None else memory.weights
    return [at for at, most in weights.items() if most < 1 << 7 and input_of(operator, at) is not None]


def form_of(operator: Operator, groups: Groups) -> MemoryForm:
    """Returns how an operator that keeps a state becomes integers on the grids of its subgraph."""
    given = groups.given(operator, row_of(operator).activation or 0)
    output = operator.outputs[0]
    made = None if output is None else groups.made(output)
    assert made is not None
    return MemoryForm(operator, given, made, groups.state(operator), groups.held(operator))
