"""What the states of recurrent operators hold, step by step: their float kernels once more, on arrays.

A state is a variable of the runtime, which is to be read behind the last step of a call alone; a scale must
hold what it was at any of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tfl_rewrite.numerics.symmetric import Float32

_EPSILON = 1e-8
"""Added to the variance of sums that are normalized (``tflite/kernels/internal/tensor_utils.cc``)."""


class States(ABC):
    """Follows one state of an operator."""

    @abstractmethod
    def run(self, activation: Float32, *, first: bool) -> Float32:
        """Goes through one call of the operator; returns what the state takes up in it, step by step.

        Args:
            activation: What the operator reads.
            first: Whether the state is zero before it; otherwise it is what the call before left.
        """


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate of an LSTM: its weights ``[units, inputs]`` and ``[units, outputs]``, and vectors of units.

    Attributes:
        cell: Weights for the cell state; None where the gate does not see it.
        norm: What normalized sums are multiplied with; None where they are not normalized.
    """

    inputs: Float32
    outputs: Float32
    bias: Float32
    cell: Float32 | None = None
    norm: Float32 | None = None

    def sums(self, inputs: Float32, outputs: Float32, cell: Float32) -> Float32:
        """Returns what the gate gives before its activation function, ``[batch, units]``."""
        made: Float32 = inputs @ self.inputs.T + outputs @ self.outputs.T
        if self.cell is not None:
            made = made + self.cell * cell
        if self.norm is not None:
            centred = made - made.mean(axis=-1, keepdims=True)
            variance = np.square(centred).mean(axis=-1, keepdims=True)
            made = self.norm * centred / np.sqrt(variance + np.float32(_EPSILON))
        return made + self.bias


@dataclass(slots=True)
class Cell(States):
    """The cell state of an LSTM with TANH.

    Attributes:
        gates: Input (None where it is one less the forget gate), forget, cell, output.
        projection: ``[outputs, units]``, between the cell and the output; None for none.
        bias: Of the projection.
        clips: Bounds of the cell state and of what is projected; 0 for none.
        steps_first: Whether three axes are ``[steps, batch, inputs]``, not the batch first; two are one step.
    """

    gates: Sequence[Gate | None]
    projection: Float32 | None
    bias: Float32 | None
    clips: tuple[float, float]
    steps_first: bool
    _held: tuple[Float32, Float32] | None = None

    def run(self, activation: Float32, *, first: bool) -> Float32:
        """Returns ``[steps, batch, units]``; nothing where the activation does not fit the weights."""
        steps = activation[None] if activation.ndim == 2 else activation
        if activation.ndim == 3 and not self.steps_first:
            steps = steps.swapaxes(0, 1)
        forget = self.gates[1]
        assert forget is not None
        if steps.ndim != 3 or steps.shape[2] != forget.inputs.shape[1]:
            return np.zeros((0, 0, 0), np.float32)
        units, width = forget.outputs.shape
        batch = steps.shape[1]
        if first or self._held is None or len(self._held[0]) != batch:
            self._held = np.zeros((batch, width), np.float32), np.zeros((batch, units), np.float32)
        cells = np.empty((len(steps), batch, units), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for step, inputs in enumerate(steps):
                self._held = self._next(inputs, *self._held)
                cells[step] = self._held[1]
        return cells

    def _next(self, inputs: Float32, outputs: Float32, cell: Float32) -> tuple[Float32, Float32]:
        of_input, of_forget, of_cell, of_output = self.gates
        assert of_forget is not None and of_cell is not None and of_output is not None
        forget = _squashed(of_forget.sums(inputs, outputs, cell))
        taken = 1 - forget if of_input is None else _squashed(of_input.sums(inputs, outputs, cell))
        made = forget * cell + taken * np.tanh(of_cell.sums(inputs, outputs, cell))
        made = _clipped(made, self.clips[0])
        given = _squashed(of_output.sums(inputs, outputs, made)) * np.tanh(made)
        if self.projection is not None:
            given = given @ self.projection.T + (0 if self.bias is None else self.bias)
            given = _clipped(given, self.clips[1])
        return given, made


@dataclass(slots=True)
class Filtered(States):
    """The state of SVDF: what its filters ``[filters, inputs]`` made of the inputs of some calls."""

    weights: Float32

    def run(self, activation: Float32, *, first: bool) -> Float32:
        """Returns ``[batch, filters]``, which joins what is there already; nothing for other sides."""
        if activation.ndim != 2 or activation.shape[1] != self.weights.shape[1]:
            return np.zeros((0, 0), np.float32)
        made: Float32 = activation @ self.weights.T
        return made


def _squashed(sums: Float32) -> Float32:
    return np.asarray(1 / (1 + np.exp(-sums)), np.float32)


def _clipped(values: Float32, bound: float) -> Float32:
    return np.clip(values, -bound, bound) if bound > 0 else values
