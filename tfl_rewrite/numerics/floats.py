"""Constants as the float32 values that they mean, read a part at a time.

The arithmetic is that of the kernels: integers less their zero point become float32 and are multiplied by a
float32 scale (``tflite/kernels/internal/reference/integer_ops/dequantize.h``), so the values are those that
the runtime computes, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import Blob, ComputedBlob
from tfl_rewrite.model.ir import Tensor
from tfl_rewrite.model.packing import unpack
from tfl_rewrite.numerics.symmetric import BLOCK_ELEMENTS, Channels, Float32


def constant_values(tensor: Tensor, *types: str) -> npt.NDArray[Any] | None:
    """Returns the elements of a constant, flat and not copied; None where they are not in the file as such.

    Args:
        tensor: The constant.
        types: Those that it may have, none of them packed.
    """
    row, blob = dtypes.BY_VALUE.get(tensor.dtype), tensor.buffer.blob
    if row is None or row.name not in types or blob is None:
        return None
    if tensor.is_sparse or tensor.external is not None:
        return None
    return np.frombuffer(blob.view(), row.numpy) if blob.nbytes == row.nbytes(tensor.elements) else None


class Floats(Protocol):
    """Values that can be read in any part.

    Attributes:
        shape: Dimensions.
        key: Equal for two that have the same values by construction.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""

    @property
    def key(self) -> Hashable:
        """Equal for two that have the same values by construction."""

    def read(self, start: int, stop: int) -> Float32:
        """Returns flat values, row-major."""


@dataclass(frozen=True, slots=True, eq=False)
class Integers:
    """Integers times scales.

    Attributes:
        shape: Dimensions.
        source: The packed integers.
        bits: Of an element: 8, 4 or 2.
        signed: Whether they are two's complement.
        channels: How they fall into groups with a scale each.
        scale: Float32 ``[channels]``.
        zero: Int64 ``[channels]``: zero points.
    """

    shape: tuple[int, ...]
    source: Blob
    bits: int
    signed: bool
    channels: Channels
    scale: Float32
    zero: np.ndarray[tuple[int], np.dtype[np.int64]]

    @classmethod
    def of(
        cls,
        dtype: str,
        shape: tuple[int, ...],
        source: Blob,
        channels: Channels,
        scale: Float32,
        zero: np.ndarray[tuple[int], np.dtype[np.int64]],
    ) -> Integers:
        """Takes bits and sign from the name of a type in ``TensorType``."""
        bits, signed = dtypes.BY_NAME[dtype].bits, not dtype.startswith("U")
        return cls(shape, source, bits, signed, channels, scale, zero)

    @property
    def key(self) -> Hashable:
        """The bytes and the scales."""
        content = (self.source.identity, self.bits, self.signed, self.channels)
        return (*content, self.scale.tobytes(), self.zero.tobytes())

    def read(self, start: int, stop: int) -> Float32:
        """Unpacks and multiplies."""
        each = 8 // self.bits
        first = start - start % each
        data = self.source.view()[first // each : -(-stop // each)]
        if self.signed:
            raw = unpack(data, self.bits, stop - first)[start - first :].astype(np.int32)
        else:
            raw = np.frombuffer(data, np.uint8)[start - first : stop - first].astype(np.int32)
        if self.channels.channels == 1:
            made: Float32 = (raw - np.int32(self.zero[0])).astype(np.float32) * self.scale[0]
            return made
        which = np.arange(start, stop) // self.channels.inner % self.channels.channels
        # As the kernel does it: what leaves the range becomes infinite.
        with np.errstate(over="ignore", invalid="ignore"):
            made = (raw - self.zero[which].astype(np.int32)).astype(np.float32) * self.scale[which]
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Halves:
    """Float16 values; each is a float32 too."""

    shape: tuple[int, ...]
    source: Blob

    @property
    def key(self) -> Hashable:
        """The bytes."""
        return ("half", self.source.identity)

    def read(self, start: int, stop: int) -> Float32:
        """Widens."""
        made: Float32 = np.frombuffer(self.source.view()[2 * start : 2 * stop], "<f2").astype(np.float32)
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """Each row of a matrix times a factor of its own, or all times one."""

    left: Floats
    factors: Floats

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the matrix."""
        return self.left.shape

    @property
    def key(self) -> Hashable:
        """Those of both."""
        return ("product", self.left.key, self.factors.key)

    def read(self, start: int, stop: int) -> Float32:
        """Multiplies."""
        count = math.prod(self.factors.shape)
        row = math.prod(self.shape) // count
        first = start // row
        factors = self.factors.read(first, -(-stop // row))
        made: Float32 = self.left.read(start, stop) * factors[np.arange(start, stop) // row - first]
        return made

    @classmethod
    def of(cls, one: Floats, two: Floats) -> Product | None:
        """Returns the product of two constants; None where its form is another."""
        for left, factors in ((one, two), (two, one)):
            by_row = len(left.shape) == 2 and factors.shape == (left.shape[0], 1)
            if by_row or math.prod(factors.shape) == 1:
                return cls(left, factors)
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """The sum of two constants of the same shape."""

    left: Floats
    right: Floats

    @property
    def shape(self) -> tuple[int, ...]:
        """That of both."""
        return self.left.shape

    @property
    def key(self) -> Hashable:
        """Those of both."""
        return ("sum", self.left.key, self.right.key)

    def read(self, start: int, stop: int) -> Float32:
        """Adds."""
        with np.errstate(over="ignore", invalid="ignore"):
            made: Float32 = self.left.read(start, stop) + self.right.read(start, stop)
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Reshaped:
    """The same values in another shape."""

    inner: Floats
    shape: tuple[int, ...] = field()

    @property
    def key(self) -> Hashable:
        """That of the values."""
        return self.inner.key

    def read(self, start: int, stop: int) -> Float32:
        """Reads them."""
        return self.inner.read(start, stop)


def float_blob(values: Floats) -> ComputedBlob:
    """Returns the values as float32 bytes that are made while they are written."""
    elements = math.prod(values.shape)

    def write_to(sink: Sink, offset: int) -> None:
        for start in range(0, elements, BLOCK_ELEMENTS):
            part = values.read(start, min(elements, start + BLOCK_ELEMENTS))
            sink.write_at(part.astype("<f4").data, offset + 4 * start)

    return ComputedBlob(4 * elements, write_to)
