"""How operators compute, on arrays: what a weight is multiplied with, and what recurrent states hold.

A weight becomes ``[groups, rows, inner]``: each row is summed over ``inner`` with a vector of the activation,
and all rows of a group meet the same vectors. The activation becomes ``[groups, vectors, inner]``.

A state is a variable of the runtime, which is to be read behind the last step of a call alone; a scale must
hold what it was at any of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.numerics.symmetric import Float32
from tfl_rewrite.options.frozen import frozen

_GATHERED_ELEMENTS = 1 << 23
"""Elements of patches taken at once: 32 MB of float32."""

_Sides = tuple[int, int, int]


@frozen
class Product(ABC):
    """The geometry of one weighted operator, for a weight of some shape."""

    shape: tuple[int, ...]

    @property
    @abstractmethod
    def layout(self) -> tuple[_Sides, _Sides]:
        """Three sides that a weight is cut into, and which of them are groups, rows and ``inner``."""

    @property
    def groups(self) -> int:
        """Number of groups."""
        sides, order = self.layout
        return sides[order[0]]

    @property
    def inner(self) -> int:
        """Length of the vectors."""
        sides, order = self.layout
        return sides[order[2]]

    def matrix(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns the weight as ``[groups, rows, inner]``; a view where possible."""
        sides, order = self.layout
        cut: npt.NDArray[Any] = weight.reshape(sides).transpose(order)
        return cut

    def weight(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turns such a matrix back into the shape of the weight."""
        back = np.argsort(self.layout[1])
        whole: npt.NDArray[Any] = np.ascontiguousarray(matrix.transpose(back)).reshape(self.shape)
        return whole

    def takes_blocks(self, block: int, parts: int = 1) -> bool:
        """Whether so many neighbours along the weight's last axis are neighbours in a row of the matrix.

        Args:
            block: Of neighbours; each row of the last axis is a whole number of them.
            parts: Into how many parts each vector is cut.
        """
        return self.layout[1] == (0, 1, 2) and not self.shape[-1] % block and not self.inner // parts % block

    @abstractmethod
    def vectors(self, activation: Float32, limit: int, stream: np.random.Generator) -> Float32:
        """Returns at most ``limit`` vectors of an activation, drawn at random where there are more.

        Raises:
            ValueError: The activation is not one that the weight can be multiplied with.
        """


@dataclass(frozen=True, slots=True)
class Dense(Product):
    """FULLY_CONNECTED: weight ``[outputs, inputs]``."""

    @property
    def layout(self) -> tuple[_Sides, _Sides]:
        """One group."""
        return (1, math.prod(self.shape[:-1]), self.shape[-1]), (0, 1, 2)

    def vectors(self, activation: Float32, limit: int, stream: np.random.Generator) -> Float32:
        """Rows of inputs."""
        rows = activation.reshape(-1, self.inner)
        return rows[_chosen(len(rows), limit, stream)][None]


@dataclass(frozen=True, slots=True)
class BatchMatmul(Product):
    """BATCH_MATMUL with a constant right side, ``[..., inner, outputs]`` or, transposed, the other way."""

    adj_x: bool
    adj_y: bool

    @property
    def layout(self) -> tuple[_Sides, _Sides]:
        """A group for each matrix of the right side."""
        *stacked, first, second = self.shape
        return (math.prod(stacked), first, second), (0, 1, 2) if self.adj_y else (0, 2, 1)

    def vectors(self, activation: Float32, limit: int, stream: np.random.Generator) -> Float32:
        """Rows of the left side."""
        left = activation.swapaxes(-1, -2) if self.adj_x else activation
        if self.groups == 1:
            rows = left.reshape(1, -1, self.inner)
        elif left.shape[:-2] == self.shape[:-2]:
            rows = left.reshape(self.groups, -1, self.inner)
        else:
            # Each matrix of the right side meets every matrix of the left one that is broadcast to it.
            wide = np.broadcast_shapes(left.shape[:-2], self.shape[:-2])
            own = np.broadcast_to(np.arange(self.groups).reshape(self.shape[:-2]), wide).reshape(-1)
            spread = np.broadcast_to(left, (*wide, *left.shape[-2:])).reshape(len(own), -1, self.inner)
            order = np.argsort(own, kind="stable")
            rows = spread[order].reshape(self.groups, -1, self.inner)
        return np.ascontiguousarray(rows[:, _chosen(rows.shape[1], limit, stream)])


def same_padding(size: int, reach: int, stride: int) -> tuple[int, int]:
    """Returns how many zeros SAME adds before and behind an axis.

    ``ComputePaddingWithOffset`` of ``tflite/kernels/padding.h``: the output has ceil(size / stride) places.

    Args:
        size: Of the axis.
        reach: Of the window from its first to its last element, dilated.
        stride: From one window to the next.
    """
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


@frozen
class Window:
    """Where the windows of a convolution lie: ``(height, width)`` each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    same: bool

    def gather(self, activation: Float32, wanted: int, limit: int, stream: np.random.Generator) -> Float32:
        """Returns ``[vectors, height, width, channels]``, padded with zeros as the kernels pad.

        Args:
            activation: ``[batch, height, width, channels]``.
            wanted: How many channels it must have.
            limit: How many vectors at most.
            stream: To draw them with.

        Raises:
            ValueError: It has another number of channels.
        """
        batch, *sides, channels = activation.shape
        before, after, counts = [], [], []
        for size, kernel, stride, dilation in zip(
            sides, self.kernel, self.stride, self.dilation, strict=True
        ):
            reach = (kernel - 1) * dilation + 1
            padding = same_padding(size, reach, stride) if self.same else (0, 0)
            before.append(padding[0])
            after.append(padding[1])
            counts.append(max(0, -(-(size + sum(padding) - reach + 1) // stride)))
        if channels != wanted:
            raise ValueError(f"its activation has {channels} channels, not {wanted}")
        limit = min(limit, max(1, _GATHERED_ELEMENTS // max(1, math.prod(self.kernel) * channels)))
        picked = _chosen(batch * counts[0] * counts[1], limit, stream)
        image, rest = np.divmod(picked, max(1, counts[0] * counts[1]))
        top, left = np.divmod(rest, max(1, counts[1]))
        padded = np.pad(activation, ((0, 0), (before[0], after[0]), (before[1], after[1]), (0, 0)))
        rows = (top * self.stride[0])[:, None] + np.arange(self.kernel[0]) * self.dilation[0]
        columns = (left * self.stride[1])[:, None] + np.arange(self.kernel[1]) * self.dilation[1]
        found: Float32 = padded[image[:, None, None], rows[:, :, None], columns[:, None, :]]
        return found


@dataclass(frozen=True, slots=True)
class Convolution(Product):
    """CONV_2D: weight ``[outputs, height, width, inputs of a group]``."""

    split: int
    window: Window

    @property
    def layout(self) -> tuple[_Sides, _Sides]:
        """As many groups as it is split into."""
        return (self.split, self.shape[0] // self.split, math.prod(self.shape[1:])), (0, 1, 2)

    def vectors(self, activation: Float32, limit: int, stream: np.random.Generator) -> Float32:
        """Windows of the inputs of each group."""
        found = self.window.gather(activation, self.split * self.shape[3], limit, stream)
        by_group = found.reshape(*found.shape[:3], self.split, -1).transpose(3, 0, 1, 2, 4)
        return np.ascontiguousarray(by_group).reshape(self.split, len(found), self.inner)


@dataclass(frozen=True, slots=True)
class Depthwise(Product):
    """DEPTHWISE_CONV_2D: weight ``[1, height, width, inputs * multiplier]``; a group an input channel."""

    multiplier: int
    window: Window

    @property
    def layout(self) -> tuple[_Sides, _Sides]:
        """A group for each input, a row for each of its outputs."""
        _, height, width, outputs = self.shape
        return (height * width, outputs // self.multiplier, self.multiplier), (1, 2, 0)

    def vectors(self, activation: Float32, limit: int, stream: np.random.Generator) -> Float32:
        """Windows of each input."""
        found = self.window.gather(activation, self.groups, limit, stream)
        flat = found.reshape(len(found), self.inner, self.groups)
        return np.ascontiguousarray(flat.transpose(2, 0, 1))


def _chosen(count: int, limit: int, stream: np.random.Generator) -> npt.NDArray[np.int64]:
    if count <= limit:
        return np.arange(count)
    return np.sort(stream.choice(count, limit, replace=False))


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


@frozen
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
