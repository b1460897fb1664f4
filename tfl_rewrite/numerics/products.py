"""How a weight is multiplied: its rows as a matrix, and the vectors of the activation that meet them.

A weight becomes ``[groups, rows, inner]``: each row is summed over ``inner`` with a vector of the activation,
and all rows of a group meet the same vectors. The activation becomes ``[groups, vectors, inner]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tfl_rewrite.numerics.symmetric import Float32

_GATHERED_ELEMENTS = 1 << 23
"""Elements of patches taken at once: 32 MB of float32."""


class Product(Protocol):
    """The geometry of one weighted operator."""

    @property
    def groups(self) -> int:
        """Number of groups."""

    @property
    def inner(self) -> int:
        """Length of the vectors."""

    def matrix(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns the weight as ``[groups, rows, inner]``; a view where possible."""

    def weight(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turns such a matrix back into the shape of the weight."""

    def vectors(self, activation: Float32, limit: int, stream: np.random.Generator) -> Float32:
        """Returns at most ``limit`` vectors of an activation, drawn at random where there are more.

        Raises:
            ValueError: The activation is not one that the weight can be multiplied with.
        """


@dataclass(frozen=True, slots=True)
class Dense:
    """FULLY_CONNECTED: weight ``[outputs, inputs]``."""

    shape: tuple[int, ...]

    @property
    def groups(self) -> int:
        """One."""
        return 1

    @property
    def inner(self) -> int:
        """Inputs."""
        return self.shape[-1]

    def matrix(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns ``[1, outputs, inputs]``."""
        return weight.reshape(1, -1, self.inner)

    def weight(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turns it back."""
        return matrix.reshape(self.shape)

    def vectors(self, activation: Float32, limit: int, stream: np.random.Generator) -> Float32:
        """Returns ``[1, vectors, inputs]``."""
        rows = activation.reshape(-1, self.inner)
        return rows[_chosen(len(rows), limit, stream)][None]


@dataclass(frozen=True, slots=True)
class BatchMatmul:
    """BATCH_MATMUL with a constant right side, ``[..., inner, outputs]`` or, transposed, the other way."""

    shape: tuple[int, ...]
    adj_x: bool
    adj_y: bool

    @property
    def groups(self) -> int:
        """Matrices of the right side."""
        return math.prod(self.shape[:-2])

    @property
    def inner(self) -> int:
        """Length of the sums."""
        return self.shape[-1] if self.adj_y else self.shape[-2]

    def matrix(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns ``[groups, outputs, inner]``."""
        stacked = weight.reshape(-1, *self.shape[-2:])
        return stacked if self.adj_y else stacked.swapaxes(1, 2)

    def weight(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turns it back."""
        return np.ascontiguousarray(matrix if self.adj_y else matrix.swapaxes(1, 2)).reshape(self.shape)

    def vectors(self, activation: Float32, limit: int, stream: np.random.Generator) -> Float32:
        """Returns ``[groups, vectors, inner]``."""
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


@dataclass(frozen=True, slots=True)
class Window:
    """Where the windows of a convolution lie: ``(height, width)`` each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    same: bool

    def gather(self, activation: Float32, limit: int, stream: np.random.Generator) -> Float32:
        """Returns ``[vectors, height, width, channels]``, padded with zeros as the kernels pad.

        Args:
            activation: ``[batch, height, width, channels]``.
            limit: How many vectors at most.
            stream: To draw them with.
        """
        batch, *sides, channels = activation.shape
        before, after, counts = [], [], []
        for size, kernel, stride, dilation in zip(
            sides, self.kernel, self.stride, self.dilation, strict=True
        ):
            reach = (kernel - 1) * dilation + 1
            count = -(-size // stride) if self.same else max(0, -(-(size - reach + 1) // stride))
            total = max((count - 1) * stride + reach - size, 0) if self.same else 0
            before.append(total // 2)
            after.append(total - total // 2)
            counts.append(count)
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
class Convolution:
    """CONV_2D: weight ``[outputs, height, width, inputs of a group]``."""

    shape: tuple[int, ...]
    groups: int
    window: Window

    @property
    def inner(self) -> int:
        """Taps times inputs of a group."""
        return math.prod(self.shape[1:])

    def matrix(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns ``[groups, outputs of a group, inner]``."""
        return weight.reshape(self.groups, -1, self.inner)

    def weight(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turns it back."""
        return matrix.reshape(self.shape)

    def vectors(self, activation: Float32, limit: int, stream: np.random.Generator) -> Float32:
        """Returns ``[groups, vectors, inner]``."""
        found = self.window.gather(activation, limit, stream)
        _check(found, self.groups * self.shape[3])
        if self.groups == 1:
            return found.reshape(1, len(found), self.inner)
        split = found.reshape(*found.shape[:3], self.groups, -1)
        return np.ascontiguousarray(split.transpose(3, 0, 1, 2, 4)).reshape(
            self.groups, len(found), self.inner
        )


@dataclass(frozen=True, slots=True)
class Depthwise:
    """DEPTHWISE_CONV_2D: weight ``[1, height, width, inputs * multiplier]``; a group an input channel."""

    shape: tuple[int, ...]
    multiplier: int
    window: Window

    @property
    def groups(self) -> int:
        """Input channels."""
        return self.shape[3] // self.multiplier

    @property
    def inner(self) -> int:
        """Taps."""
        return self.shape[1] * self.shape[2]

    def matrix(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns ``[inputs, multiplier, taps]``."""
        found: npt.NDArray[Any] = weight.reshape(self.inner, self.groups, self.multiplier).transpose(1, 2, 0)
        return found

    def weight(self, matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turns it back."""
        return np.ascontiguousarray(matrix.transpose(2, 0, 1)).reshape(self.shape)

    def vectors(self, activation: Float32, limit: int, stream: np.random.Generator) -> Float32:
        """Returns ``[inputs, vectors, taps]``."""
        found = self.window.gather(activation, limit, stream)
        _check(found, self.groups)
        flat = found.reshape(len(found), self.inner, self.groups)
        return np.ascontiguousarray(flat.transpose(2, 0, 1))


def _check(found: Float32, channels: int) -> None:
    if found.shape[-1] != channels:
        raise ValueError(f"its activation has {found.shape[-1]} channels, not {channels}")


def _chosen(count: int, limit: int, stream: np.random.Generator) -> npt.NDArray[np.int64]:
    if count <= limit:
        return np.arange(count)
    return np.sort(stream.choice(count, limit, replace=False))
