"""Symmetric int8 quantization in cache-sized blocks; and what integers of a file mean, as floats.

Narrow range [-127, 127], zero point 0, scale = max|w| / 127: what the runtime's hybrid kernels expect
(``tflite/g3doc/performance/quantization_spec.md``). A constant of any size is gone through in blocks of a
few hundred kilobytes, once for the scales and once while the integers are written, so memory stays flat.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from tfl_rewrite.flatbuf.record import Sink
from tfl_rewrite.model import dtypes
from tfl_rewrite.model.blob import Blob, ComputedBlob
from tfl_rewrite.model.ir import Tensor
from tfl_rewrite.model.values import unpack
from tfl_rewrite.options.frozen import frozen, slotted

LEVELS = 127
"""Largest magnitude of the narrow range."""

BLOCK_ELEMENTS = 1 << 16
"""Elements per block: with float32 temporaries, three blocks fit in a level-2 cache."""

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""XNNPACK refuses scales that are zero or subnormal (``xnn_define_quantized_tensor_value``)."""

LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(LEVELS), np.float32(0))
"""A hair more, and the largest level times the scale is no float32 any more."""

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]
Item = TypeVar("Item", bound=np.generic)
Integers = npt.NDArray[np.int8 | np.int16]
"""Of int16 where a form holds more than eight bits."""


class Levels(NamedTuple):
    """The smallest and the largest integer that may be stored."""

    low: int
    high: int

    @classmethod
    def narrow(cls, bits: int) -> Levels:
        """As many below zero as above: what every kernel reads."""
        high = 2 ** (bits - 1) - 1
        return cls(-high, high)

    @classmethod
    def full(cls, bits: int) -> Levels:
        """All that the bits can hold: what DEQUANTIZE and lookups read."""
        return cls(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    @property
    def dtype(self) -> type[np.int8] | type[np.int16]:
        """What holds such integers in memory: int8, or int16 where there are more of them."""
        return np.int8 if self.low >= -LEVELS - 1 and self.high <= LEVELS else np.int16


_NARROW = Levels.narrow(8)


@frozen
class Channels:
    """How a row-major tensor falls into channels: ``[outer, channels, inner]``.

    One scale for the whole tensor is one channel: ``Channels(1, 1, elements)``.
    """

    outer: int
    channels: int
    inner: int

    @classmethod
    def along(cls, shape: Sequence[int], axis: int | None) -> Channels:
        """Splits a shape at a channel axis; None for one scale per tensor."""
        if axis is None:
            return cls(1, 1, math.prod(shape))
        return cls(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))

    @property
    def elements(self) -> int:
        """Number of elements."""
        return self.outer * self.channels * self.inner

    def by_element(
        self, values: npt.NDArray[Item], start: int = 0, stop: int | None = None
    ) -> npt.NDArray[Item]:
        """Returns what belongs to the channel of each element, flat.

        Args:
            values: ``[channels]``.
            start: Position of the first element, row-major.
            stop: Of the one behind the last; of all without it.
        """
        stop = self.elements if stop is None else stop
        if self.channels == 1:
            return np.broadcast_to(values, stop - start)
        # Elements that lie together are of one channel: numbers are worked out once for them.
        first, last = (start // self.inner, -(-stop // self.inner)) if stop > start else (0, 0)
        runs = values[np.arange(first, last) % self.channels]
        if self.inner == 1 or not runs.size:
            return runs
        lengths = np.full(len(runs), self.inner)
        lengths[0] -= start - first * self.inner
        lengths[-1] -= last * self.inner - stop
        return np.repeat(runs, lengths)


@slotted
class Error:
    """Sums of squares, from which the signal-to-noise ratio follows."""

    signal: float = 0.0
    noise: float = 0.0

    @property
    def snr(self) -> float:
        """``10 log10(sum w^2 / sum (w - w')^2)`` in dB; infinite where nothing was lost."""
        if self.noise == 0.0:
            return math.inf
        if self.signal == 0.0:
            return -math.inf
        return 10.0 * math.log10(self.signal / self.noise)


def blocks(channels: Channels) -> Iterator[tuple[int, int, int, int]]:
    """Yields ``(start, rows, first channel, columns)`` of blocks in row-major order.

    A block is ``[rows, columns]`` elements from ``start``. With ``inner`` 1 its columns are the channels;
    otherwise each of its rows belongs to one channel, from ``first channel`` on.
    """
    outer, count, inner = channels.outer, channels.channels, channels.inner
    if channels.elements == 0:
        return
    if inner == 1:
        step = max(1, BLOCK_ELEMENTS // max(1, count))
        for row in range(0, outer, step):
            yield row * count, min(step, outer - row), 0, count
        return
    for index in range(outer):
        base = index * count * inner
        if inner > BLOCK_ELEMENTS:
            for channel in range(count):
                for column in range(0, inner, BLOCK_ELEMENTS):
                    width = min(BLOCK_ELEMENTS, inner - column)
                    yield base + channel * inner + column, 1, channel, width
            continue
        step = max(1, BLOCK_ELEMENTS // inner)
        for channel in range(0, count, step):
            rows = min(step, count - channel)
            yield base + channel * inner, rows, channel, inner


def _most_at_once(channels: Channels) -> int:
    """Returns how many elements a block may have."""
    return min(channels.elements, 2 * BLOCK_ELEMENTS + channels.channels)


_MAGNITUDE_BITS = np.uint32(0x7FFFFFFF)
"""All of a float32 but its sign."""

_BUFSIZE = 1024
"""Elements that numpy gathers for one inner loop."""

_LONG_RUN = 64
"""Elements of a channel in one piece that are looked at together."""

Spent = Callable[[int, int], None]
"""Called with the first byte and the number of bytes of a stretch of the values that is done with."""


def absmax(
    values: npt.NDArray[np.generic],
    channels: Channels,
    *,
    spent: Spent | None = None,
    energy: Float64 | None = None,
) -> Float32:
    """Returns the largest magnitude of each channel.

    Args:
        values: Flat float32 or float16 constants, row-major; not copied.
        channels: How they fall into channels.
        spent: Called after each block.
        energy: Float64 ``[channels]``: the squares of the values are added to it, summed in float32 within a
            block. While a block is in the cache, that takes a fifth of the time of reading it again.

    Returns:
        Float32 ``[channels]``; NaN or infinite where a channel holds such a value.
    """
    # As integers, the bits of magnitudes are in the order of the magnitudes, with infinity and NaN above all:
    # a third of the time of comparing floats, where each may be NaN.
    result = np.zeros(channels.channels, np.uint32)
    by_column = channels.inner == 1
    work = np.empty(_most_at_once(channels), np.uint32)
    for start, rows, first, columns in blocks(channels):
        bits = work[: rows * columns].reshape(rows, columns)
        block = _block(values, start, rows, columns)
        np.bitwise_and(block.view(np.uint32), _MAGNITUDE_BITS, out=bits)
        target = slice(None) if by_column else slice(first, first + rows)
        np.maximum(result[target], bits.max(axis=0 if by_column else 1), out=result[target])
        if energy is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                energy[target] += np.einsum("ij,ij->j" if by_column else "ij,ij->i", block, block)
        if spent is not None:
            spent(start * values.itemsize, rows * columns * values.itemsize)
    return result.view(np.float32)


def scales(largest: Float32, high: int = LEVELS) -> Float32:
    """Returns ``max|w| / 127`` per channel, 1 for channels of zeros.

    The result is a normal number, and so is 127 times it.

    Args:
        largest: Float32 ``[channels]``, finite.
        high: The largest level: 127, or that of a narrower type.
    """
    most = LARGEST_SCALE if high == LEVELS else _largest_scale(high)
    result = np.clip(largest / np.float32(high), np.float32(SMALLEST_SCALE), most)
    made: Float32 = np.where(largest == 0, np.float32(1), result).astype(np.float32)
    return made


def _largest_scale(high: int) -> np.float32:
    # One more level is left free for types whose lowest level is one below.
    most: np.float32 = np.nextafter(np.finfo(np.float32).max / np.float32(high + 1), np.float32(0))
    return most


def quantize(
    values: npt.NDArray[np.generic],
    scale: Float32,
    channels: Channels,
    emit: Callable[[int, Integers], None],
    levels: Levels = _NARROW,
    *,
    largest: Float32 | None = None,
    spent: Spent | None = None,
    error: Error | None = None,
) -> None:
    """Rounds to integers, block by block.

    Args:
        values: Flat float32 or float16 constants, row-major; not copied.
        scale: Float32 ``[channels]``.
        channels: How they fall into channels.
        emit: Called with the position of a block's first element and its integers, in order. The array
            is reused for the next block.
        levels: The smallest and the largest integer.
        largest: The largest magnitude of each channel, where it is known: blocks within the levels need no
            clipping then.
        spent: Called after each block.
        error: The squared signal and error are added to it. To measure them takes longer than to round.
    """
    low, high = levels
    by_column = channels.inner == 1
    beyond = np.ones(channels.channels, np.bool_)
    if largest is not None:
        beyond = largest > scale * np.float32(min(-low, high) + 0.49)
    work = np.empty(_most_at_once(channels), np.float32)
    integers = np.empty(work.size, levels.dtype)
    with short_loops():
        for start, rows, first, columns in blocks(channels):
            size = rows * columns
            rounded = work[:size].reshape(rows, columns)
            step = scale[None, :] if by_column else scale[first : first + rows, None]
            block = _block(values, start, rows, columns)
            np.divide(block, step, out=rounded)
            np.rint(rounded, out=rounded)
            if beyond[slice(None) if by_column else slice(first, first + rows)].any():
                np.clip(rounded, low, high, out=rounded)
            np.copyto(integers[:size].reshape(rows, columns), rounded, casting="unsafe")
            if error is not None:
                np.multiply(rounded, step, out=rounded)
                np.subtract(block, rounded, out=rounded)
                error.signal += _energy(block)
                error.noise += _energy(rounded)
            emit(start, integers[:size])
            if spent is not None:
                spent(start * values.itemsize, size * values.itemsize)


@contextlib.contextmanager
def short_loops() -> Iterator[None]:
    """Keeps numpy from copying what is one for a row once for each element, where rows are short.

    That is a third of the time of dividing by scales, and a tenth of that of rounding a weight for what it
    meets. Results are the same. For this thread alone.
    """
    before = np.setbufsize(_BUFSIZE)
    try:
        yield
    finally:
        np.setbufsize(before)


def _block(values: npt.NDArray[Any], start: int, rows: int, columns: int) -> Float32:
    part = values[start : start + rows * columns].reshape(rows, columns)
    return np.asarray(part, np.float32)


def _energy(block: Float32) -> float:
    flat = block.reshape(-1)
    with np.errstate(over="ignore"):
        total = float(np.dot(flat, flat))
    # Very large and very small values leave float32's range when they are squared.
    if not 1e-30 < total < 1e30:
        wide = flat.astype(np.float64)
        total = float(np.dot(wide, wide))
    return total


class Silenced:
    """Watches new values while they are made, block by block.

    With one scale for many channels, one that is much weaker than the strongest may keep nothing; the error
    of the whole weight does not show that.

    Args:
        rows: How the weight falls into channels.
        zero: The number that stands for zero.
    """

    def __init__(self, rows: Channels, zero: float = 0.0) -> None:
        self._rows = rows
        self._zero = zero
        self._alive = np.zeros(rows.channels, bool)

    def watch(self, start: int, block: npt.NDArray[Any]) -> None:
        """Notes which channels hold a number.

        Args:
            start: Position of the block's first element in the flat weight.
            block: Flat new values.
        """
        if self._alive.all():
            return
        inner, channels = self._rows.inner, self._rows.channels
        block = block.reshape(-1)
        if inner < _LONG_RUN:
            found = (np.flatnonzero(block != self._zero) + start) // inner % channels
            self._alive[found] = True
            return
        for row in range(start // inner, -(-(start + block.size) // inner)):
            if not self._alive[row % channels]:
                part = block[max(0, row * inner - start) : (row + 1) * inner - start]
                self._alive[row % channels] = bool((part != self._zero).any())

    def beside(
        self, emit: Callable[[int, npt.NDArray[Any]], None]
    ) -> Callable[[int, npt.NDArray[Any]], None]:
        """Returns a function that hands blocks on and watches them."""

        def both(start: int, block: npt.NDArray[Any]) -> None:
            self.watch(start, block)
            emit(start, block)

        return both

    def among(self, values: npt.NDArray[Any]) -> tuple[int, ...]:
        """Returns the channels that hold nothing but zeros now and did not before.

        Args:
            values: The flat weight as it was.
        """
        before = values.reshape(self._rows.outer, self._rows.channels, self._rows.inner)
        silent = np.flatnonzero(~self._alive)
        return tuple(int(channel) for channel in silent if (before[:, channel] != self._zero).any())


@frozen(eq=False)
class Floats:
    """Constant values as the float32 that they mean, read a part at a time.

    The arithmetic is that of the kernels: integers less their zero point become float32 and are multiplied by
    a float32 scale (``tflite/kernels/internal/reference/integer_ops/dequantize.h``), so the values are those
    that the runtime computes, to the bit.

    Attributes:
        shape: Dimensions.
        key: Equal for two that have the same values by construction.
        read: Returns flat values from a position to another, row-major.
    """

    shape: tuple[int, ...]
    key: Hashable
    read: Callable[[int, int], Float32]

    def blob(self) -> ComputedBlob:
        """Returns the values as bytes that are made while they are written."""
        elements = math.prod(self.shape)

        def write_to(sink: Sink, offset: int) -> None:
            for start in range(0, elements, BLOCK_ELEMENTS):
                part = self.read(start, min(elements, start + BLOCK_ELEMENTS))
                sink.write_at(part.astype("<f4").data, offset + 4 * start)

        return ComputedBlob(4 * elements, write_to)


def scaled_integers(
    tensor: Tensor, blob: Blob, channels: Channels, scale: Float32, zero: npt.NDArray[np.int64]
) -> Floats:
    """Returns integers times scales.

    Args:
        tensor: Has the type: 8, 4 or 2 bits.
        blob: The packed integers.
        channels: How they fall into groups with a scale each.
        scale: Float32 ``[channels]``.
        zero: Int64 ``[channels]``: zero points.
    """
    bits, signed = dtypes.BY_VALUE[tensor.dtype].bits, not tensor.dtype_name.startswith("U")

    def read(start: int, stop: int) -> Float32:
        each = 8 // bits
        first = start - start % each
        data = blob.view()[first // each : -(-stop // each)]
        if signed:
            raw = unpack(data, bits, stop - first)[start - first :].astype(np.int32)
        else:
            raw = np.frombuffer(data, np.uint8)[start - first : stop - first].astype(np.int32)
        # As the kernel does it: what leaves the range becomes infinite.
        with np.errstate(over="ignore", invalid="ignore"):
            centred = (raw - channels.by_element(zero.astype(np.int32), start, stop)).astype(np.float32)
            made: Float32 = centred * channels.by_element(scale, start, stop)
        return made

    key = (blob.identity, bits, signed, channels, scale.tobytes(), zero.tobytes())
    return Floats(tensor.shape or (), key, read)


def halves(shape: tuple[int, ...], blob: Blob) -> Floats:
    """Returns float16 values; each is a float32 too."""

    def read(start: int, stop: int) -> Float32:
        return np.frombuffer(blob.view()[2 * start : 2 * stop], "<f2").astype(np.float32)

    return Floats(shape, ("half", blob.identity), read)


def product_of(one: Floats, two: Floats) -> Floats | None:
    """Returns each row times a factor of its own, or all times one; None for other forms.

    A row is what follows the first axis; factors of ``[out, height, width, in]`` are ``[out, 1, 1, 1]``.
    """
    for left, factors in ((one, two), (two, one)):
        count = math.prod(factors.shape)
        if count == 1 or (left.shape and factors.shape == (left.shape[0], *(1,) * (len(left.shape) - 1))):
            return Floats(left.shape, ("product", left.key, factors.key), _product(left, factors, count))
    return None


def _product(left: Floats, factors: Floats, count: int) -> Callable[[int, int], Float32]:
    row = math.prod(left.shape) // max(1, count)

    def read(start: int, stop: int) -> Float32:
        first = start // row
        each = factors.read(first, -(-stop // row))
        made: Float32 = left.read(start, stop) * each[np.arange(start, stop) // row - first]
        return made

    return read


def sum_of(left: Floats, right: Floats) -> Floats:
    """Returns the sum of two constants of the same shape."""

    def read(start: int, stop: int) -> Float32:
        with np.errstate(over="ignore", invalid="ignore"):
            made: Float32 = left.read(start, stop) + right.read(start, stop)
        return made

    return Floats(left.shape, ("sum", left.key, right.key), read)
