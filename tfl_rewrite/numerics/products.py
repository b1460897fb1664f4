"""How a weight is multiplied: its rows as a matrix, and the vectors of the activation that meet them.

A weight becomes ``[groups, rows, inner]``: each row is summed over ``inner`` with a vector of the activation,
and all rows of a group meet the same vectors. The activation becomes ``[groups, vectors, inner]``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfl_rewrite.numerics.symmetric import Float32

_GATHERED_ELEMENTS = 1 << 23
"""Elements of patches taken at once: 32 MB of float32."""

_Sides = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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
